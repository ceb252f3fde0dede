#include "kernels/weight_type.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <utility>

namespace moe {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A 16-bit format by its definition, decoded and rounded without bit tricks.
struct Format {
  int exponent_bits;
  int fraction_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }

  double Decode(std::uint16_t bits) const {
    const int fraction = bits & ((1 << fraction_bits) - 1);
    const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
    const double sign = (bits & 0x8000) != 0 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1) {
      return fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
    }
    if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias() - fraction_bits);
    return sign * std::ldexp(fraction + (1 << fraction_bits), exponent - bias() - fraction_bits);
  }

  /// The nearest value of the format, ties to even; infinity beyond half a step past the largest.
  double Round(double value) const {
    if (value == 0 || std::isinf(value)) return value;
    int exponent = 0;
    std::frexp(value, &exponent);  // 0.5 <= |value| / 2^exponent < 1
    const int step = std::max(exponent - 1, 1 - bias()) - fraction_bits;
    const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, -step)), step);  // mode: to nearest even
    const double limit = std::ldexp(1.0, bias() + 1);
    if (std::abs(rounded) >= limit) return std::copysign(std::numeric_limits<double>::infinity(), value);
    return rounded;
  }
};

constexpr Format kBf16{8, 7};
constexpr Format kF16{5, 10};

using Widen = float (*)(std::uint16_t);
using Narrow = std::uint16_t (*)(float);

void ExpectWideningExactAndReversible(const Format& format, Widen widen, Narrow narrow) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto stored = static_cast<std::uint16_t>(bits);
    const float widened = widen(stored);
    const double expected = format.Decode(stored);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(widened)) << bits;
      ASSERT_TRUE(std::isnan(widen(narrow(widened)))) << bits;
      continue;
    }
    ASSERT_EQ(widened, static_cast<float>(expected)) << bits;
    ASSERT_EQ(std::signbit(widened), (bits & 0x8000) != 0) << bits;
    ASSERT_EQ(narrow(widened), stored) << bits;
  }
}

void ExpectRounded(const Format& format, Widen widen, Narrow narrow, float value) {
  const double expected = format.Round(value);
  const float got = widen(narrow(value));
  ASSERT_EQ(got, static_cast<float>(expected)) << std::hexfloat << value;
  ASSERT_EQ(std::signbit(got), std::signbit(value)) << std::hexfloat << value;
}

/// Around every value of the format: itself, the middle to the next one (a tie) and the floats beside that middle.
void ExpectTiesToEven(const Format& format, Widen widen, Narrow narrow) {
  for (std::uint32_t bits = 0; bits < 0x7fff; ++bits) {
    const double low = format.Decode(static_cast<std::uint16_t>(bits));
    const double high = format.Decode(static_cast<std::uint16_t>(bits + 1));
    if (!std::isfinite(low) || !std::isfinite(high)) continue;
    const auto middle = static_cast<float>((low + high) / 2);
    if (middle == 0) continue;  // below the smallest fp32
    for (const float value : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, kInfinity)}) {
      ExpectRounded(format, widen, narrow, value);
      ExpectRounded(format, widen, narrow, -value);
    }
  }
}

void ExpectRandomRounded(const Format& format, Widen widen, Narrow narrow) {
  std::mt19937 random(7);
  for (int i = 0; i < 1'000'000; ++i) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (!std::isnan(value)) ExpectRounded(format, widen, narrow, value);
  }
}

TEST(WeightType, NamesRoundTrip) {
  for (const WeightType type :
       {WeightType::kF32, WeightType::kBf16, WeightType::kF16, WeightType::kInt8, WeightType::kInt4}) {
    EXPECT_EQ(ParseWeightType(Name(type)), type);
  }
  EXPECT_EQ(Name(WeightType::kBf16), "bf16");
  EXPECT_EQ(ParseWeightType("int9"), std::nullopt);
}

TEST(WeightType, Bf16WidensExactlyAndComesBack) { ExpectWideningExactAndReversible(kBf16, Bf16ToF32, F32ToBf16); }
TEST(WeightType, F16WidensExactlyAndComesBack) { ExpectWideningExactAndReversible(kF16, F16ToF32, F32ToF16); }
TEST(WeightType, Bf16RoundsTiesToEven) { ExpectTiesToEven(kBf16, Bf16ToF32, F32ToBf16); }
TEST(WeightType, F16RoundsTiesToEven) { ExpectTiesToEven(kF16, F16ToF32, F32ToF16); }
TEST(WeightType, Bf16RoundsAnyValueToTheNearest) { ExpectRandomRounded(kBf16, Bf16ToF32, F32ToBf16); }
TEST(WeightType, F16RoundsAnyValueToTheNearest) { ExpectRandomRounded(kF16, F16ToF32, F32ToF16); }

TEST(WeightType, NarrowingKeepsWhatIsNotFinite) {
  for (const auto& [widen, narrow] : {std::pair{&Bf16ToF32, &F32ToBf16}, std::pair{&F16ToF32, &F32ToF16}}) {
    EXPECT_EQ(widen(narrow(kInfinity)), kInfinity);
    EXPECT_EQ(widen(narrow(-kInfinity)), -kInfinity);
    // A NaN with the lowest payload bit alone, which falls off the end of the narrow fraction.
    for (const std::uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu}) {
      EXPECT_TRUE(std::isnan(widen(narrow(std::bit_cast<float>(bits))))) << bits;
    }
  }
}

TEST(WeightType, F16OverflowsFromHalfAStepPastTheLargest) {
  EXPECT_EQ(F16ToF32(F32ToF16(std::nextafter(65520.0f, 0.0f))), 65504.0f);
  EXPECT_EQ(F16ToF32(F32ToF16(65520.0f)), kInfinity);
  EXPECT_EQ(F32ToF16(0x1p-25f), 0);  // a tie between 0 and the smallest subnormal
  EXPECT_EQ(F32ToF16(std::nextafter(0x1p-25f, 1.0f)), 1);
}

}  // namespace
}  // namespace moe
