#include "placement/placement_problem.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "placement/placement_bound.h"
#include "placement/placement_figures.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class Problem : public ::testing::Test {
 protected:
  std::string Refusal() {
    const Status status = MakePlacement(PlacementAlgorithm::kAuto, problem_).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  }

  PlacementProblem problem_{.num_experts = 3, .workers = 2, .slots = 4, .loads = UniformLoads({1, 4}, 3)};
};

TEST_F(Problem, OfEveryAlgorithmIsAPlacementOfItsLayers) {
  for (const char* name : {"linear", "round_robin", "eplb", "auto"}) {
    const auto algorithm = ParsePlacementAlgorithm(name);
    ASSERT_TRUE(algorithm) << name;
    EXPECT_EQ(Name(*algorithm), name);
    const Result<Placement> placement = MakePlacement(*algorithm, problem_);
    ASSERT_TRUE(placement.ok()) << name << ": " << placement.status().message();
    EXPECT_TRUE(CheckPlacement(*placement, {.num_experts = 3, .workers = 2, .layers = {1, 4}}).ok()) << name;
  }
  EXPECT_FALSE(ParsePlacementAlgorithm("magic"));
}

TEST_F(Problem, OfADenseModelIsEmpty) {
  const Result<Placement> placement = MakePlacement(PlacementAlgorithm::kAuto, {.workers = 3});
  ASSERT_TRUE(placement.ok()) << placement.status().message();
  EXPECT_TRUE(placement->layers.empty());
  problem_ = {.workers = 3, .slots = 2};
  EXPECT_EQ(Refusal(), "slots 2: the model has no experts to fill them with");
}

TEST_F(Problem, WithLoadsThatAreNoneIsRefused) {
  problem_.loads[1].mean[2] = -1;
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("layer 4"), HasSubstr("expert 2"), HasSubstr("-1")));
  problem_.loads[1].mean[2] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(Refusal(), HasSubstr("expert 2"));
  problem_.loads[1].mean = {1, 2};
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("layer 4"), HasSubstr("2 experts"), HasSubstr("3")));
}

TEST_F(Problem, WithSamplesOfOtherExpertsIsRefused) {
  problem_.loads[0].samples = {{1, 2, 3}, {1, 2, 3, 4}};
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("layer 1"), HasSubstr("4 experts")));
}

TEST_F(Problem, WithLayersOutOfOrderIsRefused) {
  problem_.loads[1].layer = 1;
  EXPECT_THAT(Refusal(), HasSubstr("layer 1 follows layer 1"));
}

TEST_F(Problem, WithSlotsThatDoNotFitIsRefused) {
  problem_.slots = 2;
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("slots 2"), HasSubstr("3 experts")));
  problem_.slots = 7;
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("slots 7"), HasSubstr("have 6")));
  problem_.slots = 4;
  problem_.worker_slots = {1, 1};
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("hold 2"), HasSubstr("3")));
  problem_.worker_slots = {4};
  EXPECT_THAT(Refusal(), HasSubstr("slots of 1 workers"));
}

TEST_F(Problem, WithSpeedsThatAreNoneIsRefused) {
  problem_.worker_speeds = {1, 0};
  EXPECT_THAT(Refusal(), HasSubstr("speed of 0"));
  problem_.worker_speeds = {1, 1, 1};
  EXPECT_THAT(Refusal(), HasSubstr("speeds of 3 workers"));
}

TEST_F(Problem, WithACurrentPlacementOfAnotherShapeIsRefused) {
  problem_.current = Placement{.num_experts = 3, .workers = 3};
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("current placement"), HasSubstr("workers 3")));
}

TEST_F(Problem, OfTooManyPairsIsRefused) {
  problem_.workers = 1 << 24;
  EXPECT_THAT(Refusal(), HasSubstr("pairs"));
}

