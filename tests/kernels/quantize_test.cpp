#include "kernels/quantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/kernels.h"
#include "tests/kernels/kernel_cases.h"

namespace moe {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kBad[] = {kInfinity, -kInfinity, kNan};
constexpr WeightType kQuantized[] = {WeightType::kInt8, WeightType::kInt4};
constexpr WeightType kSources[] = {WeightType::kF32, WeightType::kBf16, WeightType::kF16};

/// Sizes on both sides of registers and groups.
const Counts& Sizes() {
  static const Counts sizes = [] {
    Counts all;
    for (std::size_t size = 1; size <= 130; ++size) all.push_back(size);
    all.insert(all.end(), {255, 256, 257, 1000});
    return all;
  }();
  return sizes;
}

std::vector<float> Scaled(std::vector<float> values, float factor) {
  for (float& value : values) value *= factor;
  return values;
}

/// A row of activations in integers, with room behind that nobody may write to.
struct Activations {
  std::vector<std::int8_t> values;
  std::vector<float> scales;
  std::vector<std::int32_t> offsets;

  bool operator==(const Activations& other) const {
    return values == other.values && SameBits(scales, other.scales) && offsets == other.offsets;
  }
};

constexpr std::size_t kBehind = 3;
constexpr std::int8_t kUntouched = 77;

Activations QuantizeRow(const Kernels& kernels, std::span<const float> x, WeightType type) {
  const std::size_t groups = GroupsOf(x.size(), type);
  Activations out{.values = std::vector<std::int8_t>(groups * GroupSize(type) + kBehind, kUntouched),
                  .scales = std::vector<float>(groups + kBehind, kUntouched),
                  .offsets = std::vector<std::int32_t>(groups + kBehind, kUntouched)};
  kernels.QuantizeRow(x, GroupSize(type),
                      {.values = std::span(out.values).first(groups * GroupSize(type)),
                       .scales = out.scales.data(),
                       .offsets = out.offsets.data()});
  return out;
}

/// The weights of one output, stored as `source` at any address, and what they become.
struct Weights {
  std::vector<std::uint8_t> values;
  std::vector<std::uint16_t> scales;

  bool operator==(const Weights&) const = default;
};

class Stored {
 public:
  Stored(std::span<const float> values, WeightType source, std::size_t misalignment = 0)
      : bytes_(misalignment + values.size() * BytesPerWeight(source)),
        view_{.type = source, .data = bytes_.data() + misalignment, .rows = 1, .cols = values.size()} {
    StoreRow(values, source, std::span(bytes_).subspan(misalignment));
  }
  const WeightView& view() const { return view_; }
  /// The values of a group, after their rounding to the stored type.
  std::vector<float> Group(std::size_t group, WeightType type) const {
    std::vector<float> values;
    for (std::size_t i = group * GroupSize(type); i < std::min((group + 1) * GroupSize(type), view_.cols); ++i)
      values.push_back(view_.at(0, i));
    return values;
  }

 private:
  std::vector<std::byte> bytes_;
  WeightView view_;
};

Weights QuantizeWeights(const Kernels& kernels, const WeightView& row, WeightType type) {
  const std::size_t groups = GroupsOf(row.cols, type);
  Weights out{.values = std::vector<std::uint8_t>(groups * GroupSize(type) + kBehind, kUntouched),
              .scales = std::vector<std::uint16_t>(groups + kBehind, kUntouched)};
  kernels.QuantizeWeights(row, type, std::span(out.values).first(groups * GroupSize(type)),
                          std::span(out.scales).first(groups));
  return out;
}

/// What the integers of a group must be once its scale is chosen: value times the scale's fp32 reciprocal, to nearest.
std::vector<int> IntegersFor(std::span<const float> values, float scale, int lowest, int highest) {
  const float inverse = 1 / scale;
  std::vector<int> integers;
  for (const float value : values)
    integers.push_back(
        static_cast<int>(std::clamp<double>(std::nearbyint(static_cast<double>(value) * inverse), lowest, highest)));
  return integers;
}

double Int4Error(std::span<const float> values, std::uint16_t scale_bits) {
  const float scale = Bf16ToF32(scale_bits);
  const std::vector<int> integers = IntegersFor(values, scale, -8, 7);
  double error = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double left = values[i] - static_cast<double>(scale) * integers[i];
    error += left * left;
  }
  return error;
}

