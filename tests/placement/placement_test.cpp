#include "placement/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Slots = std::vector<std::vector<int>>;
using Algorithm = Result<Placement> (*)(const PlacementShape&);

/// The slots that `algorithm` gives the one sparse layer.
Slots SlotsOf(Algorithm algorithm, int experts, int workers, int redundant = 0) {
  const Result<Placement> placement =
      algorithm({.num_experts = experts, .workers = workers, .layers = {0}, .redundant_experts = redundant});
  EXPECT_TRUE(placement.ok()) << placement.status().message();
  return placement.ok() ? placement->layers.at(0).slots : Slots{};
}

TEST(LinearPlacement, GivesConsecutiveExpertsLargerSharesFirst) {
  EXPECT_EQ(SlotsOf(LinearPlacement, 8, 1), (Slots{{0, 1, 2, 3, 4, 5, 6, 7}}));
  EXPECT_EQ(SlotsOf(LinearPlacement, 8, 4), (Slots{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
  EXPECT_EQ(SlotsOf(LinearPlacement, 8, 3), (Slots{{0, 1, 2}, {3, 4, 5}, {6, 7}}));
  EXPECT_EQ(SlotsOf(LinearPlacement, 8, 7), (Slots{{0, 1}, {2}, {3}, {4}, {5}, {6}, {7}}));
  EXPECT_EQ(SlotsOf(LinearPlacement, 2, 4), (Slots{{0}, {1}, {}, {}}));
}

TEST(RoundRobinPlacement, DealsExpertsOutInTurn) {
  EXPECT_EQ(SlotsOf(RoundRobinPlacement, 8, 1), (Slots{{0, 1, 2, 3, 4, 5, 6, 7}}));
  EXPECT_EQ(SlotsOf(RoundRobinPlacement, 8, 4), (Slots{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
  EXPECT_EQ(SlotsOf(RoundRobinPlacement, 8, 3), (Slots{{0, 3, 6}, {1, 4, 7}, {2, 5}}));
  EXPECT_EQ(SlotsOf(RoundRobinPlacement, 8, 7), (Slots{{0, 7}, {1}, {2}, {3}, {4}, {5}, {6}}));
  EXPECT_EQ(SlotsOf(RoundRobinPlacement, 2, 4), (Slots{{0}, {1}, {}, {}}));
}

TEST(Replicas, GoInIdOrderToTheEmptiestWorkerWithoutThatExpert) {
  // 0 cannot go to worker 0, and 2 is emptier than 1. Then 1 and 2 are equally full for expert 1, but 1 has it already;
  // 2 finds workers 0 and 1 equally full and takes the lower.
  EXPECT_EQ(SlotsOf(LinearPlacement, 5, 3, 1), (Slots{{0, 1}, {2, 3}, {4, 0}}));
  EXPECT_EQ(SlotsOf(LinearPlacement, 5, 3, 2), (Slots{{0, 1}, {2, 3, 1}, {4, 0}}));
  EXPECT_EQ(SlotsOf(LinearPlacement, 5, 3, 3), (Slots{{0, 1, 2}, {2, 3, 1}, {4, 0}}));
  EXPECT_EQ(SlotsOf(LinearPlacement, 5, 3, 4), (Slots{{0, 1, 2}, {2, 3, 1}, {4, 0, 3}}));
  // Idle workers fill up first, the lowest index of equals.
  EXPECT_EQ(SlotsOf(RoundRobinPlacement, 2, 4, 2), (Slots{{0}, {1}, {0}, {1}}));
}

TEST(Replicas, AsManyAsExpertsGiveEveryExpertTwoWorkers) {
  for (const Algorithm algorithm : {LinearPlacement, RoundRobinPlacement}) {
    for (int workers = 2; workers <= 9; ++workers) {
      const Slots slots = SlotsOf(algorithm, 8, workers, 8);
      for (int expert = 0; expert < 8; ++expert) {
        const auto hosts = [expert](const std::vector<int>& worker) {
          return std::count(worker.begin(), worker.end(), expert) == 1;
        };
        EXPECT_EQ(std::count_if(slots.begin(), slots.end(), hosts), 2) << "expert " << expert << " of " << workers;
      }
    }
  }
}

TEST(Replicas, FitUntilEveryWorkerHasEveryExpert) {
  const Slots full = SlotsOf(LinearPlacement, 3, 4, 9);
  for (const std::vector<int>& worker : full)
    EXPECT_EQ(std::set<int>(worker.begin(), worker.end()), (std::set<int>{0, 1, 2}));
  const Status status =
      LinearPlacement({.num_experts = 3, .workers = 4, .layers = {0}, .redundant_experts = 10}).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("redundant experts 10"), HasSubstr("4 worker"), HasSubstr("at most 9")));
}

TEST(Replicas, NeedASecondWorkerAndExperts) {
  const Status alone =
      RoundRobinPlacement({.num_experts = 8, .workers = 1, .layers = {0}, .redundant_experts = 1}).status();
  EXPECT_EQ(alone.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(alone.message(), AllOf(HasSubstr("redundant experts 1"), HasSubstr("at most 0")));
  const Status dense = LinearPlacement({.num_experts = 0, .workers = 2, .redundant_experts = 3}).status();
  EXPECT_EQ(dense.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(dense.message(), AllOf(HasSubstr("redundant experts 3"), HasSubstr("no experts")));
}

TEST(Placements, PlaceEverySparseLayerAlikeByItsAbsoluteIndex) {
  const Result<Placement> placement =
      LinearPlacement({.num_experts = 4, .workers = 3, .layers = {1, 3, 6}, .redundant_experts = 1});
  ASSERT_TRUE(placement.ok());
  EXPECT_EQ(placement->num_experts, 4);
  EXPECT_EQ(placement->workers, 3);
  ASSERT_EQ(placement->layers.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(placement->layers[i].layer, (std::vector{1, 3, 6})[i]);
    EXPECT_EQ(placement->layers[i].slots, placement->layers[0].slots);
  }
}

TEST(Placements, OfADenseModelHaveNoLayers) {
  const Result<Placement> placement = RoundRobinPlacement({.num_experts = 0, .workers = 2});
  ASSERT_TRUE(placement.ok());
  EXPECT_THAT(placement->layers, IsEmpty());
}

// Whatever the algorithms make passes the check of placements, and is as even as can be.
TEST(Placements, AreRightAndEvenForEveryShape) {
  for (const Algorithm algorithm : {LinearPlacement, RoundRobinPlacement}) {
    for (int experts = 1; experts <= 9; ++experts) {
      for (int workers = 1; workers <= 10; ++workers) {
        const PlacementShape shape{.num_experts = experts, .workers = workers, .layers = {0, 2}};
        const Result<Placement> placement = algorithm(shape);
        ASSERT_TRUE(placement.ok());
        EXPECT_TRUE(CheckPlacement(*placement, shape).ok());
        const auto [least, most] = std::ranges::minmax(placement->layers[0].slots, {}, &std::vector<int>::size);
        EXPECT_LE(most.size() - least.size(), 1u) << experts << " experts on " << workers;
      }
    }
  }
}

class CheckPlacementTest : public ::testing::Test {
 protected:
  CheckPlacementTest() : placement_(*LinearPlacement(shape_)) {}

  /// The message of the refusal.
  std::string Refusal() const {
    const Status status = CheckPlacement(placement_, shape_);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  }

  PlacementShape shape_{.num_experts = 4, .workers = 2, .layers = {1, 3}};
  Placement placement_;
};

TEST_F(CheckPlacementTest, TakesReplicasAndIdleWorkers) {
  EXPECT_TRUE(CheckPlacement(placement_, shape_).ok());
  placement_.layers[1].slots = {{3, 1, 0, 2}, {}};
  EXPECT_TRUE(CheckPlacement(placement_, shape_).ok());
  placement_.layers[0].slots = {{3, 1, 0, 2}, {2, 3}};
  EXPECT_TRUE(CheckPlacement(placement_, shape_).ok());
}

TEST_F(CheckPlacementTest, ExpertsOfAnotherModel) {
  placement_.num_experts = 5;
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("num_experts 5"), HasSubstr("4")));
}

TEST_F(CheckPlacementTest, WorkersOfAnotherCluster) {
  placement_.workers = 3;
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("workers 3"), HasSubstr("2")));
}

TEST_F(CheckPlacementTest, ALayerTooFew) {
  placement_.layers.pop_back();
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("1 layers"), HasSubstr("2")));
}

