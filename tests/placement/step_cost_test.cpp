#include "placement/step_cost.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

TEST(StepCost, AWorkersCostsAreTheLineThroughItsSteps) {
  StepCostMeter meter(1000);
  for (int step = 0; step < 200; ++step) {
    for (const std::uint64_t rows : {10u + static_cast<unsigned>(step % 7), 40u})
      meter.AddWorker(rows, 2e-3 + 5e-5 * static_cast<double>(rows));
    meter.EndStep(0.010, 0.004);
  }
  const StepCost cost = meter.Measured();
  EXPECT_TRUE(cost.known());
  EXPECT_NEAR(cost.steps, 181, 1) << "older steps weigh less";
  EXPECT_NEAR(cost.step_seconds, 0.010, 1e-12);
  EXPECT_NEAR(cost.exposed_seconds, 0.004, 1e-12);
  EXPECT_NEAR(cost.worker_seconds, 2e-3, 1e-9);
  EXPECT_NEAR(cost.row_seconds, 5e-5, 1e-11);
}

TEST(StepCost, WithoutASpreadOfRowsAllOfAWorkersTimeIsForThem) {
  StepCostMeter meter(100);
  for (int step = 0; step < 10; ++step) {
    meter.AddWorker(20, 3e-3);
    meter.EndStep(0.01, 0.003);
  }
  EXPECT_NEAR(meter.Measured().row_seconds, 1.5e-4, 1e-12);
  EXPECT_EQ(meter.Measured().worker_seconds, 0);
}

TEST(StepCost, ALineThatFallsOrBeginsBelowZeroIsNone) {
  StepCostMeter falls(100);
  falls.AddWorker(10, 3e-3);
  falls.AddWorker(30, 1e-3);
  falls.EndStep(0.01, 0.003);
  EXPECT_NEAR(falls.Measured().row_seconds, 1e-4, 1e-12);
  EXPECT_EQ(falls.Measured().worker_seconds, 0);
  StepCostMeter below(100);
  below.AddWorker(10, 1e-3);
  below.AddWorker(20, 5e-3);
  below.EndStep(0.01, 0.003);
  EXPECT_NEAR(below.Measured().row_seconds, 2e-4, 1e-12);
  EXPECT_EQ(below.Measured().worker_seconds, 0);
}

TEST(StepCost, OldStepsFade) {
  StepCostMeter meter(50);
  for (int step = 0; step < 500; ++step) meter.EndStep(1.0, 0);
  for (int step = 0; step < 500; ++step) meter.EndStep(2.0, 0);
  EXPECT_NEAR(meter.Measured().step_seconds, 2.0, 1e-3);
  EXPECT_NEAR(meter.Measured().steps, 50, 0.1);
}

TEST(StepCost, NothingIsKnownWithoutSteps) {
  EXPECT_FALSE(StepCostMeter(10).Measured().known());
  StepCostMeter without_rows(10);
  without_rows.EndStep(0.01, 0);
  EXPECT_FALSE(without_rows.Measured().known()) << "of a model without experts";
}

TEST(StepCost, AStepNoticesOfTheSlowestWorkersWhatItWaitsFor) {
  const StepCost cost{
      .steps = 1, .step_seconds = 0.010, .exposed_seconds = 0.003, .worker_seconds = 0.002, .row_seconds = 1e-4};
  EXPECT_DOUBLE_EQ(cost.exposed_share(40), 0.5);
  EXPECT_DOUBLE_EQ(cost.StepSeconds(40, 20), 0.010 - 0.5 * 20e-4);
  EXPECT_DOUBLE_EQ(cost.exposed_share(1), 1) << "more than all of it cannot be noticed";
  EXPECT_DOUBLE_EQ(cost.StepSeconds(40, 40), 0.010);
}

}  // namespace
}  // namespace moe