/// The scales that kernels/quantize.h lets int4 choose from.
std::vector<std::uint16_t> Int4Candidates(std::span<const float> values) {
  float extreme = 0;
  for (const float value : values)
    if (std::abs(value) > std::abs(extreme) || value == std::abs(extreme)) extreme = value;
  std::vector<std::uint16_t> candidates = {F32ToBf16(extreme / -8)};
  for (const float factor : {0.8f, 0.85f, 0.9f, 0.95f, 1.05f, 1.1f, 1.15f})
    candidates.push_back(F32ToBf16(extreme / -8 * factor));
  return candidates;
}

using Quantize = EachSimdKernels;

// Activations.

TEST_P(Quantize, ActivationsAreTheReferencesByteForByte) {
  for (const WeightType type : kQuantized) {
    for (const std::size_t size : Sizes()) {
      for (const float factor : {1e-25f, 1.0f, 1e30f}) {
        // One past the start, so that rows lie at odd addresses as far as floats can.
        const std::vector<float> all = Scaled(RandomValues(size + 1, static_cast<std::uint32_t>(size)), factor);
        const std::span<const float> x = std::span(all).subspan(1);
        const Activations got = QuantizeRow(kernels(), x, type);
        ASSERT_EQ(got, QuantizeRow(ReferenceKernels(), x, type)) << Name(type) << " " << size << " x " << factor;
      }
    }
  }
}

TEST_P(Quantize, ActivationsAreWithinHalfAStepAndTheirSumsAreRight) {
  for (const WeightType type : kQuantized) {
    const std::size_t group = GroupSize(type);
    for (const std::size_t size : Sizes()) {
      const std::vector<float> x = RandomValues(size, static_cast<std::uint32_t>(size) + 500);
      const Activations got = QuantizeRow(kernels(), x, type);
      for (std::size_t g = 0; g < GroupsOf(size, type); ++g) {
        float magnitude = 0;
        int sum = 0;
        for (std::size_t i = g * group; i < (g + 1) * group; ++i) {
          sum += got.values[i];
          if (i >= size) {
            ASSERT_EQ(got.values[i], 0) << "past the row's end";
            continue;
          }
          magnitude = std::max(magnitude, std::abs(x[i]));
          // 127 steps and the reciprocal round twice.
          ASSERT_NEAR(x[i], static_cast<double>(got.scales[g]) * got.values[i],
                      got.scales[g] * (0.5 + 127 * 3 * kRoundoff));
        }
        ASSERT_EQ(got.scales[g], magnitude / 127);
        ASSERT_EQ(got.offsets[g], -ZeroPoint(type) * sum);
      }
      ASSERT_EQ(got.values.back(), kUntouched);
      ASSERT_EQ(got.offsets[GroupsOf(size, type)], kUntouched);
    }
  }
}

TEST_P(Quantize, ActivationsRoundTiesToEven) {
  const std::vector<float> x = {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 125.5f, 126.5f, -126.5f, -127};
  const std::vector<std::int8_t> expected = {127, 0, 2, 2, 0, -2, 126, 126, -126, -127};
  for (const WeightType type : kQuantized) {
    const Activations got = QuantizeRow(kernels(), x, type);
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), got.values.begin())) << Name(type);
    EXPECT_EQ(got.scales[0], 1);
  }
}

