#include "placement/step_sizes.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

void AddMany(StepSizes& sizes, int steps, std::size_t rows, double seconds) {
  for (int i = 0; i < steps; ++i) sizes.Add(rows, seconds);
}

TEST(StepComparison, StepsStandBesideThoseOfTheirSize) {
  // Before, nine decodes for each prompt; since then, as many of both, and everything takes half.
  StepSizes before, since;
  AddMany(before, 90, 32, 0.010);
  AddMany(before, 10, 512, 0.200);
  AddMany(since, 50, 32, 0.005);
  AddMany(since, 50, 512, 0.100);
  const StepComparison comparison(since, before);
  EXPECT_EQ(comparison.steps, 100);
  EXPECT_EQ(comparison.steps_left_out, 0);
  EXPECT_DOUBLE_EQ(comparison.rows, 272);
  EXPECT_DOUBLE_EQ(comparison.rows_before, 272);
  EXPECT_DOUBLE_EQ(comparison.seconds_before, 0.105) << "not the 0.029 s of a mean step before";
  EXPECT_DOUBLE_EQ(comparison.seconds, 0.0525);
  EXPECT_TRUE(comparison.fair());
}

TEST(StepComparison, SizesThatWereNotThereBeforeAreLeftOut) {
  StepSizes before, since;
  AddMany(before, 10, 8, 0.010);
  AddMany(since, 10, 8, 0.012);
  AddMany(since, 4, 64, 0.5);
  const StepComparison comparison(since, before);
  EXPECT_EQ(comparison.steps, 10);
  EXPECT_EQ(comparison.steps_left_out, 4);
  EXPECT_DOUBLE_EQ(comparison.seconds, 0.012);
  EXPECT_TRUE(comparison.fair());
  AddMany(since, 7, 64, 0.5);
  EXPECT_FALSE(StepComparison(since, before).fair()) << "11 of 21 were left out";
  EXPECT_FALSE(StepComparison(StepSizes(), before).fair());
  EXPECT_FALSE(StepComparison(since, StepSizes()).fair());
}

TEST(StepComparison, OfOneSizeButOtherRowsIsNotFair) {
  StepSizes before, since;
  AddMany(before, 10, 16, 0.010);
  AddMany(since, 10, 17, 0.010);
  EXPECT_TRUE(StepComparison(since, before).fair());
  AddMany(since, 10, 30, 0.010);
  EXPECT_FALSE(StepComparison(since, before).fair());
}

TEST(StepSizes, FadeAndTakeAnyRows) {
  StepSizes sizes;
  sizes.Add(0, 1);
  sizes.Add(std::size_t{1} << 40, 1);
  EXPECT_EQ(sizes.steps(), 2);
  sizes.Fade(0.25);
  EXPECT_EQ(sizes.steps(), 0.5);
  StepSizes one;
  one.Add(0, 1);
  EXPECT_EQ(StepComparison(one, sizes).steps, 0) << "a quarter of a step says nothing";
}

}  // namespace
}  // namespace moe
