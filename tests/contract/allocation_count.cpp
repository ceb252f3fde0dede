#include "tests/contract/allocation_count.h"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace moe {
namespace {

std::atomic<std::uint64_t> allocations{0};
thread_local std::uint64_t thread_allocations = 0;

void* Count(void* memory) {
  if (!UncountedAllocations::now()) {
    allocations.fetch_add(1);
    ++thread_allocations;
  }
  if (memory == nullptr) std::abort();
  return memory;
}

}  // namespace

std::uint64_t AllocationCount() { return allocations.load(); }
std::uint64_t ThreadAllocationCount() { return thread_allocations; }

}  // namespace moe

// All forms but the aligned nothrow ones: the standard library's other forms call these, a sanitizer's do not.
void* operator new(std::size_t bytes) { return moe::Count(std::malloc(bytes == 0 ? 1 : bytes)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  const auto align = static_cast<std::size_t>(alignment);
  return moe::Count(std::aligned_alloc(align, (bytes + align - 1) / align * align));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return operator new(bytes); }
void* operator new[](std::size_t bytes) { return operator new(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return operator new(bytes); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
