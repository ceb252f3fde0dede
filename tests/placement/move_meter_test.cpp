#include "placement/move_meter.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

/// Steps of 16 rows. True when one of them concluded.
bool Steps(MoveMeter& meter, int steps, double seconds, std::uint64_t generation, bool migrating = false,
           std::size_t rows = 16) {
  bool concluded = false;
  for (int i = 0; i < steps; ++i)
    concluded |= meter.EndStep({.generation = generation, .migrating = migrating, .rows = rows, .seconds = seconds});
  return concluded;
}

TEST(MoveMeter, SetsTheStepsSinceASwitchBesideThoseBefore) {
  MoveMeter meter(100);
  EXPECT_FALSE(Steps(meter, 2000, 0.010, 1));
  EXPECT_FALSE(Steps(meter, 50, 0.020, 1, /*migrating=*/true));
  EXPECT_FALSE(Steps(meter, 3, 0.5, 2, /*migrating=*/true)) << "the old placement is dropped: no step of either";
  EXPECT_EQ(meter.generation(), 2u);
  meter.Expect(0.25);
  EXPECT_FALSE(Steps(meter, 98, 0.008, 2));
  EXPECT_FALSE(meter.outcome());
  EXPECT_TRUE(Steps(meter, 1, 0.008, 2)) << "as many steps as those before weigh";
  ASSERT_TRUE(meter.outcome());
  EXPECT_EQ(meter.outcome()->generation, 2u);
  EXPECT_EQ(meter.outcome()->steps.steps, 99);
  EXPECT_NEAR(meter.outcome()->steps.seconds_before, 0.010, 1e-9);
  EXPECT_NEAR(meter.outcome()->steps.seconds, 0.008, 1e-9);
  EXPECT_NEAR(*meter.outcome()->expected_seconds(), 0.0075, 1e-9);
  EXPECT_NEAR(*meter.outcome()->error(), 0.008 / 0.0075 - 1, 1e-6);
  EXPECT_FALSE(Steps(meter, 500, 0.008, 2)) << "once";
}

TEST(MoveMeter, WhatNobodyExpectedHasNoError) {
  MoveMeter meter(40);
  Steps(meter, 200, 0.010, 1);
  Steps(meter, 1, 0.020, 2);
  meter.Expect(0.5);
  Steps(meter, 200, 0.020, 2);
  EXPECT_TRUE(meter.outcome()->error());
  Steps(meter, 200, 0.030, 3);
  EXPECT_EQ(meter.outcome()->generation, 3u);
  EXPECT_FALSE(meter.outcome()->expected_seconds());
  EXPECT_FALSE(meter.outcome()->error());
}

TEST(MoveMeter, ANextPlacementEndsTheMeasurement) {
  MoveMeter meter(100);
  Steps(meter, 500, 0.010, 1);
  Steps(meter, 40, 0.005, 2);
  meter.Expect(0.5);
  EXPECT_TRUE(Steps(meter, 1, 0.005, 3));
  ASSERT_TRUE(meter.outcome());
  EXPECT_EQ(meter.outcome()->generation, 2u);
  EXPECT_EQ(meter.outcome()->steps.steps, 40);
  EXPECT_NEAR(*meter.outcome()->error(), 0, 1e-9);
  EXPECT_FALSE(Steps(meter, 10, 0.005, 4)) << "a step tells nothing";
  EXPECT_EQ(meter.outcome()->generation, 2u);
}

TEST(MoveMeter, WithoutStepsBeforeThereIsNothingToCompare) {
  MoveMeter meter(100);
  Steps(meter, 31, 0.010, 1);
  EXPECT_FALSE(Steps(meter, 500, 0.010, 2));
  EXPECT_FALSE(meter.outcome());
}

TEST(MoveMeter, AMigrationShowsWhatItTakesOfTheThroughput) {
  MoveMeter meter(100);
  Steps(meter, 500, 0.009, 1);
  EXPECT_FALSE(meter.slowdown());
  Steps(meter, 40, 0.010, 1, /*migrating=*/true);
  EXPECT_FALSE(meter.slowdown()) << "it goes on";
  Steps(meter, 1, 0.010, 2, /*migrating=*/true);
  ASSERT_TRUE(meter.slowdown());
  EXPECT_NEAR(*meter.slowdown(), 0.1, 1e-9) << "nine steps in the time of ten";
  Steps(meter, 100, 0.006, 2);
  Steps(meter, 10, 1, 2, /*migrating=*/true);
  Steps(meter, 1, 0.006, 3);
  EXPECT_NEAR(*meter.slowdown(), 0.1, 1e-9) << "the last one was too short to tell";
  Steps(meter, 100, 0.006, 3);
  Steps(meter, 40, 0.005, 3, /*migrating=*/true);
  Steps(meter, 1, 0.006, 3);
  EXPECT_EQ(*meter.slowdown(), 0) << "of one that failed too, and no less than nothing";
}

TEST(MoveMeter, StepsMeanwhileAreComparedSizeBySize) {
  MoveMeter meter(100);
  for (int i = 0; i < 200; ++i) Steps(meter, 1, i % 2 == 0 ? 0.001 : 0.100, 1, false, i % 2 == 0 ? 4 : 400);
  Steps(meter, 64, 0.100, 1, /*migrating=*/true, 400);
  Steps(meter, 1, 0.100, 2);
  EXPECT_NEAR(*meter.slowdown(), 0, 1e-9) << "a mean step took half as long before, but not of that size";
}

TEST(MoveMeter, OtherWorkersAreOtherTimes) {
  MoveMeter meter(100);
  Steps(meter, 500, 0.010, 1);
  Steps(meter, 20, 0.010, 2);
  EXPECT_FALSE(meter.EndStep({.generation = 2, .workers = 1, .rows = 16, .seconds = 0.030}));
  EXPECT_FALSE(Steps(meter, 500, 0.010, 2));
  EXPECT_FALSE(meter.outcome());
}

}  // namespace
}  // namespace moe
