#include "placement/eplb.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "placement/figures.h"
#include "placement/placement_problem.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using Loads = std::vector<double>;
using Experts = std::vector<int>;

// The example of the EPLB project's README.
const Loads kLoad0 = {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86};
const Loads kLoad1 = {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27};

double BalancednessOf(const Loads& load, const EplbShape& shape) {
  return Balancedness(EplbDeviceLoads(load, EplbSlots(load, shape), shape.devices));
}

TEST(Eplb, GivesTheSlotsOfItsPublishedExample) {
  const EplbShape shape{.slots = 16, .devices = 8, .nodes = 2, .groups = 4};
  EXPECT_EQ(EplbSlots(kLoad0, shape), (Experts{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1}));
  EXPECT_EQ(EplbSlots(kLoad1, shape), (Experts{7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}));
  EXPECT_NEAR(BalancednessOf(kLoad0, shape), 0.828, 5e-4);
  EXPECT_NEAR(BalancednessOf(kLoad1, shape), 0.805, 5e-4);
}

TEST(Eplb, IsGlobalWithoutNodesAndWhereNodesDoNotDivideGroups) {
  const EplbShape global{.slots = 16, .devices = 8};
  EXPECT_NEAR(BalancednessOf(kLoad0, global), 0.932, 5e-4);
  EXPECT_NEAR(BalancednessOf(kLoad1, global), 0.840, 5e-4);
  const EplbShape three_groups{.slots = 16, .devices = 8, .nodes = 2, .groups = 3};
  EXPECT_EQ(EplbSlots(kLoad0, three_groups), EplbSlots(kLoad0, global));
}

TEST(Eplb, BreaksTiesTowardTheLowerIndex) {
  // One slot a device: slot i on device i, whatever the loads; the two further ones are replicas of 0 and 1.
  EXPECT_EQ(EplbSlots(Loads{5, 5, 5, 5}, {.slots = 6, .devices = 6}), (Experts{0, 1, 2, 3, 0, 1}));
  // Heaviest first: 2, 0, 1, 3 onto devices 0, 1, 1, 0.
  EXPECT_EQ(EplbSlots(Loads{4, 4, 5, 1}, {.slots = 4, .devices = 2}), (Experts{2, 3, 0, 1}));
}

TEST(Eplb, MayPutTwoReplicasOnADeviceAndCountsBoth) {
  // Expert 0 has three of four slots on two devices.
  const Loads load = {90, 10};
  const Experts slots = EplbSlots(load, {.slots = 4, .devices = 2});
  EXPECT_EQ(slots, (Experts{0, 0, 0, 1}));
  EXPECT_EQ(EplbDeviceLoads(load, slots, 2), (Loads{60, 40}));
}

PlacementProblem EplbProblem(const Loads& load, int workers, int slots) {
  return {.num_experts = static_cast<int>(load.size()),
          .workers = workers,
          .slots = slots,
          .loads = {{.layer = 3, .mean = load, .samples = {}}}};
}

TEST(Eplb, AsAPlacementHostsAnExpertOnceWhereTheRulePutsItTwice) {
  const Result<Placement> placement = MakePlacement(PlacementAlgorithm::kEplb, EplbProblem({90, 10}, 2, 4));
  ASSERT_TRUE(placement.ok()) << placement.status().message();
  EXPECT_EQ(placement->layers[0].layer, 3);
  EXPECT_EQ(placement->layers[0].slots, (std::vector<Experts>{{0}, {0, 1}}));
}

TEST(Eplb, AsAPlacementKeepsTheOrderOfSlots) {
  PlacementProblem problem = EplbProblem(kLoad0, 8, 16);
  problem.nodes = 2;
  problem.groups = 4;
  const Result<Placement> placement = MakePlacement(PlacementAlgorithm::kEplb, problem);
  ASSERT_TRUE(placement.ok());
  EXPECT_EQ(placement->layers[0].slots,
            (std::vector<Experts>{{5, 6}, {5, 7}, {8, 4}, {3, 4}, {10, 9}, {10, 2}, {0, 1}, {11, 1}}));
}

TEST(Eplb, RefusesWhatItsRuleCannotDivideNamingBoth) {
  const auto refusal = [](const EplbShape& shape) {
    const Status status = CheckEplb(shape, 12);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  };
  EXPECT_THAT(refusal({.slots = 15, .devices = 7}), AllOf(HasSubstr("15 slots"), HasSubstr("7 workers")));
  EXPECT_THAT(refusal({.slots = 16, .devices = 8, .nodes = 3}), AllOf(HasSubstr("8 workers"), HasSubstr("3 nodes")));
  EXPECT_THAT(refusal({.slots = 16, .devices = 8, .groups = 5}), AllOf(HasSubstr("12 experts"), HasSubstr("5 groups")));
  EXPECT_THAT(refusal({.slots = 8, .devices = 8}), AllOf(HasSubstr("8 slots"), HasSubstr("12 experts")));
  EXPECT_THAT(refusal({.slots = 16, .devices = 0}), HasSubstr("workers 0"));
  EXPECT_TRUE(CheckEplb({.slots = 16, .devices = 8, .nodes = 2, .groups = 4}, 12).ok());
}

}  // namespace
}  // namespace moe
