// What a rank makes of the user's choices.
#include "ranks/rank_setup.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace moe
