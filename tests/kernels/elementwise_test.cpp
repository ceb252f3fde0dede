// Two checks for each kernel: the bits are those of the arithmetic that kernels.h promises, written out value by value
// (and so the same on every instruction set); and that arithmetic is within its rounding of the reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/exp.h"
#include "kernels/kernels.h"
#include "tests/kernels/kernel_cases.h"

namespace moe {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kTiny = std::numeric_limits<float>::min();  // what exp gives up near 0

std::vector<std::size_t> Sizes() {
  std::vector<std::size_t> sizes;
  for (std::size_t size = 1; size <= 50; ++size) sizes.push_back(size);
  for (const std::size_t size : Counts{96, 100, 1000, 4097}) sizes.push_back(size);
  return sizes;
}

/// Values of deviation 8: exponents of softmax and silu from about -40 to 40.
std::vector<float> WideValues(std::size_t size, std::uint32_t seed) {
  std::vector<float> values = RandomValues(size, seed);
  for (float& value : values) value *= 8;
  return values;
}

using Elementwise = EachSimdKernels;

TEST_P(Elementwise, RmsNorm) {
  constexpr float kEps = 1e-5f;
  for (const std::size_t size : Sizes()) {
    const std::vector<float> x = WideValues(size, 1);
    const std::vector<float> weight = RandomValues(size, 2);
    std::vector<float> got(size), reference(size), exact(size);
    kernels().RmsNorm(x, weight, kEps, got);
    ReferenceKernels().RmsNorm(x, weight, kEps, reference);

    float partial[16] = {};
    for (std::size_t i = 0; i < size; ++i) partial[i % 16] = std::fma(x[i], x[i], partial[i % 16]);
    const float mean = LaneSum(partial) / static_cast<float>(size);
    const float inverse = 1.0f / std::sqrt(mean + kEps);
    for (std::size_t i = 0; i < size; ++i) {
      exact[i] = weight[i] * (x[i] * inverse);
      // The sum of squares: size / 16 + 4 roundings; mean and eps two more; the root halves them. Then root, inverse,
      // two products and the rounding of the reference.
      const double roundings = (static_cast<double>(size) / 16 + 6) / 2 + 5;
      ASSERT_NEAR(got[i], reference[i], roundings * kRoundoff * std::abs(reference[i]) * 1.001) << size;
    }
    ASSERT_TRUE(SameBits(got, exact)) << size;

    std::vector<float> in_place = x;
    kernels().RmsNorm(in_place, weight, kEps, in_place);
    ASSERT_TRUE(SameBits(in_place, exact)) << size;
  }
}

TEST_P(Elementwise, RmsNormWithoutAWeightHasWeightsOfOne) {
  for (const std::size_t size : Sizes()) {
    const std::vector<float> x = WideValues(size, 14);
    for (const Kernels* each : {&kernels(), &ReferenceKernels()}) {
      std::vector<float> ones(size), none(size);
      each->RmsNorm(x, std::vector<float>(size, 1.0f), 1e-5f, ones);
      each->RmsNorm(x, {}, 1e-5f, none);
      ASSERT_TRUE(SameBits(none, ones)) << size;
    }
  }
}

TEST_P(Elementwise, RmsNormOfZerosIsZero) {
  std::vector<float> x(40, 0.0f);
  kernels().RmsNorm(x, std::vector<float>(40, 3.0f), 1e-6f, x);
  EXPECT_TRUE(SameBits(x, std::vector<float>(40, 0.0f)));
}

TEST_P(Elementwise, Rope) {
  constexpr std::size_t kHeads = 3;
  for (const RopePairing pairing : {RopePairing::kHalfSplit, RopePairing::kInterleaved}) {
    for (const std::size_t half : Counts{0, 1, 5, 8, 12, 16, 17, 32, 35, 64}) {
      for (const std::size_t rest : Counts{0, 7}) {  // elements that pass, and a gap to the next head
        const std::size_t width = 2 * half + rest;
        const std::size_t stride = width + 3;
        const std::vector<float> start = RandomValues(kHeads * stride, 5);
        std::vector<float> cos = RandomValues(half, 6), sin = RandomValues(half, 7);
        std::vector<float> got = start, reference = start, exact = start;
        kernels().Rope({got.data(), kHeads, width, stride}, cos, sin, pairing);
        ReferenceKernels().Rope({reference.data(), kHeads, width, stride}, cos, sin, pairing);
        for (std::size_t head = 0; head < kHeads; ++head) {
          for (std::size_t i = 0; i < half; ++i) {
            const std::size_t first = head * stride + (pairing == RopePairing::kHalfSplit ? i : 2 * i);
            const std::size_t second = pairing == RopePairing::kHalfSplit ? first + half : first + 1;
            const float a = start[first], b = start[second];
            exact[first] = std::fma(a, cos[i], -(b * sin[i]));
            exact[second] = std::fma(b, cos[i], a * sin[i]);
            // One product rounded, then the sum, then the sum of the reference.
            const double tolerance =
                3 * kRoundoff * (std::abs(a) + std::abs(b)) * (std::abs(cos[i]) + std::abs(sin[i]));
            ASSERT_NEAR(got[first], reference[first], tolerance);
            ASSERT_NEAR(got[second], reference[second], tolerance);
          }
        }
        ASSERT_TRUE(SameBits(got, exact)) << "half " << half << " rest " << rest;
      }
    }
  }
}

TEST_P(Elementwise, SiluMul) {
  for (const std::size_t size : Sizes()) {
    const std::vector<float> gate = WideValues(size, 8);
    const std::vector<float> up = RandomValues(size, 9);
    std::vector<float> got = gate, reference = gate, exact = gate;
    kernels().SiluMul(got, up);
    ReferenceKernels().SiluMul(reference, up);
    for (std::size_t i = 0; i < size; ++i) {
      exact[i] = gate[i] / (1.0f + Exp(-gate[i])) * up[i];
      // exp; then addition, division, product and the reference, one rounding each.
      ASSERT_NEAR(got[i], reference[i], (kExpRoundings + 4) * kRoundoff * std::abs(reference[i]) * 1.001 + kTiny)
          << gate[i];
    }
    ASSERT_TRUE(SameBits(got, exact)) << size;
  }
}

TEST_P(Elementwise, SiluOfLargeValues) {
  std::vector<float> gate = {1000.0f, -1000.0f, 88.8f, -88.8f};
  kernels().SiluMul(gate, std::vector<float>(gate.size(), 1.0f));
  EXPECT_EQ(gate, (std::vector<float>{1000.0f, 0.0f, 88.8f, 0.0f}));
}

TEST_P(Elementwise, ClampedSwiGlu) {
  for (const float limit : {7.0f, 0.5f, kInfinity}) {
    for (const std::size_t size : Sizes()) {
      const std::vector<float> gate = WideValues(size, 15);
      const std::vector<float> up = WideValues(size, 16);
      std::vector<float> got = gate, reference = gate, exact = gate;
      kernels().ClampedSwiGlu(got, up, limit);
      ReferenceKernels().ClampedSwiGlu(reference, up, limit);
      for (std::size_t i = 0; i < size; ++i) {
        const float z = std::min(gate[i], limit);
        const float other = std::clamp(up[i], -limit, limit);
        const float swish = z / (1.0f + Exp(-1.702f * z));
        exact[i] = std::fma(other, swish, swish);
        // 1.702 and its product with z, an exponent's error each; exp; addition and division. All that is multiplied by
        // other + 1, which may cancel; then the sum and the reference.
        const double factor = (2 * 1.702 * std::abs(z) + kExpRoundings + 2) * kRoundoff * 1.001;
        const double magnitude = (std::abs(other) + 1.0) * std::abs(swish);
        const double tolerance = factor * magnitude + 2.002 * kRoundoff * std::abs(reference[i]);
        ASSERT_NEAR(got[i], reference[i], tolerance + kTiny * (std::abs(other) + 1.0)) << gate[i] << " " << up[i];
      }
      ASSERT_TRUE(SameBits(got, exact)) << size;
    }
  }
}

TEST_P(Elementwise, ClampedSwiGluOfLargeValues) {
  std::vector<float> gate = {1000.0f, 1000.0f, -1000.0f, 1000.0f};
  kernels().ClampedSwiGlu(gate, std::vector<float>{1000.0f, -1000.0f, 1000.0f, -1.0f}, 7.0f);
  const float swish = 7.0f / (1.0f + Exp(-1.702f * 7.0f));
  EXPECT_EQ(gate, (std::vector<float>{std::fma(7.0f, swish, swish), std::fma(-7.0f, swish, swish), 0.0f, 0.0f}));
}

TEST_P(Elementwise, SigmoidOfAnyValue) {
  for (const std::size_t size : Sizes()) {
    const std::vector<float> x = WideValues(size, 17);
    std::vector<float> got = x, reference = x, exact = x;
    kernels().Sigmoid(got);
    ReferenceKernels().Sigmoid(reference);
    for (std::size_t i = 0; i < size; ++i) {
      exact[i] = 1.0f / (1.0f + Exp(-x[i]));
      // exp; then addition, division and the reference, one rounding each.
      ASSERT_NEAR(got[i], reference[i], (kExpRoundings + 3) * kRoundoff * reference[i] * 1.001 + kTiny) << x[i];
    }
    ASSERT_TRUE(SameBits(got, exact)) << size;
  }
  std::vector<float> ends = {0.0f, 1000.0f, -1000.0f, kInfinity, -kInfinity};
  kernels().Sigmoid(ends);
  EXPECT_EQ(ends, (std::vector<float>{0.5f, 1.0f, 0.0f, 1.0f, 0.0f}));
}

/// Wide values with NaN, infinities and the edges of ±limit among them, at every lane for some size.
std::vector<float> ValuesWithEnds(std::size_t size, float limit) {
  std::vector<float> values = WideValues(size, 18);
  const std::vector<float> ends = {std::numeric_limits<float>::quiet_NaN(), limit, kInfinity, -limit, -kInfinity};
  for (std::size_t i = 0; i < size; i += 3) values[size - 1 - i] = ends[i / 3 % ends.size()];
  return values;
}

TEST_P(Elementwise, ReluAndClampKeepNan) {
  constexpr float kLimit = 7.0f;
  for (const std::size_t size : Sizes()) {
    for (const Kernels* each : {&kernels(), &ReferenceKernels()}) {
      const std::vector<float> x = ValuesWithEnds(size + 1, kLimit);
      std::vector<float> positive = x, clamped = x, exact_positive = x, exact_clamped = x;
      each->Relu(std::span(positive).first(size));  // the one more must not change
      each->Clamp(kLimit, std::span(clamped).first(size));
      for (std::size_t i = 0; i < size; ++i) {
        if (x[i] < 0) exact_positive[i] = 0;
        if (x[i] > kLimit) exact_clamped[i] = kLimit;
        if (x[i] < -kLimit) exact_clamped[i] = -kLimit;
      }
      ASSERT_TRUE(SameBits(positive, exact_positive)) << each->name() << " " << size;
      ASSERT_TRUE(SameBits(clamped, exact_clamped)) << each->name() << " " << size;
    }
  }
}

TEST_P(Elementwise, Scale) {
  for (const std::size_t size : Sizes()) {
    for (const Kernels* each : {&kernels(), &ReferenceKernels()}) {
      const std::vector<float> x = RandomValues(size + 1, 19);  // one more, which must not change
      std::vector<float> got = x, exact = x;
      each->Scale(0.3f, std::span(got).first(size));
      for (std::size_t i = 0; i < size; ++i) exact[i] = x[i] * 0.3f;
      ASSERT_TRUE(SameBits(got, exact)) << each->name() << " " << size;
    }
  }
}

TEST_P(Elementwise, AddAndAddScaled) {
  constexpr float kScale = 0.3f;
  for (const std::size_t size : Sizes()) {
    const std::vector<float> x = RandomValues(size, 10);
    const std::vector<float> y = RandomValues(size + 1, 11);  // one more, which must not change
    std::vector<float> added = y, scaled = y, exact_added = y, exact_scaled = y;
    kernels().Add(x, std::span(added).first(size));
    kernels().AddScaled(kScale, x, std::span(scaled).first(size));
    for (std::size_t i = 0; i < size; ++i) {
      exact_added[i] = y[i] + x[i];
      exact_scaled[i] = std::fma(kScale, x[i], y[i]);
    }
    ASSERT_TRUE(SameBits(added, exact_added)) << size;
    ASSERT_TRUE(SameBits(scaled, exact_scaled)) << size;
    std::vector<float> reference = y;
    ReferenceKernels().AddScaled(kScale, x, std::span(reference).first(size));
    for (std::size_t i = 0; i < size; ++i) {
      ASSERT_NEAR(scaled[i], reference[i], kRoundoff * (std::abs(y[i]) + std::abs(kScale * x[i])));
    }
  }
}

TEST_P(Elementwise, Softmax) {
  for (const std::size_t size : Sizes()) {
    const std::vector<float> x = WideValues(size, 12);
    const auto [lowest, highest] = std::minmax_element(x.begin(), x.end());
    std::vector<float> got = x, reference = x, exact(size);
    kernels().Softmax(got);
    ReferenceKernels().Softmax(reference);
    for (std::size_t i = 0; i < size; ++i) exact[i] = Exp(x[i] - *highest);
    const float sum = LaneSum(exact);
    for (float& value : exact) value /= sum;
    ASSERT_TRUE(SameBits(got, exact)) << size;
    // x - max is off by u |x - max|, at most u times the range, in a term and in the sum; exp likewise in both; the sum
    // has size / 16 + 4 roundings; the quotient and the reference one each.
    const double roundings = 2.0 * (*highest - *lowest) + 2 * kExpRoundings + static_cast<double>(size) / 16 + 4 + 2;
    for (std::size_t i = 0; i < size; ++i) {
      ASSERT_NEAR(got[i], reference[i], roundings * kRoundoff * reference[i] * 1.001 + kTiny) << size;
    }
  }
}

TEST_P(Elementwise, SoftmaxOfMaskedValues) {
  std::vector<float> x = {-kInfinity, 2.0f, -kInfinity, 2.0f};
  kernels().Softmax(x);
  EXPECT_EQ(x, (std::vector<float>{0.0f, 0.5f, 0.0f, 0.5f}));
  std::vector<float> none;
  kernels().Softmax(none);
}

TEST_P(Elementwise, LogSumExp) {
  for (const std::size_t size : Sizes()) {
    const std::vector<float> x = WideValues(size, 13);
    const auto [lowest, highest] = std::minmax_element(x.begin(), x.end());
    const float got = kernels().LogSumExp(x);
    std::vector<float> terms;
    for (const float value : x) terms.push_back(Exp(value - *highest));
    const std::vector<float> exact = {static_cast<float>(*highest + Log(LaneSum(terms)))};
    ASSERT_TRUE(SameBits({&got, 1}, exact)) << size;
    // The relative error of the sum, as in Softmax, becomes an absolute one; the result is rounded, the reference too.
    const float reference = ReferenceKernels().LogSumExp(x);
    const double roundings =
        (*highest - *lowest) + kExpRoundings + static_cast<double>(size) / 16 + 4 + 2.0 * std::abs(reference);
    ASSERT_NEAR(got, reference, roundings * kRoundoff * 1.001) << size;
  }
}

TEST_P(Elementwise, LogSumExpAtTheEnds) {
  EXPECT_EQ(kernels().LogSumExp(std::vector<float>(20, -kInfinity)), -kInfinity);
  EXPECT_EQ(kernels().LogSumExp({}), -kInfinity);
  EXPECT_EQ(kernels().LogSumExp(std::vector<float>{3.0f}), 3.0f);
  EXPECT_FLOAT_EQ(kernels().LogSumExp(std::vector<float>{1000.0f, 1000.0f}), 1000.0f + std::log(2.0f));
}

INSTANTIATE_TEST_SUITE_P(Simd, Elementwise, EachAvailable(), NameOf);

TEST(ElementwiseDeath, RejectsALimitBelowZero) {
  std::vector<float> x(3);
  EXPECT_DEATH(SimdKernels().Clamp(-1.0f, x), "limit");
}

}  // namespace
}  // namespace moe
