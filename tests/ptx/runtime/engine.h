// Work that goes on while threads do: a thread begins it, and it lands, in order, when the machine
// likes. ThreadSanitizer takes it for a thread of its own that begins when it is begun.
#pragma once
#include <functional>

namespace ptx {

void begin_work(std::function<void()> land);
/// Lands what was begun first; false if there is none.
bool land_work();
/// Of a block that ends.
void forget_work();

}  // namespace ptx
