#include "kernels/kv_type.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/weight_type.h"
#include "tests/kernels/kernel_cases.h"

namespace moe {
namespace {

constexpr std::byte kUntouched{0xa5};

/// The bits of element `index`.
std::uint32_t BitsAt(KvType type, std::span<const std::byte> bytes, std::size_t index) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, bytes.data() + index * BytesPerElement(type), BytesPerElement(type));
  return bits;
}

std::uint32_t BitsOf(KvType type, float value) {
  return type == KvType::kF32 ? std::bit_cast<std::uint32_t>(value) : F32ToBf16(value);
}

TEST(KvType, IsParsedAsItIsNamed) {
  EXPECT_EQ(Name(KvType::kF32), "f32");
  EXPECT_EQ(Name(KvType::kBf16), "bf16");
  for (const KvType type : {KvType::kF32, KvType::kBf16}) EXPECT_EQ(ParseKvType(Name(type)), type);
  for (const char* unknown : {"", "f16", "int8", "F32", "bf16 "}) EXPECT_FALSE(ParseKvType(unknown)) << unknown;
}

TEST(KvType, RoundsAsWeightsAreRounded) {
  std::vector<std::uint32_t> patterns;
  // Both sides of every tie of some exponents, zeros, denormals, the largest, infinities, and NaNs of all kinds.
  for (const std::uint32_t high : {0x0000u, 0x0001u, 0x007fu, 0x0080u, 0x3f80u, 0x3f81u, 0x7f7fu, 0x7f80u, 0x7fc0u}) {
    for (const std::uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      patterns.push_back(high << 16 | low);
      patterns.push_back(0x80000000u | high << 16 | low);
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 100'000; ++i) patterns.push_back(static_cast<std::uint32_t>(random()));
  std::vector<float> values;
  for (const std::uint32_t bits : patterns) values.push_back(std::bit_cast<float>(bits));
  std::vector<std::byte> out(values.size() * 2);
  StoreKvRows({values.data(), 1, values.size()}, KvType::kBf16, out);
  for (std::size_t i = 0; i < values.size(); ++i)
    ASSERT_EQ(BitsAt(KvType::kBf16, out, i), F32ToBf16(values[i])) << std::hex << patterns[i];
}

/// Stores rows that lie `gap` apart and checks that each element is where `place` says, and nothing is elsewhere.
template <typename Store, typename Place>
void ExpectPlaces(KvType type, std::size_t positions, std::size_t width, const Store& store, const Place& place) {
  constexpr std::size_t kGap = 3;
  constexpr std::size_t kElements = 40 * 40;
  const std::vector<float> values = RandomValues(positions * (width + kGap), 5);
  const MatrixView<const float> rows(values.data(), positions, width, width + kGap);
  std::vector<std::byte> out(kElements * BytesPerElement(type), kUntouched);
  store(rows, out);
  std::vector<bool> written(kElements);
  for (std::size_t r = 0; r < positions; ++r) {
    for (std::size_t i = 0; i < width; ++i) {
      ASSERT_EQ(BitsAt(type, out, place(r, i)), BitsOf(type, rows(r, i))) << positions << " of " << width;
      written[place(r, i)] = true;
    }
  }
  for (std::size_t at = 0; at < out.size(); ++at) {
    if (written[at / BytesPerElement(type)]) continue;
    ASSERT_EQ(out[at], kUntouched) << positions << " of " << width;
  }
}

TEST(KvType, StoresRowsOneAfterTheOtherAndColumnsSideBySide) {
  for (const KvType type : {KvType::kF32, KvType::kBf16}) {
    for (const std::size_t positions : Counts{1, 2, 15, 16, 31, 32}) {
      for (const std::size_t width : Counts{1, 7, 8, 16, 17, 33, 40}) {
        ExpectPlaces(
            type, positions, width,
            [&](MatrixView<const float> rows, std::span<std::byte> out) { StoreKvRows(rows, type, out); },
            [&](std::size_t r, std::size_t i) { return r * width + i; });
        ExpectPlaces(
            type, positions, width,
            [&](MatrixView<const float> rows, std::span<std::byte> out) { StoreKvColumns(rows, type, 32, out); },
            [&](std::size_t r, std::size_t i) { return i * 32 + r; });
      }
    }
  }
}

TEST(KvTypeDeath, RefusesToWritePastTheEnd) {
  const std::vector<float> values(12, 1.0f);
  std::vector<std::byte> out(12 * 2 - 1);
  EXPECT_DEATH(StoreKvRows({values.data(), 3, 4}, KvType::kBf16, out), "out.size");
  EXPECT_DEATH(StoreKvColumns({values.data(), 3, 4}, KvType::kF32, 3, out), "out.size");
  EXPECT_DEATH(StoreKvColumns({values.data(), 3, 4}, KvType::kBf16, 2, out), "stride");
}

}  // namespace
}  // namespace moe
