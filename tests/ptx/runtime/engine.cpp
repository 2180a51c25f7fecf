#include "engine.h"

#include <deque>
#include <utility>

#include "machine.h"

namespace ptx {
namespace {

std::deque<std::function<void()>> works;

}  // namespace

void begin_work(std::function<void()> land) {
  release(&works);
  works.push_back(std::move(land));
}

bool land_work() {
  if (works.empty()) return false;
  const std::function<void()> land = std::move(works.front());
  works.pop_front();
  acquire(&works);
  land();
  machine.pauses = 0;
  return true;
}

void forget_work() { works.clear(); }

}  // namespace ptx
