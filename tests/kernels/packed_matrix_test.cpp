#include "kernels/packed_matrix.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "tests/kernels/kernel_cases.h"

namespace moe {
namespace {

/// A stored matrix that starts `misalignment` bytes past an aligned address.
class Stored {
 public:
  Stored(WeightType type, std::size_t rows, std::size_t cols, std::uint32_t seed, std::size_t misalignment = 0)
      : bytes_(misalignment + rows * cols * BytesPerWeight(type)) {
    std::byte* to = bytes_.data() + misalignment;
    view_ = {.type = type, .data = to, .rows = rows, .cols = cols};
    for (const float value : RandomValues(rows * cols, seed)) {
      const std::uint16_t narrow = type == WeightType::kBf16 ? F32ToBf16(value) : F32ToF16(value);
      const std::size_t width = BytesPerWeight(type);
      std::memcpy(to, type == WeightType::kF32 ? static_cast<const void*>(&value) : &narrow, width);
      to += width;
    }
  }

  const WeightView& view() const { return view_; }

 private:
  std::vector<std::byte> bytes_;
  WeightView view_;
};

float Rounded(float value, WeightType type) {
  switch (type) {
    case WeightType::kF32: return value;
    case WeightType::kBf16: return Bf16ToF32(F32ToBf16(value));
    case WeightType::kF16: return F16ToF32(F32ToF16(value));
    case WeightType::kInt8:
    case WeightType::kInt4: break;
  }
  return 0;
}

constexpr WeightType kTypes[] = {WeightType::kF32, WeightType::kBf16, WeightType::kF16};

TEST(PackedMatrix, HoldsEveryElementConvertedWithZerosPastTheEnd) {
  struct Shape {
    std::size_t rows, cols;
  };
  for (const WeightType from : kTypes) {
    for (const WeightType to : kTypes) {
      for (const auto [rows, cols] : {Shape{1, 1}, Shape{16, 3}, Shape{17, 300}, Shape{47, 256}, Shape{33, 257}}) {
        for (const std::size_t misalignment : Counts{0, 1, 3}) {
          const Stored source(from, rows, cols, 11, misalignment);
          const PackedMatrix packed = PackedMatrix::Pack(source.view(), to);
          ASSERT_EQ(packed.rows(), rows);
          ASSERT_EQ(packed.cols(), cols);
          ASSERT_EQ(packed.type(), to);
          ASSERT_EQ(packed.bytes(), packed.panels() * cols * 16 * BytesPerWeight(to));
          for (std::size_t row = 0; row < packed.panels() * 16; ++row) {
            for (std::size_t col = 0; col < cols; ++col) {
              const float expected = row < rows ? Rounded(source.view().at(row, col), to) : 0.0f;
              ASSERT_EQ(PackedElement(packed, row, col), expected)
                  << Name(from) << " to " << Name(to) << " " << row << "," << col;
            }
          }
        }
      }
    }
  }
}

TEST(PackedMatrix, StacksPartsOfDifferentTypes) {
  const Stored first(WeightType::kF32, 5, 40, 1);
  const Stored none(WeightType::kF32, 0, 40, 1);
  const Stored second(WeightType::kBf16, 30, 40, 2);
  const Stored third(WeightType::kF16, 1, 40, 3);
  const WeightView parts[] = {first.view(), none.view(), second.view(), third.view()};
  const PackedMatrix packed = PackedMatrix::Pack(parts, WeightType::kF32);
  ASSERT_EQ(packed.rows(), 36u);
  for (std::size_t col = 0; col < 40; ++col) {
    EXPECT_EQ(PackedElement(packed, 4, col), first.view().at(4, col));
    EXPECT_EQ(PackedElement(packed, 5, col), second.view().at(0, col));
    EXPECT_EQ(PackedElement(packed, 34, col), second.view().at(29, col));
    EXPECT_EQ(PackedElement(packed, 35, col), third.view().at(0, col));
  }
}

TEST(PackedMatrix, MayBeEmpty) {
  EXPECT_TRUE(PackedMatrix().empty());
  const PackedMatrix packed = PackedMatrix::Pack(WeightView{.rows = 0, .cols = 8}, WeightType::kBf16);
  EXPECT_TRUE(packed.empty());
  EXPECT_EQ(packed.panels(), 0u);
  EXPECT_EQ(packed.cols(), 8u);
  EXPECT_TRUE(PackedMatrix::Pack(std::span<const WeightView>(), WeightType::kF32).empty());
}

TEST(PackedMatrix, IsAlignedForVectors) {
  const Stored source(WeightType::kBf16, 40, 7, 1, 1);
  const PackedMatrix packed = PackedMatrix::Pack(source.view(), WeightType::kBf16);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(packed.panel(0)) % 64, 0u);
}

TEST(PackedMatrixDeath, RejectsPartsOfDifferentWidth) {
  const Stored first(WeightType::kF32, 2, 4, 1);
  const Stored second(WeightType::kF32, 2, 5, 1);
  const WeightView parts[] = {first.view(), second.view()};
  EXPECT_DEATH((void)PackedMatrix::Pack(parts, WeightType::kF32), "number of columns");
}

}  // namespace
}  // namespace moe
