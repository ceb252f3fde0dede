// Experts that move in a fleet: workers that are lost meanwhile and come back, and routers with placements of their
// own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <thread>

#include "tests/ranks/fleet_harness.h"
#include "tests/router/identity.h"
#include "tests/router/migration_property.h"

namespace moe {
namespace {

using testing::HasSubstr;
using namespace std::chrono_literals;

const FleetOptions kOptions{.redundant_experts = 6, .max_step_tokens = 128};

/// What each request gives when nothing happens.
const std::vector<Client>& Undisturbed() {
  static std::vector<Client> clients;
  if (clients.empty()) {
    EngineHarness harness({.max_step_tokens = 128});
    clients = harness.RunAll(MixedRequests(harness.config()));
  }
  return clients;
}

void ExpectUndisturbed(const std::vector<Client>& clients) {
  const std::vector<Client>& expected = Undisturbed();
  for (std::size_t i = 0; i < clients.size(); ++i) {
    SCOPED_TRACE(Cat("request ", i));
    clients[i].watcher->WaitFinished();
    EXPECT_EQ(clients[i].output->result.status.message(), "");
    ExpectSameBits(*clients[i].output, *expected[i].output);
  }
}

/// Waits for its end; whether it has succeeded.
bool Migrate(FleetHarness& harness, const Placement& placement) {
  const MigrationProgress before = harness.router().migration();
  const Result<std::uint64_t> generation = harness.router().BeginMigration(placement);
  EXPECT_TRUE(generation.ok()) << generation.status().message();
  while (true) {
    const MigrationProgress now = harness.router().migration();
    if (now.finished > before.finished) return true;
    if (now.failed > before.failed) return false;
    std::this_thread::sleep_for(1ms);
  }
}

std::uint64_t HostedGeneration(FleetHarness& harness, int worker) {
  return harness.workers().worker(worker).worker().description().generation;
}

/// Of all that the worker has in memory.
std::uint64_t HostedParameters(FleetHarness& harness, int worker) {
  return harness.workers().worker(worker).worker().description().parameters;
}

/// Of the slots that the placement gives the worker, each an expert of three matrices of 56 by 44.
std::uint64_t PlacedParameters(const Placement& placement, int worker) {
  std::uint64_t slots = 0;
  for (const LayerPlacement& layer : placement.layers) slots += layer.slots[static_cast<std::size_t>(worker)].size();
  return slots * 3u * 56u * 44u;
}

/// Each worker has what the placement in force says, and nothing else.
void ExpectHosted(FleetHarness& harness) {
  const std::shared_ptr<const Placement> placement = harness.router().placement();
  for (int w = 0; w < placement->workers; ++w) {
    SCOPED_TRACE(Cat("worker ", w));
    const std::optional<WorkerAssignment> assignment = harness.workers().worker(w).worker().assignment();
    ASSERT_TRUE(assignment.has_value());
    EXPECT_EQ(assignment->generation, placement->generation);
    for (std::size_t i = 0; i < placement->layers.size(); ++i)
      EXPECT_EQ(assignment->layers[i].slots, placement->layers[i].slots[static_cast<std::size_t>(w)]);
    EXPECT_EQ(HostedParameters(harness, w), PlacedParameters(*placement, w));
  }
}

TEST(MigratingFleet, MovesAndSaysSo) {
  FleetHarness harness(kOptions);
  harness.Start();
  std::mt19937_64 random(1);
  for (int i = 0; i < 5; ++i) {
    const std::vector<Client> clients = harness.Submit(MixedRequests(harness.config()));
    EXPECT_TRUE(Migrate(harness, RandomPlacement(harness.placement(), random)));
    ExpectHosted(harness);
    ExpectUndisturbed(clients);
    for (int w = 0; w < 3; ++w)
      EXPECT_EQ(harness.fleet().Workers()[static_cast<std::size_t>(w)].description.generation,
                harness.router().placement()->generation);
  }
  EXPECT_TRUE(harness.Stop().ok());
}

TEST(MigratingFleet, AWorkerThatReturnsHostsThePlacementInForceThen) {
  FleetHarness harness(kOptions);
  harness.Start();
  std::mt19937_64 random(2);
  ASSERT_TRUE(Migrate(harness, RandomPlacement(harness.placement(), random)));
  harness.workers().Kill(1);
  harness.WaitForWorkers(2);
  EXPECT_FALSE(Migrate(harness, RandomPlacement(harness.placement(), random)));
  EXPECT_THAT(harness.router().migration().last_failure, HasSubstr("rank 2 (test) is lost"));
  EXPECT_EQ(harness.router().placement()->generation, 2u);
  harness.workers().Start(1);
  harness.WaitForWorkers(3);
  EXPECT_EQ(HostedGeneration(harness, 1), 2u);
  ExpectUndisturbed(harness.Submit(MixedRequests(harness.config())));
  ASSERT_TRUE(Migrate(harness, RandomPlacement(harness.placement(), random)));
  ExpectHosted(harness);
  ExpectUndisturbed(harness.Submit(MixedRequests(harness.config())));
  EXPECT_TRUE(harness.Stop().ok());
}

TEST(MigratingFleet, AWorkerLostMeanwhileLeavesTheOldPlacementInForce) {
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    SCOPED_TRACE(Cat("seed ", seed));
    FleetOptions options = kOptions;
    options.migration = {.bytes_per_s = 1'000, .interval = 0ms};  // half a minute an expert: it is still loading
    FleetHarness harness(options);
    harness.Start();
    std::mt19937_64 random(seed);
    const std::vector<Client> clients = harness.Submit(MixedRequests(harness.config()));
    ASSERT_TRUE(harness.router().BeginMigration(RandomPlacement(harness.placement(), random)).ok());
    while (harness.router().migration().phase != MigrationPhase::kLoad) std::this_thread::sleep_for(1ms);
    harness.workers().Kill(static_cast<int>(seed % 3));
    harness.WaitForWorkers(2);
    while (harness.router().migration().failed == 0) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(harness.router().placement()->generation, 1u);
    ExpectUndisturbed(clients);
    harness.workers().Start(static_cast<int>(seed % 3));
    harness.WaitForWorkers(3);
    ExpectUndisturbed(harness.Submit(MixedRequests(harness.config())));
    // What the others had begun to load, or had ready, was for a connection that has gone: they drop it once idle.
    for (int w = 0; w < 3; ++w)
      while (HostedParameters(harness, w) != PlacedParameters(*harness.router().placement(), w))
        std::this_thread::sleep_for(1ms);
    ExpectHosted(harness);
    EXPECT_TRUE(harness.Stop().ok());
  }
}

TEST(MigratingFleet, WorkersThatGoAndComeWhileExpertsMoveLoseNothing) {
  FleetOptions options = kOptions;
  options.max_step_tokens = 32;
  FleetHarness harness(options);
  harness.Start();
  std::mt19937_64 random(11);
  std::atomic<bool> done{false};
  std::thread mover([&] {
    std::mt19937_64 moves(12);
    while (!done) {
      (void)harness.router().BeginMigration(RandomPlacement(harness.placement(), moves));
      std::this_thread::sleep_for(2ms);
    }
  });
  for (int i = 0; i < 6; ++i) {
    const std::vector<Client> clients = harness.Submit(MixedRequests(harness.config()));
    const int victim = i % 3;
    Switchboard& board = harness.workers().worker(victim).board();
    board.DieAtDispatch(board.dispatches() + random() % 20);
    for (const Client& client : clients) client.watcher->WaitFinished();
    harness.Replace(victim);
    // A random placement leaves some experts one copy, so that a sequence may fail; none gives wrong tokens.
    for (std::size_t r = 0; r < clients.size(); ++r) {
      const SequenceOutput& output = *clients[r].output;
      if (output.result.finish == FinishKind::kFailed) {
        EXPECT_EQ(output.result.status.code(), StatusCode::kUnavailable);
      } else {
        ExpectSameBits(output, *Undisturbed()[r].output);
      }
    }
  }
  done = true;
  mover.join();
  ExpectUndisturbed(harness.Submit(MixedRequests(harness.config())));
  EXPECT_TRUE(harness.Stop().ok());
}

TEST(MigratingFleet, TwoRoutersMoveWithoutDisturbingOneAnother) {
  FleetHarness first(kOptions);
  FleetHarness second(kOptions, &first.workers());
  first.Start();
  second.Start();
  std::mt19937_64 random(3);
  ASSERT_TRUE(Migrate(first, RandomPlacement(first.placement(), random)));
  EXPECT_EQ(second.router().placement()->generation, 1u);
  for (int i = 0; i < 3; ++i) {
    const std::vector<Client> mine = first.Submit(MixedRequests(first.config()));
    const std::vector<Client> others = second.Submit(MixedRequests(first.config()));
    (void)first.router().BeginMigration(RandomPlacement(first.placement(), random));
    (void)second.router().BeginMigration(RandomPlacement(first.placement(), random));
    ExpectUndisturbed(mine);
    ExpectUndisturbed(others);
  }
  // A worker that starts again gets what each of them has in force, one after the other.
  for (FleetHarness* harness : {&first, &second})
    while (harness->router().migration().phase != MigrationPhase::kIdle) std::this_thread::sleep_for(1ms);
  first.workers().Kill(1);
  first.WaitForWorkers(2);
  second.WaitForWorkers(2);
  first.workers().Start(1);
  first.WaitForWorkers(3);
  second.WaitForWorkers(3);
  ExpectUndisturbed(first.Submit(MixedRequests(first.config())));
  ExpectUndisturbed(second.Submit(MixedRequests(first.config())));
  EXPECT_TRUE(second.Stop().ok());
  EXPECT_TRUE(first.Stop().ok());
}

}  // namespace
}  // namespace moe
