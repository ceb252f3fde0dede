#include "router/dispatch_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <span>
#include <utility>
#include <vector>

namespace moe {
namespace {

struct Case {
  const char* name = "";
  int workers = 1;
  int experts = 8;
  int redundant = 0;
  bool round_robin = false;
  std::size_t tokens = 1;
  std::size_t k = 2;
  int hot = 0;                  // experts that tokens choose from; 0: all
  std::size_t drop_one_in = 0;  // pairs get weight 0; 0: none
};

Placement Place(const Case& c) {
  const PlacementShape shape{
      .num_experts = c.experts, .workers = c.workers, .layers = {0, 3}, .redundant_experts = c.redundant};
  Result<Placement> placement = c.round_robin ? RoundRobinPlacement(shape) : LinearPlacement(shape);
  MOE_CHECK(placement.ok(), placement.status().message());
  return *std::move(placement);
}

// k distinct experts and as many weights for each token.
struct TopK {
  TopK(const Case& c, std::uint64_t seed) : ids(c.tokens * c.k), weights(c.tokens * c.k), k(c.k) {
    std::mt19937_64 random(seed);
    std::vector<std::int32_t> all(static_cast<std::size_t>(c.hot > 0 ? c.hot : c.experts));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(i);
    for (std::size_t token = 0; token < c.tokens; ++token) {
      std::shuffle(all.begin(), all.end(), random);
      for (std::size_t j = 0; j < c.k; ++j) {
        ids[token * c.k + j] = all[j];
        // A pair of weight 0 is one that is not wanted.
        const bool dropped = c.drop_one_in > 0 && random() % c.drop_one_in == 0;
        weights[token * c.k + j] = dropped ? 0 : static_cast<float>(1 + random() % 1000) / 1000.0f;
      }
    }
  }
  MatrixView<const std::int32_t> id_view() const { return {ids.data(), ids.size() / k, k}; }
  MatrixView<const float> weight_view() const { return {weights.data(), weights.size() / k, k}; }
  bool wanted(std::size_t token, std::size_t j) const { return weights[token * k + j] != 0; }

  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  std::size_t k;
};

class DispatchPlanTest : public testing::TestWithParam<Case> {
 protected:
  DispatchPlanTest() : placement_(Place(GetParam())), replicas_(placement_), plan_(Shape()) {}

  static DispatchPlan::Shape Shape() {
    const Case& c = GetParam();
    return {.max_tokens = c.tokens,
            .experts_per_token = c.k,
            .num_experts = static_cast<std::size_t>(c.experts),
            .workers = c.workers};
  }
  std::size_t num_workers() const { return static_cast<std::size_t>(GetParam().workers); }
  const DispatchPlan::Part& part(std::size_t worker) const { return plan_.part(WorkerId(static_cast<int>(worker))); }