TEST_F(CheckPlacementTest, AnotherLayer) {
  placement_.layers[1].layer = 2;
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("layer 2"), HasSubstr("3")));
}

TEST_F(CheckPlacementTest, ALayerTwice) {
  placement_.layers[1].layer = 1;
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("layer 1"), HasSubstr("3")));
}

TEST_F(CheckPlacementTest, SlotsForAnotherNumberOfWorkers) {
  placement_.layers[1].slots.emplace_back();
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("layer 3"), HasSubstr("3 workers"), HasSubstr("2")));
}

TEST_F(CheckPlacementTest, AnExpertThatTheModelDoesNotHave) {
  placement_.layers[0].slots[1] = {2, 4};
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("layer 1, worker 1"), HasSubstr("expert 4"), HasSubstr("3")));
  placement_.layers[0].slots[1] = {-1};
  EXPECT_THAT(Refusal(), HasSubstr("expert -1"));
}

TEST_F(CheckPlacementTest, AnExpertTwiceOnAWorker) {
  placement_.layers[1].slots[0] = {0, 1, 0};
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("layer 3, worker 0"), HasSubstr("expert 0"), HasSubstr("twice")));
}

TEST_F(CheckPlacementTest, AnExpertWithoutASlot) {
  placement_.layers[1].slots = {{0, 1}, {3}};
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("layer 3"), HasSubstr("expert 2"), HasSubstr("no slot")));
}