TEST_P(Quantize, ActivationsBelowTheSmallestMagnitudeAreZero) {
  const float denormal = std::numeric_limits<float>::denorm_min();
  for (const WeightType type : kQuantized) {
    const std::size_t group = GroupSize(type);
    for (const float value : {0.0f, -0.0f, denormal, -denormal, 1e-40f, -0x1.fffffep-101f}) {
      std::vector<float> x(3 * group, 1.0f);
      std::fill_n(x.begin() + static_cast<std::ptrdiff_t>(group), group, value);
      const Activations got = QuantizeRow(kernels(), x, type);
      EXPECT_EQ(std::bit_cast<std::uint32_t>(got.scales[1]), 0u) << value;
      EXPECT_EQ(got.offsets[1], 0);
      for (std::size_t i = 0; i < group; ++i) {
        EXPECT_EQ(got.values[group + i], 0);
        EXPECT_EQ(got.values[i], 127) << "a neighbour";
        EXPECT_EQ(got.values[2 * group + i], 127) << "a neighbour";
      }
    }
    // The smallest that counts, beside a denormal, and the largest that there is.
    EXPECT_EQ(QuantizeRow(kernels(), std::vector<float>{-0x1p-100f, denormal}, type).values[0], -127);
    const float largest = std::numeric_limits<float>::max();
    const Activations got = QuantizeRow(kernels(), std::vector<float>{largest, -largest, largest / 2}, type);
    EXPECT_EQ(got.values[0], 127);
    EXPECT_EQ(got.values[1], -127);
    EXPECT_EQ(got.values[2], 64);
    EXPECT_TRUE(std::isfinite(got.scales[0]));
  }
}

TEST_P(Quantize, AnActivationThatIsNotFiniteSpoilsItsGroupOnly) {
  for (const WeightType type : kQuantized) {
    const std::size_t group = GroupSize(type);
    const std::vector<float> whole = RandomValues(2 * group + 5, 9);
    const Activations clean = QuantizeRow(kernels(), whole, type);
    for (const float bad : kBad) {
      for (std::size_t at = 0; at < whole.size(); ++at) {
        std::vector<float> x = whole;
        x[at] = bad;
        const Activations got = QuantizeRow(kernels(), x, type);
        for (std::size_t g = 0; g < 3; ++g) {
          if (g == at / group) {
            ASSERT_TRUE(std::isnan(got.scales[g])) << bad << " at " << at;
            // The kernel multiplies them by NaN in any case; what they are must not depend on the instruction set.
            ASSERT_EQ(got.offsets[g], 0);
            ASSERT_EQ(got.values[at], 0);
          } else {
            ASSERT_EQ(got.scales[g], clean.scales[g]) << bad << " at " << at;
            ASSERT_EQ(got.offsets[g], clean.offsets[g]);
          }
        }
      }
    }
  }
}

// Weights.

TEST_P(Quantize, Int8WeightsAreTheReferencesByteForByte) {
  for (const WeightType source : kSources) {
    for (const std::size_t size : Sizes()) {
      for (const std::size_t misalignment : Counts{0, 1, 3}) {
        const Stored row(RandomValues(size, static_cast<std::uint32_t>(size) + 1), source, misalignment);
        ASSERT_EQ(QuantizeWeights(kernels(), row.view(), WeightType::kInt8),
                  QuantizeWeights(ReferenceKernels(), row.view(), WeightType::kInt8))
            << Name(source) << " " << size << " + " << misalignment;
      }
    }
  }
}

TEST_P(Quantize, Int4ChoosesTheScaleOfLeastErrorAmongTheCandidates) {
  std::size_t not_first = 0;
  for (const WeightType source : kSources) {
    for (const std::size_t size : Sizes()) {
      for (const std::size_t misalignment : Counts{0, 1}) {
        const Stored row(RandomValues(size, static_cast<std::uint32_t>(size) + 2), source, misalignment);
        const Weights got = QuantizeWeights(kernels(), row.view(), WeightType::kInt4);
        const Weights reference = QuantizeWeights(ReferenceKernels(), row.view(), WeightType::kInt4);
        for (std::size_t g = 0; g < GroupsOf(size, WeightType::kInt4); ++g) {
          const std::vector<float> values = row.Group(g, WeightType::kInt4);
          const std::vector<std::uint16_t> candidates = Int4Candidates(values);
          ASSERT_NE(std::ranges::find(candidates, got.scales[g]), candidates.end());
          double least = Int4Error(values, reference.scales[g]);
          for (const std::uint16_t bits : candidates) least = std::min(least, Int4Error(values, bits));
          // Both of the errors that the kernel compared: a difference and a square round, then six sums of a lane sum.
          ASSERT_LE(Int4Error(values, got.scales[g]), least * (1 + 2 * 12 * kRoundoff))
              << Name(source) << " " << size << ", group " << g;
          if (got.scales[g] != candidates.front()) ++not_first;
        }
      }
    }
  }
  EXPECT_GT(not_first, 0u) << "no candidate but the first was ever better";
}

