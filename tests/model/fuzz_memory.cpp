#include "tests/model/fuzz_memory.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace moe {
namespace {

std::atomic<std::uint64_t> live{0};
std::atomic<std::uint64_t> peak{0};

// Neither is inlined: GCC would see free() take what operator new returned, and warn.
[[gnu::noinline]] void* Count(void* memory) {
  if (memory == nullptr) std::abort();
  const std::uint64_t now = live.fetch_add(malloc_usable_size(memory)) + malloc_usable_size(memory);
  if (now > peak.load()) peak.store(now);
  return memory;
}

[[gnu::noinline]] void Free(void* memory) {
  if (memory == nullptr) return;
  live.fetch_sub(malloc_usable_size(memory));
  std::free(memory);
}

}  // namespace

MemoryWatch::MemoryWatch() : before_(live.load()) { peak.store(before_); }

std::uint64_t MemoryWatch::peak_bytes() const { return peak.load() - before_; }

}  // namespace moe

// The forms for arrays call these by default, those without exceptions too but for the sanitizers' own.
void* operator new(std::size_t bytes) { return moe::Count(std::malloc(bytes == 0 ? 1 : bytes)); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return operator new(bytes); }
void* operator new[](std::size_t bytes) { return operator new(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return operator new(bytes); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  const auto align = static_cast<std::size_t>(alignment);
  return moe::Count(std::aligned_alloc(align, (bytes + align - 1) / align * align));
}
void operator delete(void* memory) noexcept { moe::Free(memory); }
void operator delete(void* memory, std::size_t) noexcept { moe::Free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { moe::Free(memory); }
void operator delete[](void* memory) noexcept { moe::Free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { moe::Free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { moe::Free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { moe::Free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { moe::Free(memory); }
