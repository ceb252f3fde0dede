#include "kernels/exp.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/kernels/kernel_cases.h"

namespace moe {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Every `step`-th fp32 from `low` to `high`, both of one sign.
template <typename Visit>
void Sweep(float low, float high, std::uint32_t step, Visit visit) {
  std::uint32_t from = std::bit_cast<std::uint32_t>(low);
  std::uint32_t to = std::bit_cast<std::uint32_t>(high);
  if (from > to) std::swap(from, to);
  for (std::uint32_t bits = from; bits < to; bits += step) visit(std::bit_cast<float>(bits));
}

TEST(Exp, IsWithinAnUlp) {
  double worst = 0;
  const auto check = [&](float x) {
    const double expected = std::exp(static_cast<double>(x));
    const double ulp = std::ldexp(1.0, std::ilogb(expected) - 23);
    worst = std::max(worst, std::abs(Exp(x) - expected) / ulp);
  };
  // One value in 101: ten million. Smaller |x| than 2^-30 give 1, as they should.
  Sweep(0x1p-30f, 88.72f, 101, check);
  Sweep(-0x1p-30f, -86.6f, 101, check);
  EXPECT_LT(worst, 1.01);  // 1.0086 over all values
  // So the relative error is below 1.01 * 2^-23, at the lower end of a binade.
  EXPECT_LT(1.01 * 0x1p-23, kExpRoundings * kRoundoff);
}

TEST(Exp, IsExactAtZero) {
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(-0.0f), 1.0f);
  EXPECT_EQ(Exp(0x1p-40f), 1.0f);
}

TEST(Exp, EndsInZeroAndInfinityWithoutDenormals) {
  EXPECT_TRUE(std::isnormal(Exp(-86.625f)));
  EXPECT_EQ(Exp(std::nextafter(-86.625f, -kInfinity)), 0.0f);
  EXPECT_EQ(Exp(-1e30f), 0.0f);
  EXPECT_EQ(Exp(-kInfinity), 0.0f);
  EXPECT_TRUE(std::isfinite(Exp(88.72283f)));
  EXPECT_EQ(Exp(88.72284f), kInfinity);
  EXPECT_EQ(Exp(89.5f), kInfinity);
  EXPECT_EQ(Exp(1e30f), kInfinity);
  EXPECT_EQ(Exp(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(Exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Log, IsWithinItsSeriesAndEndsRight) {
  double worst = 0;
  Sweep(std::numeric_limits<float>::min(), std::numeric_limits<float>::max(), 1009,
        [&](float x) { worst = std::max(worst, std::abs(Log(x) - std::log(static_cast<double>(x)))); });
  EXPECT_LT(worst, 1e-12);  // 5e-13 of the series, 1.4e-14 an ulp of the largest result
  EXPECT_EQ(Log(1.0f), 0.0);
  EXPECT_EQ(Log(0.0f), -static_cast<double>(kInfinity));
  EXPECT_EQ(Log(kInfinity), static_cast<double>(kInfinity));
  EXPECT_TRUE(std::isnan(Log(std::numeric_limits<float>::quiet_NaN())));
}

using ExpOfKernels = EachSimdKernels;

TEST_P(ExpOfKernels, HasTheBitsOfTheScalarForm) {
  // silu(z) * 1 = z / (1 + exp(-z)) shows the vector's exp; division and addition are the same everywhere.
  std::vector<float> z;
  const std::uint32_t step = kernels().name() == "portable" ? 40009 : 1009;
  Sweep(0x1p-20f, 120.0f, step, [&](float x) {
    z.push_back(x);
    z.push_back(-x);
  });
  for (const float special : {0.0f, -0.0f, kInfinity, 1e30f, -1e30f, 86.625f, 86.7f, -88.8f, -89.2f})
    z.push_back(special);
  std::vector<float> expected;
  for (const float value : z) expected.push_back(value / (1.0f + Exp(-value)));
  kernels().SiluMul(z, std::vector<float>(z.size(), 1.0f));
  EXPECT_TRUE(SameBits(z, expected));
}

INSTANTIATE_TEST_SUITE_P(Simd, ExpOfKernels, EachAvailable(), NameOf);

}  // namespace
}  // namespace moe