TEST_P(Quantize, IntegersFollowFromTheScale) {
  for (const WeightType type : kQuantized) {
    const int highest = type == WeightType::kInt8 ? 127 : 7;
    const int lowest = type == WeightType::kInt8 ? -127 : -8;
    for (const std::size_t size : Sizes()) {
      const Stored row(RandomValues(size, static_cast<std::uint32_t>(size) + 3), WeightType::kF32, 1);
      const Weights got = QuantizeWeights(kernels(), row.view(), type);
      for (std::size_t g = 0; g < GroupsOf(size, type); ++g) {
        const std::vector<float> values = row.Group(g, type);
        std::vector<int> expected = IntegersFor(values, Bf16ToF32(got.scales[g]), lowest, highest);
        expected.resize(GroupSize(type), 0);  // past the row's end
        for (std::size_t i = 0; i < expected.size(); ++i)
          ASSERT_EQ(got.values[g * GroupSize(type) + i], expected[i] + (type == WeightType::kInt8 ? 128 : 8))
              << Name(type) << " " << size << ", group " << g << ", value " << i;
      }
      ASSERT_EQ(got.values.back(), kUntouched);
      ASSERT_EQ(got.scales.back(), kUntouched);
    }
  }
}

TEST_P(Quantize, Int4CentresTheValueOfLargestMagnitude) {
  // All values are multiples of the first candidate, -a / 8: no other leaves nothing.
  for (const float largest : {4.0f, -4.0f}) {
    std::vector<float> values(32);
    for (std::size_t i = 0; i < 32; ++i) values[i] = largest * (static_cast<float>(i % 16) - 7) / 8;
    const Weights got = QuantizeWeights(kernels(), Stored(values, WeightType::kF32).view(), WeightType::kInt4);
    EXPECT_EQ(Bf16ToF32(got.scales[0]), largest / -8);
    for (std::size_t i = 0; i < 32; ++i) EXPECT_EQ(got.values[i], 8 - (static_cast<int>(i % 16) - 7));
  }
}

TEST_P(Quantize, WeightsBelowTheSmallestMagnitudeAreZero) {
  for (const WeightType type : kQuantized) {
    const std::size_t group = GroupSize(type);
    for (const float value : {0.0f, -0.0f, 1e-40f, -0x1.fffffep-101f}) {
      std::vector<float> values(3 * group, 1.0f);
      std::fill_n(values.begin() + static_cast<std::ptrdiff_t>(group), group, value);
      const Weights got = QuantizeWeights(kernels(), Stored(values, WeightType::kF32).view(), type);
      EXPECT_EQ(got.scales[1], 0) << value;
      for (std::size_t i = 0; i < group; ++i) EXPECT_EQ(got.values[group + i], ZeroPoint(type));
      EXPECT_NE(got.scales[0], 0);
      EXPECT_NE(got.scales[2], 0);
    }
    const float largest = std::numeric_limits<float>::max();
    const Weights got =
        QuantizeWeights(kernels(), Stored(std::vector<float>{largest, 0}, WeightType::kF32).view(), type);
    EXPECT_TRUE(std::isfinite(Bf16ToF32(got.scales[0])));
    EXPECT_EQ(got.values[0], type == WeightType::kInt8 ? 255 : 0);
  }
}

