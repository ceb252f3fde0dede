#include "core/aligned_buffer.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace moe {
namespace {

// Below this the allocator serves memory from its arenas; above it, whole mappings, which are zero already and whose
// pages appear where they are first touched.
constexpr std::size_t kMapFrom = std::size_t{2} << 20;

constexpr std::size_t kHugePage = std::size_t{2} << 20;  // of x86-64, and of AArch64 with pages of 4 KiB

// Not up to a whole huge page: an expert's matrix is little more than one, and the rest of its last one would double
// what a model takes. Small pages serve the rest.
constexpr std::size_t kPage = 4096;

constexpr std::size_t MappedBytes(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

void* AllocateAligned(std::size_t bytes) {
  if (bytes < kMapFrom) {
    void* memory = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    MOE_CHECK(memory != nullptr, "out of memory");
    std::memset(memory, 0, bytes);
    return memory;
  }
  // From a huge page's boundary on: the begin of a buffer of messages, sized for the largest, is what is used most.
  const std::size_t size = MappedBytes(bytes);
  void* reserved =
      mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  MOE_CHECK(reserved != MAP_FAILED, "out of memory");
  auto* const begin = static_cast<std::byte*>(reserved);
  const std::size_t before = (kHugePage - reinterpret_cast<std::uintptr_t>(reserved) % kHugePage) % kHugePage;
  std::byte* const memory = begin + before;
  if (before > 0) munmap(begin, before);
  munmap(memory + size, kHugePage - before);
  madvise(memory, size, MADV_HUGEPAGE);
  return memory;
}

void FreeAligned(void* memory, std::size_t bytes) {
  if (memory == nullptr) return;
  if (bytes < kMapFrom) {
    std::free(memory);
  } else {
    munmap(memory, MappedBytes(bytes));
  }
}

}  // namespace moe
