#include "placement/balanced_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "placement/placement_bound.h"
#include "placement/placement_figures.h"
#include "placement/placement_problem.h"
#include "tests/placement/exact_placement.h"

namespace moe {
namespace {

using Loads = std::vector<double>;
using Slots = std::vector<std::vector<int>>;

PlacementProblem ProblemOf(Loads load, int workers, int slots) {
  return {.num_experts = static_cast<int>(load.size()),
          .workers = workers,
          .slots = slots,
          .loads = {{.layer = 0, .mean = std::move(load), .samples = {}}}};
}

/// The placement, once it has been found to keep every rule.
Placement Placed(const PlacementProblem& problem) {
  const Result<Placement> placement = MakePlacement(PlacementAlgorithm::kAuto, problem);
  EXPECT_TRUE(placement.ok()) << placement.status().message();
  if (!placement.ok()) return {};
  PlacementShape shape{.num_experts = problem.num_experts, .workers = problem.workers};
  for (const LayerLoad& load : problem.loads) shape.layers.push_back(load.layer);
  const Status status = CheckPlacement(*placement, shape);
  EXPECT_TRUE(status.ok()) << status.message();
  const WorkerRoom room = RoomOf(problem);
  for (const LayerPlacement& layer : placement->layers) {
    int used = 0;
    for (std::size_t w = 0; w < layer.slots.size(); ++w) {
      EXPECT_LE(layer.slots[w].size(), static_cast<std::size_t>(room.slots[w])) << "worker " << w;
      used += static_cast<int>(layer.slots[w].size());
    }
    EXPECT_LE(used, problem.slots);
  }
  return *placement;
}

double SlowestTime(const Placement& placement, const PlacementProblem& problem) {
  const Loads times = WorkerTimes(placement.layers[0], problem.loads[0].mean, problem.worker_speeds);
  return *std::max_element(times.begin(), times.end());
}

Loads RandomLoads(std::mt19937& random, int experts) {
  Loads load;
  for (int e = 0; e < experts; ++e) load.push_back(static_cast<double>(random() % 1000));
  return load;
}

TEST(BalancedPlacement, PutsEachExpertOnAWorkerOfItsOwnWhereThatIsAll) {
  const Placement placement = Placed(ProblemOf({1, 1, 1, 1}, 4, 4));
  for (const std::vector<int>& worker : placement.layers[0].slots) EXPECT_EQ(worker.size(), 1u);
}

TEST(BalancedPlacement, ReplicatesTheHotExpert) {
  // 6 on each of three workers: expert 0 on all of them with 5, and 1 each.
  const PlacementProblem problem = ProblemOf({15, 1, 1, 1}, 3, 6);
  EXPECT_DOUBLE_EQ(SlowestTime(Placed(problem), problem), 6);
}

TEST(BalancedPlacement, HandlesEightExpertsOnSevenWorkers) {
  for (int slots = 8; slots <= 56; ++slots) {
    const PlacementProblem problem = ProblemOf({80, 70, 60, 50, 40, 30, 20, 10}, 7, slots);
    const double slowest = SlowestTime(Placed(problem), problem);
    EXPECT_LE(slowest, 80) << slots << " slots";
    if (slots >= 15) {
      EXPECT_LE(slowest, 1.1 * 360 / 7) << slots << " slots";
    }
  }
}

TEST(BalancedPlacement, UsesEverySlotThatDoesNoHarm) {
  // All alike: eight slots give each expert a second worker, at no cost.
  const Placement placement = Placed(ProblemOf({1, 1, 1, 1}, 4, 8));
  for (const std::vector<int>& worker : placement.layers[0].slots) EXPECT_EQ(worker.size(), 2u);
}

TEST(BalancedPlacement, PlacesAnIdleLayerAndHugeAndTinyLoads) {
  (void)Placed(ProblemOf(Loads(8, 0), 3, 12));
  const PlacementProblem problem = ProblemOf({1e15, 1e-9, 0, 1}, 2, 6);
  EXPECT_NEAR(SlowestTime(Placed(problem), problem) / 5e14, 1, 1e-9);
}

TEST(BalancedPlacement, IsTheSameEveryTime) {
  std::mt19937 random(3);
  PlacementProblem problem = ProblemOf(RandomLoads(random, 40), 9, 54);
  const std::string first = PlacementJson(Placed(problem));
  EXPECT_EQ(PlacementJson(Placed(problem)), first);
}

/// How near ours comes to the optimum over random small layers of one kind.
struct Nearness {
  double mean = 0;
  double worst = 1;
};
Nearness NearnessTo(std::mt19937& random, int cases, void (*vary)(PlacementProblem&, std::mt19937&)) {
  Nearness nearness;
  for (int i = 0; i < cases; ++i) {
    const int workers = 2 + static_cast<int>(random() % 3);
    const int experts = 2 + static_cast<int>(random() % (workers == 4 ? 4 : 5));
    const int slots = experts + static_cast<int>(random() % static_cast<unsigned>(experts * (workers - 1) + 1));
    PlacementProblem problem = ProblemOf(RandomLoads(random, experts), workers, slots);
    vary(problem, random);
    const double best = LeastSlowestTime(problem.loads[0].mean, RoomOf(problem));
    const double ours = SlowestTime(Placed(problem), problem);
    EXPECT_GE(ours, best * (1 - 1e-9)) << "the oracle is wrong";
    EXPECT_LE(LowerBound(problem.loads[0].mean, RoomOf(problem)), best * (1 + 1e-9)) << "the bound is none";
    const double near = ours == 0 ? 1 : best / ours;
    nearness.mean += near / cases;
    nearness.worst = std::min(nearness.worst, near);
  }
  return nearness;
}

TEST(BalancedPlacement, ComesNearTheOptimumOfSmallLayers) {
  std::mt19937 random(1);
  const Nearness nearness = NearnessTo(random, 150, [](PlacementProblem&, std::mt19937&) {});
  EXPECT_GT(nearness.mean, 0.995);
  EXPECT_GT(nearness.worst, 0.9);
}

TEST(BalancedPlacement, ComesNearTheOptimumWhereWorkersDifferInSpeed) {
  std::mt19937 random(2);
  const Nearness nearness = NearnessTo(random, 150, [](PlacementProblem& problem, std::mt19937& r) {
    for (int w = 0; w < problem.workers; ++w) problem.worker_speeds.push_back(0.5 + static_cast<double>(r() % 4) / 2);
  });
  EXPECT_GT(nearness.mean, 0.97);
  EXPECT_GT(nearness.worst, 0.7);
}

TEST(BalancedPlacement, ComesNearTheOptimumWhereWorkersDifferInRoom) {
  std::mt19937 random(4);
  const Nearness nearness = NearnessTo(random, 150, [](PlacementProblem& problem, std::mt19937& r) {
    problem.worker_slots = {problem.num_experts};  // so that all fit somewhere
    for (int w = 1; w < problem.workers; ++w)
      problem.worker_slots.push_back(static_cast<int>(r() % static_cast<unsigned>(problem.num_experts + 1)));
  });
  EXPECT_GT(nearness.mean, 0.99);
  EXPECT_GT(nearness.worst, 0.8);
}

TEST(BalancedPlacement, GivesAFasterWorkerMore) {
  PlacementProblem problem = ProblemOf(Loads(12, 1), 3, 12);
  problem.worker_speeds = {2, 1, 1};
  problem.worker_slots = {12, 12, 12};
  const Placement placement = Placed(problem);
  EXPECT_DOUBLE_EQ(SlowestTime(placement, problem), 3) << "6, 3 and 3 experts";
}

TEST(BalancedPlacement, MovesNothingWhereNothingIsToBeGained) {
  std::mt19937 random(5);
  PlacementProblem problem = ProblemOf(RandomLoads(random, 64), 8, 96);
  const Placement first = Placed(problem);
  problem.current = first;
  EXPECT_EQ(ExpertsMoved(first, Placed(problem)), 0u);
  EXPECT_EQ(PlacementJson(Placed(problem)), PlacementJson(first)) << "slots keep their order too";
}

TEST(BalancedPlacement, MovesAFewExpertsWhenLoadsDrift) {
  std::mt19937 random(6);
  PlacementProblem problem = ProblemOf(RandomLoads(random, 128), 16, 192);
  problem.current = Placed(problem);
  for (double& tokens : problem.loads[0].mean) tokens *= 0.9 + 0.2 * static_cast<double>(random() % 1000) / 1000;
  const Placement now = Placed(problem);
  EXPECT_LE(ExpertsMoved(*problem.current, now), 192u / 4);
  EXPECT_LE(SlowestTime(now, problem), 1.01 * LowerBound(problem.loads[0].mean, RoomOf(problem)));
}

TEST(BalancedPlacement, MovesOnlyWhatPaysForItsBytes) {
  PlacementProblem problem = ProblemOf({30, 30, 10, 10}, 2, 4);
  problem.current = Placement{.num_experts = 4, .workers = 2, .layers = {{.layer = 0, .slots = {{0, 1}, {2, 3}}}}};
  problem.bytes_per_expert = 100;
  // An exchange relieves the slowest worker of 20 tokens and moves two experts, 200 bytes.
  problem.cost_per_byte = 0.09;
  EXPECT_EQ(ExpertsMoved(*problem.current, Placed(problem)), 2u);
  problem.cost_per_byte = 0.11;
  EXPECT_EQ(ExpertsMoved(*problem.current, Placed(problem)), 0u);
}

TEST(BalancedPlacement, TakesACurrentPlacementThatHasTooManySlots) {
  PlacementProblem problem = ProblemOf({4, 3, 2, 1}, 2, 4);
  problem.current =
      Placement{.num_experts = 4, .workers = 2, .layers = {{.layer = 0, .slots = {{0, 1, 2, 3}, {3, 2, 1, 0}}}}};
  const Placement placement = Placed(problem);
  EXPECT_EQ(ExpertsMoved(*problem.current, placement), 0u) << "dropping moves nothing";
  EXPECT_DOUBLE_EQ(SlowestTime(placement, problem), 5);
  problem.current->layers[0].slots = {{0, 1, 2, 3}, {}};
  EXPECT_DOUBLE_EQ(SlowestTime(Placed(problem), problem), 5);
}

TEST(BalancedPlacement, LooksAtTheSpreadOfTheLoad) {
  // On average all experts are alike; but 0 and 1 are busy in the same steps, and so are 2 and 3.
  PlacementProblem problem = ProblemOf({5, 5, 5, 5}, 2, 4);
  problem.loads[0].samples = {{9, 9, 1, 1}, {1, 1, 9, 9}, {9, 9, 1, 1}, {1, 1, 9, 9}};
  const Placement placement = Placed(problem);
  EXPECT_DOUBLE_EQ(FiguresOf(placement, problem).slow_balancedness, 1);
  problem.current = Placement{.num_experts = 4, .workers = 2, .layers = {{.layer = 0, .slots = {{0, 1}, {2, 3}}}}};
  EXPECT_NEAR(FiguresOf(*problem.current, problem).slow_balancedness, 10.0 / 18, 1e-12);
  EXPECT_DOUBLE_EQ(FiguresOf(Placed(problem), problem).slow_balancedness, 1) << "also from one in force";
}

TEST(BalancedPlacement, BettersTheSlowStepsOfRandomSamplesAndKeepsTheMean) {
  std::mt19937 random(8);
  double with = 0;
  double without = 0;
  for (int i = 0; i < 10; ++i) {
    PlacementProblem problem = ProblemOf(Loads(32, 0), 8, 48);
    LayerLoad& load = problem.loads[0];
    for (int s = 0; s < 16; ++s) {
      load.samples.push_back(RandomLoads(random, 32));
      for (std::size_t e = 0; e < 32; ++e) load.mean[e] += load.samples.back()[e];
    }
    PlacementProblem plain = problem;
    plain.loads[0].samples.clear();
    const Placement spread = Placed(problem);
    with += FiguresOf(spread, problem).slow_balancedness;
    without += FiguresOf(Placed(plain), problem).slow_balancedness;
    EXPECT_LE(SlowestTime(spread, problem), 1.0101 * LowerBound(load.mean, RoomOf(problem)));
  }
  EXPECT_GT(with, without);
}

}  // namespace
}  // namespace moe
