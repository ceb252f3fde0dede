#include "kernels/packed_matrix.h"

#include <gtest/gtest.h>

#include <algorithm>
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

constexpr WeightType kQuantized[] = {WeightType::kInt8, WeightType::kInt4};

TEST(PackedMatrix, HoldsQuantizedRowsInTheDocumentedLayoutWithZerosPastTheEnd) {
  struct Shape {
    std::size_t rows, cols;
  };
  for (const WeightType from : kTypes) {
    for (const WeightType to : kQuantized) {
      const std::size_t group = to == WeightType::kInt8 ? 64 : 32;
      const int zero = to == WeightType::kInt8 ? 128 : 8;
      for (const auto [rows, cols] :
           {Shape{1, 1}, Shape{16, 3}, Shape{17, 64}, Shape{47, 130}, Shape{33, 257}, Shape{32, 31}}) {
        const Stored source(from, rows, cols, 11, 1);
        const PackedMatrix packed = PackedMatrix::Pack(source.view(), to);
        const std::size_t groups = (cols + group - 1) / group;
        const std::size_t value_bytes = groups * group * 16 / (to == WeightType::kInt4 ? 2 : 1);
        ASSERT_EQ(packed.scales(0), packed.panel(0) + value_bytes);
        ASSERT_EQ(packed.bytes(), packed.panels() * (value_bytes + (groups * 32 + 63) / 64 * 64)) << "whole lines";
        std::vector<std::uint8_t> values(groups * group);
        std::vector<std::uint16_t> scales(groups);
        for (std::size_t row = 0; row < packed.panels() * 16; ++row) {
          std::ranges::fill(values, static_cast<std::uint8_t>(zero));  // of rows that only fill the panel
          std::ranges::fill(scales, std::uint16_t{0});
          if (row < rows) {
            const WeightView one{from, source.view().data + row * cols * BytesPerWeight(from), 1, cols};
            SimdKernels().QuantizeWeights(one, to, values, scales);
          }
          for (std::size_t col = 0; col < groups * group; ++col) {
            ASSERT_EQ(StoredInteger(packed, row, col), values[col]) << Name(to) << " " << row << "," << col;
            ASSERT_EQ(StoredScale(packed, row, col), scales[col / group]) << Name(to) << " " << row << "," << col;
            ASSERT_TRUE(col < cols || values[col] == zero) << Name(to) << " " << row << "," << col;
            if (row < rows && col < cols) {
              const float value = Bf16ToF32(scales[col / group]) * static_cast<float>(values[col] - zero);
              ASSERT_EQ(packed.at(row, col), value) << Name(to) << " " << row << "," << col;
            }
          }
        }
      }
    }
  }
}

TEST(PackedMatrix, IsTheSameHoweverItsRowsAreGiven) {
  const Stored first(WeightType::kF32, 5, 70, 1);
  const Stored second(WeightType::kF32, 30, 70, 2);
  const WeightView parts[] = {first.view(), second.view()};
  for (const WeightType type : kQuantized) {
    const PackedMatrix stacked = PackedMatrix::Pack(parts, type);
    const PackedMatrix read = PackedMatrix::Pack(35, 70, type, [&](std::size_t begin, MatrixView<float> out) {
      for (std::size_t row = 0; row < out.rows(); ++row)
        for (std::size_t col = 0; col < 70; ++col)
          out(row, col) = begin + row < 5 ? first.view().at(begin + row, col) : second.view().at(begin + row - 5, col);
    });
    ASSERT_EQ(stacked.bytes(), read.bytes());
    EXPECT_EQ(std::memcmp(stacked.panel(0), read.panel(0), read.bytes()), 0) << Name(type);
    for (std::size_t row = 0; row < 35; ++row)
      for (std::size_t col = 0; col < 70; ++col) ASSERT_EQ(stacked.at(row, col), PackedElement(stacked, row, col));
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