/// (worker, slot) of every replica.
std::vector<std::pair<int, int>> ReplicasOf(const ReplicaTable& table, std::size_t layer, std::size_t expert) {
  std::vector<std::pair<int, int>> places;
  for (const ReplicaSlot& replica : table.replicas(layer, expert))
    places.emplace_back(replica.worker.value(), static_cast<int>(replica.slot));
  return places;
}

TEST(ReplicaTable, ListsTheReplicasOfAnExpertInOrderOfWorker) {
  const ReplicaTable table(
      {.num_experts = 3,
       .workers = 3,
       .layers = {{.layer = 1, .slots = {{2, 0}, {1, 2}, {2}}}, {.layer = 5, .slots = {{0}, {}, {2, 1}}}}});
  using Places = std::vector<std::pair<int, int>>;
  EXPECT_EQ(ReplicasOf(table, 0, 0), (Places{{0, 1}}));
  EXPECT_EQ(ReplicasOf(table, 0, 1), (Places{{1, 0}}));
  EXPECT_EQ(ReplicasOf(table, 0, 2), (Places{{0, 0}, {1, 1}, {2, 0}}));
  EXPECT_EQ(ReplicasOf(table, 1, 0), (Places{{0, 0}}));
  EXPECT_EQ(ReplicasOf(table, 1, 1), (Places{{2, 1}}));
  EXPECT_EQ(ReplicasOf(table, 1, 2), (Places{{2, 0}}));
}

TEST(ReplicaTable, FindsEverySlotOfAPlacement) {
  const Placement placement =
      *RoundRobinPlacement({.num_experts = 7, .workers = 3, .layers = {0, 1}, .redundant_experts = 9});
  const ReplicaTable table(placement);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    std::size_t found = 0;
    for (int expert = 0; expert < 7; ++expert) {
      for (const ReplicaSlot& replica : table.replicas(layer, static_cast<std::size_t>(expert))) {
        EXPECT_EQ(placement.layers[layer].slots[replica.worker.index()].at(replica.slot), expert);
        ++found;
      }
    }
    EXPECT_EQ(found, 16u);
  }
}

TEST(ReplicaTable, OfSomeWorkersHasTheirSlotsAlone) {
  const Placement placement{.num_experts = 3, .workers = 2, .layers = {{.layer = 0, .slots = {{0, 1}, {1, 2}}}}};
  const ReplicaTable first(placement, {1, 0});
  EXPECT_FALSE(first.complete());
  EXPECT_EQ(first.replicas(0, 0).size(), 1u);
  EXPECT_EQ(first.replicas(0, 1).size(), 1u);
  EXPECT_EQ(first.replicas(0, 1)[0].worker, WorkerId(0));
  EXPECT_TRUE(first.replicas(0, 2).empty());
  const ReplicaTable both(placement);
  EXPECT_TRUE(both.complete());
  EXPECT_EQ(both.replicas(0, 1).size(), 2u);
}

TEST(ReplicaTableDeathTest, RefusesWhatThePlacementDoesNotHave) {
  const ReplicaTable table({.num_experts = 2, .workers = 1, .layers = {{.layer = 0, .slots = {{0, 1}}}}});
  EXPECT_DEATH((void)table.replicas(0, 2), "broken invariant");
  EXPECT_DEATH((void)table.replicas(1, 0), "broken invariant");
}

}  // namespace
}  // namespace moe
