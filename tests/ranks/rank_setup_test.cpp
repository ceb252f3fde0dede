// What a rank makes of the user's choices.
#include "ranks/rank_setup.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "tests/router/engine_harness.h"

namespace moe {
namespace {

constexpr Topology kEmbedded{.workers = 1, .embedded = true};
constexpr Topology kTwoWorkers{.workers = 2, .embedded = false};

RankSetup Prepare(const char* model, const Topology& topology, int micro_batches) {
  Result<RankSetup> setup = PrepareRank({.model = SourcePath(model), .threads = 1, .micro_batches = micro_batches},
                                        {.topology = topology, .node_local_size = topology.ranks()});
  MOE_CHECK(setup.ok(), setup.status().message());
  return *std::move(setup);
}

TEST(RankSetup, MicroBatchesAreMeasuredWhereRouterAndWorkersCanComputeAtATime) {
  const RankSetup apart = Prepare("tests/goldens/mixtral", kTwoWorkers, 0);
  EXPECT_EQ(apart.micro_batches.most, 2);
  EXPECT_TRUE(apart.micro_batches.measure);
  const RankSetup embedded = Prepare("tests/goldens/mixtral", kEmbedded, 0);
  EXPECT_EQ(embedded.micro_batches.most, 1);
  EXPECT_FALSE(embedded.micro_batches.measure);
  const RankSetup dense = Prepare("tests/goldens/mistral", kTwoWorkers, 0);
  EXPECT_EQ(dense.micro_batches.most, 1);
}

TEST(RankSetup, AsManyMicroBatchesAsAskedForFitTheTransport) {
  for (const Topology& topology : {kEmbedded, kTwoWorkers}) {
    for (int asked = 1; asked <= kMaxMicroBatches; ++asked) {
      const RankSetup setup = Prepare("tests/goldens/mixtral", topology, asked);
      EXPECT_EQ(setup.micro_batches.most, asked);
      EXPECT_FALSE(setup.micro_batches.measure);
      EXPECT_EQ(setup.exchange.max_micro_batches, static_cast<std::size_t>(asked));
      EXPECT_GE(setup.transport_limits.max_exchanges, asked);
    }
  }
}

/// The types that one process holds the weights of `golden` in; it must be able to.
WeightTypes TypesOf(const std::string& golden, std::optional<WeightType> type, std::optional<WeightType> attention) {
  const RankOptions options{
      .model = SourcePath("tests/goldens/" + golden),
      .weight_type = type,
      .attention_weight_type = attention,
      .threads = 1,
  };
  const Result<RankSetup> setup = PrepareRank(options, {.topology = {}, .rank = Topology().router()});
  EXPECT_TRUE(setup.ok()) << setup.status().message();
  return setup.ok() ? setup->weight_types : WeightTypes();
}

WeightTypes Types(WeightType mlps, WeightType attention) {
  WeightTypes types = mlps;
  types.attention = attention;
  return types;
}

TEST(PrepareRank, TakesTheStoredTypeWhereNoneIsChosen) {
  EXPECT_EQ(TypesOf("mixtral", {}, {}), Types(WeightType::kF32, WeightType::kF32));
  EXPECT_EQ(TypesOf("mixtral_bf16", {}, {}), Types(WeightType::kBf16, WeightType::kBf16));
}

TEST(PrepareRank, TakesOneTypeForAllButAttentionBesideInt4) {
  EXPECT_EQ(TypesOf("mixtral", WeightType::kInt8, {}), Types(WeightType::kInt8, WeightType::kInt8));
  EXPECT_EQ(TypesOf("mixtral", WeightType::kInt4, {}), Types(WeightType::kInt4, WeightType::kInt8));
  EXPECT_EQ(TypesOf("mixtral", WeightType::kBf16, {}), Types(WeightType::kBf16, WeightType::kBf16));
}

TEST(PrepareRank, TakesAttentionInATypeOfItsOwn) {
  EXPECT_EQ(TypesOf("mixtral", WeightType::kInt4, WeightType::kF32), Types(WeightType::kInt4, WeightType::kF32));
  EXPECT_EQ(TypesOf("mixtral", {}, WeightType::kInt8), Types(WeightType::kF32, WeightType::kInt8));
}

}  // namespace
}  // namespace moe