TEST_P(Quantize, AWeightThatIsNotFiniteSpoilsItsGroupOnly) {
  for (const WeightType type : kQuantized) {
    const std::size_t group = GroupSize(type);
    const std::vector<float> whole = RandomValues(2 * group + 5, 10);
    for (const WeightType source : kSources) {
      const Weights clean = QuantizeWeights(kernels(), Stored(whole, source).view(), type);
      for (const float bad : kBad) {
        for (std::size_t at = 0; at < whole.size(); at += 3) {
          std::vector<float> values = whole;
          values[at] = bad;
          const Weights got = QuantizeWeights(kernels(), Stored(values, source).view(), type);
          for (std::size_t g = 0; g < 3; ++g) {
            if (g == at / group) {
              ASSERT_TRUE(std::isnan(Bf16ToF32(got.scales[g]))) << Name(source) << " " << bad << " at " << at;
            } else {
              ASSERT_EQ(got.scales[g], clean.scales[g]) << Name(source) << " " << bad << " at " << at;
            }
          }
        }
      }
    }
  }
}

TEST_P(Quantize, HasTheBitsOfTheOtherInstructionSets) {
  for (const WeightType type : kQuantized) {
    for (const float factor : {1e-38f, 1e-25f, 1.0f, 1e25f, 1e38f, kInfinity}) {
      for (const std::size_t size : Sizes()) {
        const std::vector<float> x = Scaled(RandomValues(size, static_cast<std::uint32_t>(size) + 4), factor);
        ASSERT_EQ(QuantizeRow(kernels(), x, type), QuantizeRow(SimdKernels(), x, type)) << size << " x " << factor;
        const Stored row(x, WeightType::kF32);
        ASSERT_EQ(QuantizeWeights(kernels(), row.view(), type), QuantizeWeights(SimdKernels(), row.view(), type))
            << Name(type) << " " << size << " x " << factor;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Simd, Quantize, EachAvailable(), NameOf);

// Room for rows.

TEST(QuantizedRows, HoldRowsOfEitherType) {
  QuantizedRows rows(5, 130);
  for (const WeightType type : kQuantized) {
    for (const std::size_t cols : Counts{1, 64, 65, 130}) {
      rows.Shape(5, cols, type);
      const QuantizedView& view = rows.view();
      EXPECT_EQ(view.groups, GroupsOf(cols, type));
      EXPECT_EQ(view.group, GroupSize(type));
      const QuantizedGroups last = rows.Groups(4, 0, cols);
      EXPECT_EQ(last.values.data(), view.values + 4 * view.groups * view.group);
      EXPECT_EQ(last.values.size(), view.groups * view.group);
      EXPECT_EQ(view.Rows(4, 1).values, last.values.data());
      EXPECT_EQ(view.Rows(4, 1).scales, last.scales);
      EXPECT_EQ(view.Rows(4, 1).offsets, last.offsets);
      EXPECT_EQ(last.stride, 5u);
      if (cols <= 64) continue;
      const QuantizedGroups tail = rows.Groups(2, 64, cols - 64);
      EXPECT_EQ(tail.values.data(), rows.Groups(2, 0, cols).values.data() + 64);
      EXPECT_EQ(tail.values.size(), GroupsOf(cols - 64, type) * GroupSize(type));
      EXPECT_EQ(tail.scales, view.scales + 64 / view.group * 5 + 2);
    }
  }
}

TEST(QuantizedRowsDeathTest, RefuseMoreThanTheyHaveRoomFor) {
  QuantizedRows rows(2, 64);
  EXPECT_DEATH(rows.Shape(3, 64, WeightType::kInt8), "broken invariant");
  EXPECT_DEATH(rows.Shape(2, 65, WeightType::kInt4), "broken invariant");
  rows.Shape(2, 64, WeightType::kInt8);
  EXPECT_DEATH(rows.Groups(0, 32, 32), "broken invariant") << "the middle of a group";
}

}  // namespace
}  // namespace moe
