// What the kernel tests share: repeatable random values, comparison of bits, and the list of implementations.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "core/matrix.h"
#include "kernels/kernels.h"

namespace moe {

using Counts = std::vector<std::size_t>;

/// `size` normal values of deviation 1.
inline std::vector<float> RandomValues(std::size_t size, std::uint32_t seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) value = normal(bits);
  return values;
}

/// The "lane sum" of kernels.h of values that are added one by one.
inline float LaneSum(std::span<const float> values) {
  float partial[16] = {};
  for (std::size_t i = 0; i < values.size(); ++i) partial[i % 16] += values[i];
  for (const std::size_t width : Counts{8, 4, 2, 1}) {
    for (std::size_t j = 0; j < width; ++j) partial[j] += partial[j + width];
  }
  return partial[0];
}

/// Equal as bits, so that -0 differs from 0.
inline ::testing::AssertionResult SameBits(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << a.size() << " and " << b.size() << " values";
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i])) {
      return ::testing::AssertionFailure() << "value " << i << ": " << a[i] << " and " << b[i];
    }
  }
  return ::testing::AssertionSuccess();
}

/// The weight of output `row` and input `col` in a quantized matrix as it is stored, q + ZeroPoint, by the documented
/// layout: int8 in quads [k / 4][16][4], int4 in [k / 8][16][4] with the first four of eight inputs in the low halves.
inline int StoredInteger(const PackedMatrix& packed, std::size_t row, std::size_t col) {
  const std::byte* const panel = packed.panel(row / 16);
  const std::size_t lane = row % 16;
  if (packed.type() == WeightType::kInt8) return static_cast<int>(panel[col / 4 * 64 + lane * 4 + col % 4]);
  const auto both = static_cast<int>(panel[col / 8 * 64 + lane * 4 + col % 4]);
  return col % 8 < 4 ? both % 16 : both / 16;
}

/// The bits of its scale: [groups][16] in bf16.
inline std::uint16_t StoredScale(const PackedMatrix& packed, std::size_t row, std::size_t col) {
  std::uint16_t bits;
  std::memcpy(&bits, packed.scales(row / 16) + (col / GroupSize(packed.type()) * 16 + row % 16) * sizeof(bits),
              sizeof(bits));
  return bits;
}

/// The element of output `row` and input `col`, read by the documented layout.
inline float PackedElement(const PackedMatrix& packed, std::size_t row, std::size_t col) {
  if (IsQuantized(packed.type())) {
    const int q = StoredInteger(packed, row, col) - ZeroPoint(packed.type());
    return Bf16ToF32(StoredScale(packed, row, col)) * static_cast<float>(q);
  }
  const std::byte* at =
      packed.panel(row / PackedMatrix::kPanelWidth) +
      (col * PackedMatrix::kPanelWidth + row % PackedMatrix::kPanelWidth) * BytesPerWeight(packed.type());
  if (packed.type() == WeightType::kF32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return packed.type() == WeightType::kBf16 ? Bf16ToF32(bits) : F16ToF32(bits);
}

/// A test for each SIMD implementation that this machine can run.
class EachSimdKernels : public ::testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& kernels() const { return *GetParam(); }
};

inline auto EachAvailable() { return ::testing::ValuesIn(AvailableSimdKernels()); }
inline std::string NameOf(const ::testing::TestParamInfo<const Kernels*>& info) {
  return std::string(info.param->name());
}

/// Half an ulp of 1: the relative error of one rounding of fp32.
inline constexpr double kRoundoff = 0x1p-24;

/// The relative error of kernels/exp.h in units of kRoundoff (exp_test.cpp).
inline constexpr double kExpRoundings = 2.1;

}  // namespace moe
