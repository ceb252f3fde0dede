#include "tests/router/migration_property.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/router/identity.h"

namespace moe {
namespace {

/// Breaks some loads: by the numbers that it counts, so that a run can be repeated as far as threads allow.
class LoadFaults {
 public:
  explicit LoadFaults(std::uint64_t seed) : seed_(seed) {}

  Result<MlpWeights> operator()(Result<MlpWeights> loaded) {
    const std::uint64_t number = count_.fetch_add(1);
    std::mt19937_64 random(seed_ * 1000 + number);
    switch (random() % 80) {
      case 0: return NotFound("load ", number, " fails by script");
      case 1: loaded->down.storage()[random() % loaded->down.bytes()] ^= std::byte{1}; return loaded;
      default: return loaded;
    }
  }

 private:
  const std::uint64_t seed_;
  std::atomic<std::uint64_t> count_{0};
};

bool Finished(const std::vector<Client>& clients) {
  return std::ranges::all_of(clients, [](const Client& client) { return client.watcher->ends() > 0; });
}

void ExpectHosted(EngineHarness& harness) {
  const std::shared_ptr<const Placement> placement = harness.router().placement();
  const ModelConfig& config = harness.config();
  for (int w = 0; w < placement->workers; ++w) {
    const HostedExperts hosted = harness.hosted(w);
    EXPECT_EQ(hosted.generation, placement->generation);
    std::uint64_t parameters = 0;
    ASSERT_EQ(hosted.layers.size(), placement->layers.size());
    for (std::size_t i = 0; i < hosted.layers.size(); ++i) {
      const LayerPlacement& placed = placement->layers[i];
      EXPECT_EQ(hosted.layers[i].experts, placed.slots[static_cast<std::size_t>(w)]);
      const MlpSpec& mlp = config.layers[static_cast<std::size_t>(placed.layer)].moe->expert;
      parameters += placed.slots[static_cast<std::size_t>(w)].size() * (mlp.gated() ? 3 : 2) *
                    static_cast<std::uint64_t>(mlp.intermediate) * static_cast<std::uint64_t>(config.hidden);
    }
    EXPECT_EQ(hosted.parameters, parameters) << "nothing else is in memory";
  }
}

}  // namespace

Placement RandomPlacement(const Placement& like, std::mt19937_64& random) {
  Placement placement = like;
  for (LayerPlacement& layer : placement.layers) {
    for (std::vector<int>& slots : layer.slots) slots.clear();
    for (int expert = 0; expert < placement.num_experts; ++expert) {
      std::vector<std::size_t> workers(layer.slots.size());
      for (std::size_t w = 0; w < workers.size(); ++w) workers[w] = w;
      std::ranges::shuffle(workers, random);
      const std::size_t copies = 1 + (random() % 4 == 0 ? random() % workers.size() : 0);
      for (std::size_t i = 0; i < copies; ++i) layer.slots[workers[i]].push_back(expert);
    }
    for (std::vector<int>& slots : layer.slots) std::ranges::shuffle(slots, random);
  }
  return placement;
}

void ExpectPlainBitsWhileMigrating(const MigrationCase& c) {
  SCOPED_TRACE(Cat("seed ", c.seed));
  HarnessOptions options = c.options;
  LoadFaults faults(c.seed);
  if (c.failures) options.on_load = [&](int, int, int, Result<MlpWeights> loaded) { return faults(std::move(loaded)); };
  EngineHarness plain({.model = options.model, .max_step_tokens = 128});
  const std::vector<Client> expected = plain.RunAll(MixedRequests(plain.config()));

  EngineHarness harness(options);
  std::vector<Client> clients;
  for (int i = 0; i < c.batches; ++i) EXPECT_TRUE(harness.Submit(MixedRequests(harness.config()), clients).ok());
  harness.Start();
  std::mt19937_64 random(c.seed);
  std::uint64_t begun = 0;
  std::uint64_t refused = 0;
  const auto enough = [&] {
    const MigrationProgress progress = harness.router().migration();
    return progress.finished > 0 && (progress.failed > 0 || !c.failures);
  };
  while (!Finished(clients) || !enough()) {
    const Result<std::uint64_t> generation =
        harness.router().BeginMigration(RandomPlacement(harness.placement(), random));
    ++(generation.ok() ? begun : refused);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
  }
  while (harness.router().migration().finished + harness.router().migration().failed < begun)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const MigrationProgress progress = harness.router().migration();
  const double generation_shown = harness.Metric("moe_placement_generation");
  ASSERT_TRUE(harness.Stop().ok());
  for (std::size_t i = 0; i < clients.size(); ++i) {
    SCOPED_TRACE(Cat("request ", i));
    ExpectSameBits(*clients[i].output, *expected[i % expected.size()].output);
  }
  EXPECT_EQ(progress.phase, MigrationPhase::kIdle);
  EXPECT_GE(progress.finished, 1u);
  if (c.failures) {
    EXPECT_GE(progress.failed, 1u);
    EXPECT_NE(progress.last_failure, "");
  } else {
    EXPECT_EQ(progress.failed, 0u) << progress.last_failure;
  }
  EXPECT_EQ(generation_shown, static_cast<double>(harness.router().placement()->generation));
  EXPECT_EQ(harness.Metric("moe_migrations_total{outcome=\"finished\"}"), static_cast<double>(progress.finished));
  EXPECT_EQ(harness.Metric("moe_migrations_total{outcome=\"failed\"}"), static_cast<double>(progress.failed));
  EXPECT_GT(harness.Metric("moe_migration_bytes_total"), 0);
  ExpectHosted(harness);
  testing::Test::RecordProperty("migrations", static_cast<int>(progress.finished + progress.failed));
  testing::Test::RecordProperty("refused", static_cast<int>(refused));
}

}  // namespace moe
