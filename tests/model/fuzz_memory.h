// Watches what this binary has allocated at a time. Link fuzz_memory.cpp, which replaces operator new.
#pragma once

#include <cstdint>

namespace moe {

/// From construction on, of the one thread that tests run on.
class MemoryWatch {
 public:
  MemoryWatch();
  /// The most bytes above those of the beginning that were allocated at a time.
  std::uint64_t peak_bytes() const;

 private:
  std::uint64_t before_ = 0;
};

}  // namespace moe
