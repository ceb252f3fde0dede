#include "bench/arrivals.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace moe {
namespace {

TEST(ArrivalOffsets, FixedGapsAreOneOverTheRate) {
  const auto offsets = ArrivalOffsets({.kind = Arrival::kFixed, .rate = 4, .count = 4});
  EXPECT_EQ(offsets, (std::vector<double>{0, 0.25, 0.5, 0.75}));
}

TEST(ArrivalOffsets, AnInfiniteRateIsAllAtOnce) {
  for (const Arrival kind : {Arrival::kFixed, Arrival::kPoisson}) {
    const auto offsets = ArrivalOffsets({.kind = kind, .rate = std::numeric_limits<double>::infinity(), .count = 3});
    EXPECT_EQ(offsets, (std::vector<double>{0, 0, 0}));
  }
}

TEST(ArrivalOffsets, PoissonGapsAreExponential) {
  constexpr double kRate = 50;
  constexpr std::uint32_t kCount = 100'001;
  const auto offsets = ArrivalOffsets({.rate = kRate, .count = kCount, .seed = 3});
  ASSERT_EQ(offsets.size(), kCount);
  EXPECT_EQ(offsets[0], 0);
  double sum = 0;
  double squares = 0;
  double above_mean = 0;
  for (std::size_t i = 1; i < offsets.size(); ++i) {
    const double gap = (offsets[i] - offsets[i - 1]) * kRate;  // in mean gaps
    ASSERT_GE(gap, 0);
    sum += gap;
    squares += gap * gap;
    above_mean += gap > 1 ? 1 : 0;
  }
  constexpr double kGaps = kCount - 1;
  // Five standard errors of each: the gap's deviation is 1, that of its square sqrt(20), of the share sqrt(p (1 - p)).
  EXPECT_NEAR(sum / kGaps, 1, 5 / std::sqrt(kGaps));
  EXPECT_NEAR(squares / kGaps, 2, 5 * std::sqrt(20 / kGaps));
  EXPECT_NEAR(above_mean / kGaps, std::exp(-1), 5 * std::sqrt(0.25 / kGaps));
}

TEST(ArrivalOffsets, ASeedNamesThem) {
  const ArrivalOptions options{.rate = 10, .count = 100, .seed = 1};
  EXPECT_EQ(ArrivalOffsets(options), ArrivalOffsets(options));
  ArrivalOptions other = options;
  other.seed = 2;
  EXPECT_NE(ArrivalOffsets(options), ArrivalOffsets(other));
}

TEST(ArrivalOffsets, ALongerRunBeginsLikeAShorterOne) {
  auto longer = ArrivalOffsets({.rate = 10, .count = 100});
  longer.resize(10);
  EXPECT_EQ(longer, ArrivalOffsets({.rate = 10, .count = 10}));
}

}  // namespace
}  // namespace moe