TEST(LowerBound, IsTheMeanOrWhatTheHeaviestReplicaTakes) {
  const auto bound = [](const std::vector<double>& load, int workers, int slots) {
    return LowerBound(load, RoomOf({.num_experts = static_cast<int>(load.size()), .workers = workers, .slots = slots}));
  };
  EXPECT_DOUBLE_EQ(bound({1, 1, 1, 1}, 2, 4), 2) << "the mean";
  EXPECT_DOUBLE_EQ(bound({9, 1, 1, 1}, 4, 4), 9) << "one worker has the hot one";
  EXPECT_DOUBLE_EQ(bound({9, 1, 1, 1}, 4, 5), 4.5) << "or two";
  EXPECT_DOUBLE_EQ(bound({9, 1, 1, 1}, 4, 6), 3) << "both the same";
  EXPECT_DOUBLE_EQ(bound({9, 1, 1, 1}, 4, 16), 3);
}

TEST(ReplicaCounts, GoToTheHeaviestShareAndToEachWorkerOnce) {
  const WorkerRoom room = RoomOf({.num_experts = 3, .workers = 3, .slots = 9});
  EXPECT_EQ(ReplicaCounts(std::vector<double>{8, 5, 1}, 3, room), (std::vector<int>{1, 1, 1}));
  EXPECT_EQ(ReplicaCounts(std::vector<double>{8, 5, 1}, 5, room), (std::vector<int>{2, 2, 1}));
  EXPECT_EQ(ReplicaCounts(std::vector<double>{80, 5, 1}, 7, room), (std::vector<int>{3, 3, 1}));
  EXPECT_EQ(ReplicaCounts(std::vector<double>{5, 5, 5}, 4, room), (std::vector<int>{2, 1, 1}));
}

TEST(PlacementFigures, AreThoseOfWorkersPerLayerThenAveraged) {
  const Placement placement{.num_experts = 2,
                            .workers = 2,
                            .layers = {{.layer = 0, .slots = {{0}, {1}}}, {.layer = 1, .slots = {{0, 1}, {1}}}}};
  PlacementProblem problem{.num_experts = 2,
                           .workers = 2,
                           .slots = 3,
                           .loads = {{.layer = 0, .mean = {3, 1}, .samples = {}},
                                     {.layer = 1, .mean = {3, 1}, .samples = {{1, 2}, {2, 0}}}}};
  // Loads 3 and 1; 3.5 and 0.5.
  const PlacementFigures figures = FiguresOf(placement, problem);
  EXPECT_DOUBLE_EQ(figures.balancedness, (2.0 / 3 + 2.0 / 3.5) / 2);
  EXPECT_DOUBLE_EQ(figures.imbalance, (0.5 + 0.75) / 2);
  EXPECT_DOUBLE_EQ(figures.cv, (0.5 + 0.75) / 2);
  EXPECT_DOUBLE_EQ(figures.jain, (16.0 / 20 + 16.0 / (2 * 12.5)) / 2);
  EXPECT_DOUBLE_EQ(figures.gini, (0.25 + 0.375) / 2);
  // Layer 1 in its samples: 2 and 1, 2 and 0.
  EXPECT_DOUBLE_EQ(figures.slow_balancedness, (2.0 / 3 + 0.5) / 2);
  problem.worker_speeds = {3, 1};
  EXPECT_DOUBLE_EQ(FiguresOf(placement, problem).balancedness, (1.0 + 6.0 / 7) / 2);
}

TEST(ExpertsMoved, CountsWhatAWorkerHasToGet) {
  const Placement from{.num_experts = 3, .workers = 2, .layers = {{.layer = 0, .slots = {{0, 1}, {2}}}}};
  const Placement to{.num_experts = 3, .workers = 2, .layers = {{.layer = 0, .slots = {{1, 2}, {0, 2}}}}};
  EXPECT_EQ(ExpertsMoved(from, to), 2u);
  EXPECT_EQ(ExpertsMoved(from, from), 0u);
}

}  // namespace
}  // namespace moe
