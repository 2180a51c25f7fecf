// A plugin library that is linked to TensorRT registers itself when it is loaded, and with the
// TensorRT that it was built for alone: test_static_registration PLUGINS.so [other].
#include <dlfcn.h>

#include <string>

#include "check.h"

using namespace moe_export::test;

int main(int count, char** words) {
  const bool is_other = count > 2 && std::string(words[2]) == "other";
  run_case(is_other ? "another TensorRT's registry is left alone" : "loading registers", [&] {
    void* const library = dlopen(words[1], RTLD_NOW);
    expect(library != nullptr, library ? "" : dlerror());
    const auto names = reinterpret_cast<const char* (*)()>(dlsym(library, "registered_names"));
    expect(names != nullptr, "the library is not linked to the registry");
    const std::string expected =
        is_other ? ""
                 : "::TopKGating ::GroupedExperts ::ExpertDispatch ::GroupedMatMul "
                   "::ExpertCombine ";
    expect(names() == expected, "registered: " + std::string(names()));
  });
  return finish();
}
