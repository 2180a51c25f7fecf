// Runs one launch in a process of its own: launcher KERNEL.so ENTRY IN OUT.
//
// IN says the launch, in text, and what lies in memory, in bytes behind it:
//   grid X Y Z / threads N / shared N / seed N
//   buffer BYTES              memory of exactly so many bytes, numbered from 0
//   argument BYTES            a parameter, numbered from 0
//   pointer ARGUMENT AT BUFFER  the buffer's address, at a byte of an argument
//   data
//   the buffers' bytes, then the arguments', in order
// OUT gets the buffers' bytes. Exits with what the launch returns.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Block {
  size_t bytes;
  char* data;
};
struct Pointer {
  size_t argument, at, buffer;
};
struct Launch {
  unsigned grid[3] = {1, 1, 1}, threads = 1, shared = 0, seed = 0;
  std::vector<Block> buffers, arguments;
  std::vector<Pointer> pointers;
};

/// Of exactly that size: what lies behind it is out of bounds.
Block make_block(size_t bytes) { return {bytes, static_cast<char*>(std::malloc(bytes))}; }

Launch read_launch(std::ifstream& file) {
  Launch launch;
  std::string text, word;
  while (std::getline(file, text) && text != "data") {
    std::istringstream line(text);
    size_t bytes;
    line >> word;
    if (word == "grid") line >> launch.grid[0] >> launch.grid[1] >> launch.grid[2];
    if (word == "threads") line >> launch.threads;
    if (word == "shared") line >> launch.shared;
    if (word == "seed") line >> launch.seed;
    if (word == "buffer" && line >> bytes) launch.buffers.push_back(make_block(bytes));
    if (word == "argument" && line >> bytes) launch.arguments.push_back(make_block(bytes));
    if (word == "pointer") {
      Pointer pointer;
      line >> pointer.argument >> pointer.at >> pointer.buffer;
      launch.pointers.push_back(pointer);
    }
  }
  for (auto* blocks : {&launch.buffers, &launch.arguments}) {
    for (Block& block : *blocks) file.read(block.data, static_cast<std::streamsize>(block.bytes));
  }
  for (const Pointer& pointer : launch.pointers) {
    std::memcpy(launch.arguments[pointer.argument].data + pointer.at,
                &launch.buffers[pointer.buffer].data, sizeof(char*));
  }
  return launch;
}

}  // namespace

int main(int count, char** words) {
  if (count != 5) return 2;
  std::ifstream in(words[3], std::ios::binary);
  Launch launch = read_launch(in);
  void* const library = dlopen(words[1], RTLD_NOW);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  using Run = int (*)(const unsigned*, unsigned, unsigned, unsigned, void* const*);
  const auto run =
      reinterpret_cast<Run>(dlsym(library, (std::string("ptx_run_") + words[2]).c_str()));
  if (run == nullptr) return 2;
  std::vector<void*> arguments;
  for (const Block& argument : launch.arguments) arguments.push_back(argument.data);
  const int result = run(launch.grid, launch.threads, launch.shared, launch.seed, arguments.data());
  std::ofstream out(words[4], std::ios::binary);
  for (const Block& buffer : launch.buffers) {
    out.write(buffer.data, static_cast<std::streamsize>(buffer.bytes));
  }
  for (auto* blocks : {&launch.buffers, &launch.arguments}) {
    for (Block& block : *blocks) std::free(block.data);
  }
  return result;
}
