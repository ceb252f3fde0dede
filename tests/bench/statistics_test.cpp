#include "bench/statistics.h"

#include <gtest/gtest.h>

#include <vector>

namespace moe {
namespace {

TEST(Percentile, IsLinearBetweenTheNearestTwo) {
  const std::vector<double> values{10, 20, 30, 40};
  EXPECT_DOUBLE_EQ(Percentile(values, 0), 10);
  EXPECT_DOUBLE_EQ(Percentile(values, 100), 40);
  // Position 0.5 * 3 = 1.5: halfway between 20 and 30; 0.9 * 3 = 2.7: 30 + 0.7 * 10.
  EXPECT_DOUBLE_EQ(Percentile(values, 50), 25);
  EXPECT_DOUBLE_EQ(Percentile(values, 90), 37);
}

TEST(Percentile, OfOneValueIsThatValue) {
  const std::vector<double> values{7};
  EXPECT_DOUBLE_EQ(Percentile(values, 0), 7);
  EXPECT_DOUBLE_EQ(Percentile(values, 99), 7);
  EXPECT_DOUBLE_EQ(Percentile(values, 100), 7);
}

TEST(Summarize, MatchesFiguresComputedByHand) {
  const auto summary = Summarize({5, 1, 4, 2, 3});  // in any order
  ASSERT_TRUE(summary);
  EXPECT_DOUBLE_EQ(summary->mean, 3);
  EXPECT_DOUBLE_EQ(summary->median, 3);
  EXPECT_DOUBLE_EQ(summary->std, 1.4142135623730951);  // sqrt((4 + 1 + 0 + 1 + 4) / 5): of the population
  EXPECT_DOUBLE_EQ(summary->p50, 3);
  EXPECT_DOUBLE_EQ(summary->p90, 4.6);   // position 3.6
  EXPECT_DOUBLE_EQ(summary->p95, 4.8);   // position 3.8
  EXPECT_DOUBLE_EQ(summary->p99, 4.96);  // position 3.96
}

TEST(Summarize, OfNothingIsNothing) { EXPECT_FALSE(Summarize({})); }

}  // namespace
}  // namespace moe
