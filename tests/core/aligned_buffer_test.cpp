#include "core/aligned_buffer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>

namespace moe {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

TEST(AlignedBuffer, IsZeroedAndUsableToItsEnd) {
  for (const std::size_t size : {std::size_t{1}, std::size_t{100}, kHugePage - 1, kHugePage, 3 * kHugePage + 1}) {
    AlignedBuffer<std::byte> buffer(size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % kAlignment, 0u) << size;
    EXPECT_TRUE(std::ranges::all_of(buffer.span(), [](std::byte b) { return b == std::byte{0}; })) << size;
    std::ranges::fill(buffer.span(), std::byte{1});
  }
}

TEST(AlignedBuffer, BeginsWithAHugePageWhenLarge) {
  for (int i = 0; i < 8; ++i) {
    const AlignedBuffer<std::byte> buffer(kHugePage + static_cast<std::size_t>(i) * 4096 + 1);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % kHugePage, 0u);
  }
}

// Address space of this process, in bytes.
std::size_t AddressSpace() {
  std::size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

TEST(AlignedBuffer, GivesBackWhatItTook) {
  const std::size_t before = AddressSpace();
  for (std::size_t i = 0; i < 100; ++i) const AlignedBuffer<std::byte> buffer(kHugePage + i * 4096 + 1);
  EXPECT_LT(AddressSpace(), before + 50 * kHugePage);  // less than a huge page of each
}

}  // namespace
}  // namespace moe
