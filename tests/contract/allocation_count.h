// Counts this binary's allocations. Link allocation_count.cpp, which replaces operator new.
#pragma once

#include <cstdint>

namespace moe {

/// Of all threads together.
std::uint64_t AllocationCount();
/// Of this thread: where a library's own threads allocate when they please.
std::uint64_t ThreadAllocationCount();

/// While one lives, its thread's allocations are not counted: those of a fake that stands in for a library.
class UncountedAllocations {
 public:
  UncountedAllocations() { ++depth; }
  ~UncountedAllocations() { --depth; }
  UncountedAllocations(const UncountedAllocations&) = delete;
  UncountedAllocations& operator=(const UncountedAllocations&) = delete;
  static bool now() { return depth > 0; }

 private:
  static inline thread_local int depth = 0;
};

}  // namespace moe
