// Counts this binary's allocations, all threads together. Link allocation_count.cpp, which replaces operator new.
#pragma once

#include <cstdint>

namespace moe {

std::uint64_t AllocationCount();

}  // namespace moe
