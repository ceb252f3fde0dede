#include "core/aligned_buffer.h"

#include <sys/mman.h>

#include <cstring>

namespace moe {
namespace {

// Below this the allocator serves memory from its arenas; above it, whole mappings, which are zero already and whose
// pages appear where they are first touched.
constexpr std::size_t kMapFrom = std::size_t{2} << 20;

}  // namespace

void* AllocateAligned(std::size_t bytes) {
  if (bytes < kMapFrom) {
    void* memory = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    MOE_CHECK(memory != nullptr, "out of memory");
    std::memset(memory, 0, bytes);
    return memory;
  }
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  MOE_CHECK(memory != MAP_FAILED, "out of memory");
  madvise(memory, bytes, MADV_HUGEPAGE);
  return memory;
}

void FreeAligned(void* memory, std::size_t bytes) {
  if (memory == nullptr) return;
  if (bytes < kMapFrom) {
    std::free(memory);
  } else {
    munmap(memory, bytes);
  }
}

}  // namespace moe