  const Placement placement_;
  const ReplicaTable replicas_;
  DispatchPlan plan_;
};

TEST_P(DispatchPlanTest, EveryPairGoesOnceToAWorkerThatHostsItsExpert) {
  const Case& c = GetParam();
  for (std::size_t layer = 0; layer < placement_.layers.size(); ++layer) {
    const TopK topk(c, 11 + layer);
    plan_.Build(replicas_, {.sparse_index = layer, .ids = topk.id_view(), .weights = topk.weight_view()});
    // The naive plan: what each worker must be asked, as (token, expert, weight).
    std::multiset<std::pair<std::size_t, std::int32_t>> asked;
    for (std::size_t w = 0; w < num_workers(); ++w) {
      std::vector<std::uint32_t> tokens_of_pairs;
      for (const DispatchPair& pair : part(w).pairs) {
        ASSERT_LT(pair.row, part(w).tokens.size());
        const std::uint32_t token = part(w).tokens[pair.row];
        const std::vector<int>& slots = placement_.layers[layer].slots[w];
        ASSERT_LT(pair.slot, slots.size());
        const std::int32_t expert = slots[pair.slot];
        asked.emplace(token, expert);
        const auto chosen = topk.id_view().row(token);
        const auto j = static_cast<std::size_t>(std::find(chosen.begin(), chosen.end(), expert) - chosen.begin());
        ASSERT_LT(j, c.k) << "token " << token << " did not choose expert " << expert;
        EXPECT_EQ(pair.weight, topk.weight_view()(token, j));
        tokens_of_pairs.push_back(token);
      }
      EXPECT_TRUE(std::is_sorted(tokens_of_pairs.begin(), tokens_of_pairs.end()));
      tokens_of_pairs.erase(std::unique(tokens_of_pairs.begin(), tokens_of_pairs.end()), tokens_of_pairs.end());
      EXPECT_EQ(part(w).tokens, tokens_of_pairs) << "one row a token, and none without a pair";
    }
    std::multiset<std::pair<std::size_t, std::int32_t>> wanted;
    for (std::size_t token = 0; token < c.tokens; ++token)
      for (std::size_t j = 0; j < c.k; ++j)
        if (topk.wanted(token, j)) wanted.emplace(token, topk.id_view()(token, j));
    EXPECT_EQ(asked, wanted);
  }
}

TEST_P(DispatchPlanTest, SourcePointsToThePairOfItsTokenAndExpert) {
  const Case& c = GetParam();
  const TopK topk(c, 5);
  plan_.Build(replicas_, {.sparse_index = 1, .ids = topk.id_view(), .weights = topk.weight_view()});
  std::set<std::pair<std::uint32_t, std::uint32_t>> distinct;
  for (std::size_t token = 0; token < c.tokens; ++token) {
    for (std::size_t j = 0; j < c.k; ++j) {
      if (!topk.wanted(token, j)) continue;
      const DispatchPlan::Source source = plan_.source(token, j);
      ASSERT_LT(source.worker, num_workers());
      ASSERT_LT(source.pair, part(source.worker).pairs.size());
      const DispatchPair& pair = part(source.worker).pairs[source.pair];
      EXPECT_EQ(part(source.worker).tokens[pair.row], token);
      EXPECT_EQ(placement_.layers[1].slots[source.worker][pair.slot], topk.id_view()(token, j));
      EXPECT_TRUE(distinct.emplace(source.worker, source.pair).second) << "two pairs come back from one place";
    }
  }
}

TEST_P(DispatchPlanTest, CountsAreOfWhatIsSent) {
  const Case& c = GetParam();
  const TopK topk(c, 3);
  plan_.Build(replicas_, {.sparse_index = 0, .ids = topk.id_view(), .weights = topk.weight_view()});
  for (std::size_t w = 0; w < num_workers(); ++w) EXPECT_EQ(plan_.worker_rows()[w], part(w).pairs.size());
  for (std::int32_t expert = 0; expert < c.experts; ++expert) {
    std::size_t tokens = 0;
    for (std::size_t i = 0; i < topk.ids.size(); ++i) tokens += topk.ids[i] == expert && topk.weights[i] != 0;
    EXPECT_EQ(plan_.expert_tokens()[static_cast<std::size_t>(expert)], static_cast<std::uint32_t>(tokens));
  }
}

TEST_P(DispatchPlanTest, TheFullestWorkerHasNoMoreRowsThanInTurns) {
  const Case& c = GetParam();
  for (std::uint64_t seed = 20; seed < 30; ++seed) {
    const TopK topk(c, seed);
    plan_.Build(replicas_, {.sparse_index = 0, .ids = topk.id_view(), .weights = topk.weight_view()});
    std::vector<std::uint32_t> turns(static_cast<std::size_t>(c.experts));
    std::vector<std::uint32_t> rows(num_workers());
    for (std::size_t i = 0; i < topk.ids.size(); ++i) {
      if (topk.weights[i] == 0) continue;
      const auto expert = static_cast<std::size_t>(topk.ids[i]);
      const std::span<const ReplicaSlot> choice = replicas_.replicas(0, expert);
      ++rows[choice[turns[expert]++ % choice.size()].worker.index()];
    }
    EXPECT_LE(std::ranges::max(plan_.worker_rows()), std::ranges::max(rows));
  }
}

TEST_P(DispatchPlanTest, PartsOfALayerAreBalancedTogether) {
  const Case& c = GetParam();
  const TopK topk(c, 4);
  const std::size_t half = c.tokens / 2;
  std::vector<std::size_t> pairs(num_workers());
  for (const auto& [first, count] : {std::pair{std::size_t{0}, half}, std::pair{half, c.tokens - half}}) {
    plan_.Build(replicas_, {.sparse_index = 0,
                            .first_token = first,
                            .ids = {topk.ids.data() + first * c.k, count, c.k},
                            .weights = {topk.weights.data() + first * c.k, count, c.k}});
    for (std::size_t w = 0; w < num_workers(); ++w) pairs[w] += part(w).pairs.size();
  }
  std::size_t wanted = 0;
  for (std::size_t i = 0; i < topk.weights.size(); ++i) wanted += topk.weights[i] != 0;
  for (std::size_t w = 0; w < num_workers(); ++w) {
    EXPECT_EQ(plan_.worker_rows()[w], pairs[w]);
    wanted -= pairs[w];
  }
  EXPECT_EQ(wanted, 0u);
}

TEST_P(DispatchPlanTest, APlanDependsOnItsStepAlone) {
  const TopK one(GetParam(), 1);
  const TopK other(GetParam(), 2);
  const auto built = [&] {
    plan_.Build(replicas_, {.sparse_index = 0, .ids = one.id_view(), .weights = one.weight_view()});
    std::vector<std::vector<std::uint32_t>> flat;
    for (std::size_t w = 0; w < num_workers(); ++w) {
      flat.push_back(part(w).tokens);
      for (const DispatchPair& pair : part(w).pairs) flat.push_back({pair.row, pair.slot});
    }
    return flat;
  };
  const auto first = built();
  plan_.Build(replicas_, {.sparse_index = 1, .ids = other.id_view(), .weights = other.weight_view()});
  EXPECT_EQ(built(), first);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, DispatchPlanTest,
    testing::Values(Case{.name = "OneWorker", .tokens = 17},
                    Case{.name = "UnevenCounts", .workers = 7, .tokens = 64, .k = 3},
                    Case{.name = "RoundRobin", .workers = 3, .round_robin = true, .tokens = 33},
                    Case{.name = "MoreWorkersThanExperts", .workers = 11, .tokens = 9},
                    Case{.name = "AllReplicated", .workers = 4, .redundant = 8, .tokens = 101, .k = 2},
                    Case{.name = "SomeReplicatedTwice", .workers = 5, .experts = 4, .redundant = 9, .tokens = 50},
                    Case{.name = "Skewed", .workers = 4, .redundant = 3, .tokens = 64, .k = 2, .hot = 2},
                    Case{.name = "EveryExpertOfEveryToken", .workers = 3, .tokens = 5, .k = 8},
                    Case{.name = "SomeDropped", .workers = 3, .redundant = 5, .tokens = 80, .k = 3, .drop_one_in = 3},
                    Case{.name = "MostDropped", .workers = 2, .tokens = 40, .k = 1, .hot = 1, .drop_one_in = 2}),
    [](const auto& test) { return test.param.name; });

TEST(DispatchPlan, ATokenWithoutAWantedPairSendsNoRow) {
  const Placement placement = Place({.workers = 2});
  const ReplicaTable replicas(placement);
  DispatchPlan plan({.max_tokens = 3, .experts_per_token = 2, .num_experts = 8, .workers = 2});
  const std::vector<std::int32_t> ids = {0, 7, 1, 6, 2, 5};
  const std::vector<float> weights = {0.5f, 0, 0, 0, -0.25f, 0.75f};  // a negative weight counts
  plan.Build(replicas, {.ids = {ids.data(), 3, 2}, .weights = {weights.data(), 3, 2}});
  EXPECT_EQ(plan.part(WorkerId(0)).tokens, (std::vector<std::uint32_t>{0, 2}));
  EXPECT_EQ(plan.part(WorkerId(0)).pairs.size(), 2u);
  EXPECT_EQ(plan.part(WorkerId(1)).tokens, std::vector<std::uint32_t>{2});
  const std::vector<std::uint32_t> counts(plan.expert_tokens().begin(), plan.expert_tokens().end());
  EXPECT_EQ(counts, (std::vector<std::uint32_t>{1, 0, 1, 0, 0, 1, 0, 0}));
}

TEST(DispatchPlan, TokensGoToTheReplicasThatAreLeft) {
  const Case c{.workers = 3, .redundant = 8, .tokens = 50, .k = 3};
  const Placement placement = Place(c);
  const TopK topk(c, 8);
  for (std::size_t lost = 0; lost < 3; ++lost) {
    WorkerMask left = AllWorkers(3);
    left[lost] = 0;
    const ReplicaTable replicas(placement, left);
    ASSERT_TRUE(replicas.complete());
    DispatchPlan plan({.max_tokens = 50, .experts_per_token = 3, .num_experts = 8, .workers = 3});
    plan.Build(replicas, {.ids = topk.id_view(), .weights = topk.weight_view()});
    std::size_t pairs = 0;
    for (int w = 0; w < 3; ++w) pairs += plan.part(WorkerId(w)).pairs.size();
    EXPECT_EQ(pairs, 50u * 3);
    EXPECT_TRUE(plan.part(WorkerId(static_cast<int>(lost))).pairs.empty());
    EXPECT_TRUE(plan.unserved().empty());
  }
}

TEST(DispatchPlan, LocalWorkersGetMoreRowsAndNobodyMoreThanTheFullest) {
  const Case c{.workers = 4, .redundant = 16, .tokens = 50, .k = 2, .hot = 3};
  const ReplicaTable replicas(Place(c));
  const TopK topk(c, 8);
  const auto rows = [&](const WorkerMask& local) {
    DispatchPlan plan({.max_tokens = 50, .experts_per_token = 2, .num_experts = 8, .workers = 4});
    plan.SetLocal(local);
    plan.Build(replicas, {.ids = topk.id_view(), .weights = topk.weight_view()});
    return std::vector<std::uint32_t>(plan.worker_rows().begin(), plan.worker_rows().end());
  };
  const std::vector<std::uint32_t> plain = rows({0, 0, 0, 0});
  EXPECT_EQ(rows({1, 1, 1, 1}), plain) << "nobody is elsewhere";
  for (std::size_t w = 0; w < 4; ++w) {
    WorkerMask local = NoWorkers(4);
    local[w] = 1;
    EXPECT_EQ(std::ranges::max(rows(local)), std::ranges::max(plain));
    EXPECT_GE(rows(local)[w], plain[w]);
  }
}

TEST(DispatchPlan, ATokenThatNobodyCanServeIsLeftOutWholeAndNamed) {
  const Placement placement = Place({.workers = 2});  // 0 to 3 and 4 to 7
  const ReplicaTable replicas(placement, {1, 0});
  EXPECT_FALSE(replicas.complete());
  DispatchPlan plan({.max_tokens = 5, .experts_per_token = 2, .num_experts = 8, .workers = 2});
  // The third token does not want what it lacks, and the fourth is waited for by nobody.
  const std::vector<std::int32_t> ids = {0, 3, 1, 6, 2, 5, 2, 7};
  const std::vector<float> weights = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0, 0.5f, 0.5f};
  const std::vector<std::uint8_t> left_out = {0, 0, 0, 1};
  plan.Build(replicas,
             {.first_token = 1, .ids = {ids.data(), 4, 2}, .weights = {weights.data(), 4, 2}, .left_out = left_out});
  ASSERT_EQ(plan.unserved().size(), 1u);
  EXPECT_EQ(plan.unserved()[0].token, 2u) << "of the step";
  EXPECT_EQ(plan.unserved()[0].expert, 6u);
  EXPECT_EQ(plan.part(WorkerId(0)).tokens, (std::vector<std::uint32_t>{0, 2}));
  EXPECT_EQ(plan.part(WorkerId(0)).pairs.size(), 3u);
  for (const std::size_t token : {std::size_t{2}, std::size_t{4}})
    for (std::size_t j = 0; j < 2; ++j) EXPECT_EQ(plan.source(token, j).worker, DispatchPlan::kNowhere);
  EXPECT_EQ(plan.source(1, 1).worker, 0u);
}

TEST(DispatchPlan, NoTokensMakeAnEmptyPlan) {
  const Placement placement = Place({.workers = 2});
  const ReplicaTable replicas(placement);
  DispatchPlan plan({.max_tokens = 4, .experts_per_token = 2, .num_experts = 8, .workers = 2});
  plan.Build(replicas, {.ids = {nullptr, 0, 2}, .weights = {nullptr, 0, 2}});
  EXPECT_TRUE(plan.part(WorkerId(0)).pairs.empty());
  EXPECT_TRUE(plan.part(WorkerId(1)).tokens.empty());
}

}  // namespace
}  // namespace moe
