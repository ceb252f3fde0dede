// Moving experts while requests run: the state machine alone, and in a router over the in-process transport.
#include "router/migration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "router/migration_plan.h"
#include "tests/router/migration_property.h"

namespace moe {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using namespace std::chrono_literals;

/// Two sparse layers of four experts on three workers.
Placement From() {
  return {
      .generation = 4, .num_experts = 4, .workers = 3, .layers = {{1, {{0, 1}, {2}, {3}}}, {3, {{0}, {1, 2}, {3, 0}}}}};
}
Placement To() {
  return {.generation = 9,
          .num_experts = 4,
          .workers = 3,
          .layers = {{1, {{1}, {2, 0}, {3, 0}}}, {3, {{0}, {2, 1}, {3, 0}}}}};
}

TEST(MigrationPlan, NamesWhatDiffersAndWhomToCompare) {
  const MigrationPlan plan = PlanMigration(From(), To(), 77);
  ASSERT_EQ(plan.workers.size(), 3u);
  for (const WorkerPreparation& worker : plan.workers) {
    EXPECT_EQ(worker.generation, 9u);
    EXPECT_EQ(worker.from, 4u);
    EXPECT_EQ(worker.bytes_per_s, 77u);
  }
  EXPECT_EQ(plan.workers[0].layers, (std::vector<WorkerAssignment::Layer>{{.layer = 1, .slots = {1}}}));
  EXPECT_EQ(plan.workers[1].layers,
            (std::vector<WorkerAssignment::Layer>{{.layer = 1, .slots = {2, 0}}, {.layer = 3, .slots = {2, 1}}}));
  EXPECT_EQ(plan.workers[2].layers, (std::vector<WorkerAssignment::Layer>{{.layer = 1, .slots = {3, 0}}}));
  // Expert 0 of layer 1 comes new to two workers, and both compare with the one that has had it; another order of the
  // same experts moves nothing.
  EXPECT_THAT(plan.checksums, ElementsAre(1, 1, 1));
  ASSERT_EQ(plan.comparisons.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(plan.comparisons[i].layer, 1);
    EXPECT_EQ(plan.comparisons[i].expert, 0);
    EXPECT_EQ(plan.comparisons[i].known_worker, 0u);
    EXPECT_EQ(plan.comparisons[i].known_index, 0u);
    EXPECT_EQ(plan.comparisons[i].new_worker, i + 1);
    EXPECT_EQ(plan.comparisons[i].new_index, 0u);
  }
}

TEST(MigrationPlan, EveryNewCopyIsComparedWithAnOldOneOfTheSameExpert) {
  std::mt19937_64 random(3);
  const Placement like = From();
  Placement before = RandomPlacement(like, random);
  for (int i = 0; i < 200; ++i) {
    Placement after = RandomPlacement(like, random);
    after.generation = before.generation + 1;
    const MigrationPlan plan = PlanMigration(before, after, 0);
    std::vector<std::vector<std::pair<int, int>>> told(3);  // by worker: (layer, expert) of each checksum
    for (std::size_t w = 0; w < 3; ++w) {
      for (const WorkerPreparation::Checks& of : plan.workers[w].checks)
        for (const int expert : of.experts) told[w].emplace_back(of.layer, expert);
      EXPECT_EQ(told[w].size(), plan.checksums[w]);
    }
    std::size_t expected = 0;
    const auto hosts = [](const std::vector<int>& slots, int e) { return std::ranges::find(slots, e) != slots.end(); };
    for (std::size_t layer = 0; layer < 2; ++layer)
      for (std::size_t w = 0; w < 3; ++w)
        for (const int expert : after.layers[layer].slots[w])
          if (!hosts(before.layers[layer].slots[w], expert)) ++expected;
    EXPECT_EQ(plan.comparisons.size(), expected);
    for (const MigrationPlan::Comparison& c : plan.comparisons) {
      EXPECT_EQ(told[c.known_worker].at(c.known_index), std::pair(c.layer, c.expert));
      EXPECT_EQ(told[c.new_worker].at(c.new_index), std::pair(c.layer, c.expert));
      const std::size_t layer = c.layer == 1 ? 0 : 1;
      EXPECT_TRUE(hosts(before.layers[layer].slots[c.known_worker], c.expert));
      EXPECT_FALSE(hosts(before.layers[layer].slots[c.new_worker], c.expert));
    }
    before = std::move(after);
  }
}

/// Three workers by script.
class MigrationStates : public testing::Test {
 protected:
  static constexpr std::chrono::milliseconds kInterval{10};
  using Reply = std::function<std::size_t(std::span<std::byte>)>;

  void Begin() { migration_.Begin(To(), PlanMigration(From(), To(), 0), {"rank 1", "rank 2", "rank 3"}, now_); }
  /// One round: the kind that each worker is asked, or nothing; each answers with `replies`.
  std::vector<std::optional<MessageKind>> Round(const std::array<Reply, 3>& replies) {
    EXPECT_LE(migration_.due(), now_);
    std::vector<std::optional<MessageKind>> kinds;
    std::vector<std::byte> buffer(4096);
    for (int w = 0; w < 3; ++w) {
      const Result<std::size_t> bytes = migration_.Write(WorkerId(w), buffer);
      EXPECT_TRUE(bytes.ok());
      kinds.emplace_back();
      if (*bytes == 0) continue;
      kinds.back() = *ParseKind(std::span(buffer).first(*bytes));
    }
    for (int w = 0; w < 3; ++w) {
      if (!kinds[static_cast<std::size_t>(w)]) continue;
      const std::size_t bytes = replies[static_cast<std::size_t>(w)](buffer);
      migration_.Read(WorkerId(w), std::span(buffer).first(bytes));
    }
    migration_.EndRound(now_);
    return kinds;
  }
  static std::size_t Yes(std::span<std::byte> buffer) { return WriteControlReply(buffer); }
  static Reply No(Status status) {
    return [status](std::span<std::byte> buffer) { return WriteFailure(buffer, status); };
  }
  static Reply Loading(std::uint64_t bytes) {
    return [bytes](std::span<std::byte> buffer) {
      return WritePreparationStatus(buffer, {.loaded_experts = 1, .loaded_bytes = bytes});
    };
  }
  static Reply Ready(std::uint64_t bytes, std::vector<std::uint64_t> checksums) {
    return [bytes, checksums = std::move(checksums)](std::span<std::byte> buffer) {
      return WritePreparationStatus(
          buffer,
          {.state = PreparationState::kReady, .loaded_experts = 1, .loaded_bytes = bytes, .checksums = checksums});
    };
  }
  static Reply Broken(Status failure) {
    return [failure](std::span<std::byte> buffer) {
      return WritePreparationStatus(buffer, {.state = PreparationState::kFailed, .failure = failure});
    };
  }
  static Reply Describes(std::uint64_t bytes) {
    return [bytes](std::span<std::byte> buffer) {
      return WriteDescription(buffer, {.host = "here", .weight_bytes = bytes});
    };
  }
  /// From the failure on: every worker is told to drop the new generation, and then nothing is asked any more.
  void ExpectAbandoned() {
    ASSERT_EQ(migration_.phase(), MigrationPhase::kDropNew);
    std::vector<std::byte> buffer(4096);
    const std::size_t bytes = *migration_.Write(WorkerId(1), buffer);
    EXPECT_EQ(*ParseGeneration(std::span(buffer).first(bytes)), 9u);
    EXPECT_THAT(Round({Describes(1), No(Internal("what?")), Describes(1)}),
                ElementsAre(MessageKind::kDrop, MessageKind::kDrop, MessageKind::kDrop));
    EXPECT_EQ(migration_.phase(), MigrationPhase::kIdle);
    EXPECT_EQ(migration_.due(), kNoDeadline);
    EXPECT_THAT(migration_.workers(), IsEmpty());
  }

  Migration migration_{{.timeout = 100ms, .interval = kInterval}};
  TimePoint now_ = TimePoint(1h);
};

TEST_F(MigrationStates, AllIsWell) {
  Begin();
  EXPECT_EQ(migration_.phase(), MigrationPhase::kPrepare);
  EXPECT_THAT(Round({Yes, Yes, Yes}), ElementsAre(MessageKind::kPrepare, MessageKind::kPrepare, MessageKind::kPrepare));
  EXPECT_EQ(migration_.phase(), MigrationPhase::kLoad);
  EXPECT_THAT(Round({Ready(0, {5}), Loading(10), Loading(0)}),
              ElementsAre(MessageKind::kPrepared, MessageKind::kPrepared, MessageKind::kPrepared));
  EXPECT_EQ(migration_.due(), now_ + kInterval);
  EXPECT_EQ(migration_.loaded_bytes(), 10u);
  now_ += kInterval;
  EXPECT_THAT(Round({Yes, Ready(20, {5}), Loading(20)}),
              ElementsAre(std::nullopt, MessageKind::kPrepared, MessageKind::kPrepared))
      << "whoever is ready is not asked again";
  now_ += kInterval;
  Round({Yes, Yes, Ready(20, {5})});
  EXPECT_EQ(migration_.phase(), MigrationPhase::kSwitch);
  EXPECT_EQ(migration_.due(), kNoDeadline);
  EXPECT_EQ(migration_.loaded_bytes(), 40u);
  EXPECT_EQ(migration_.moved_experts(), 2u);
  migration_.Switched(now_);
  std::vector<std::byte> buffer(4096);
  EXPECT_EQ(*ParseGeneration(std::span(buffer).first(*migration_.Write(WorkerId(0), buffer))), 4u);
  EXPECT_THAT(Round({Describes(7), No(Internal("what?")), Describes(9)}),
              ElementsAre(MessageKind::kDrop, MessageKind::kDrop, MessageKind::kDrop));
  EXPECT_EQ(migration_.phase(), MigrationPhase::kIdle);
  EXPECT_TRUE(migration_.failure().ok());
  ASSERT_EQ(migration_.workers().size(), 3u);
  EXPECT_EQ(migration_.workers()[0].weight_bytes, 7u);
  EXPECT_EQ(migration_.workers()[1].host, "") << "it did not say";
  Begin();  // and again
  EXPECT_EQ(migration_.phase(), MigrationPhase::kPrepare);
  EXPECT_EQ(migration_.loaded_bytes(), 0u);
}

TEST_F(MigrationStates, ARefusalAbandons) {
  Begin();
  Round({Yes, No(ResourceExhausted("no room")), No(Unimplemented("not here"))});
  EXPECT_EQ(migration_.failure().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(migration_.failure().message(), "rank 2: no room");
  ExpectAbandoned();
}

TEST_F(MigrationStates, AFailureToLoadAbandons) {
  Begin();
  Round({Yes, Yes, Yes});
  Round({Ready(0, {5}), Loading(1), Broken(NotFound("tensor x"))});
  EXPECT_EQ(migration_.failure().message(), "rank 3: tensor x");
  ExpectAbandoned();
}

TEST_F(MigrationStates, CopiesThatDifferAbandon) {
  Begin();
  Round({Yes, Yes, Yes});
  Round({Ready(0, {5}), Ready(1, {5}), Ready(1, {6})});
  EXPECT_EQ(migration_.failure().message(), "layer 1, expert 0: the copy of rank 3 is not that of rank 1");
  ExpectAbandoned();
}

TEST_F(MigrationStates, TooLongAbandons) {
  Begin();
  Round({Yes, Yes, Yes});
  now_ += 99ms;
  Round({Ready(0, {5}), Loading(1), Ready(1, {5})});
  EXPECT_EQ(migration_.phase(), MigrationPhase::kLoad);
  now_ += kInterval;
  Round({Yes, Loading(2), Yes});
  EXPECT_EQ(migration_.failure().code(), StatusCode::kDeadlineExceeded);
  ExpectAbandoned();
}

TEST_F(MigrationStates, AnswersThatMakeNoSenseAbandon) {
  const std::vector<std::pair<Reply, std::string>> cases = {
      {Ready(0, {}), "tells 0 checksums, 1 were asked for"},
      {Ready(0, {5, 5}), "tells 2 checksums"},
      {Yes, "not a JSON object"},
      {[](std::span<std::byte> buffer) { return WriteTextReply(buffer, R"({"state": "fine"})"); }, "unusable"},
      {[](std::span<std::byte>) { return std::size_t{3}; }, "3 bytes"}};
  for (const auto& [reply, words] : cases) {
    Begin();
    Round({Yes, Yes, Yes});
    Round({reply, Loading(1), Loading(1)});
    EXPECT_THAT(migration_.failure().message(), AllOf(HasSubstr("rank 1: "), HasSubstr(words)));
    ExpectAbandoned();
  }
}

TEST_F(MigrationStates, ALostWorkerBeforeTheSwitchEndsItAndAfterwardsDoesNot) {
  Begin();
  Round({Yes, Yes, Yes});
  migration_.Fail(Unavailable("rank 2 is lost"), /*workers_forget=*/true);
  EXPECT_EQ(migration_.phase(), MigrationPhase::kIdle);
  EXPECT_EQ(migration_.failure().message(), "rank 2 is lost");
  Begin();
  EXPECT_TRUE(migration_.failure().ok());
  Round({Yes, Yes, Yes});
  Round({Ready(0, {5}), Ready(1, {5}), Ready(1, {5})});
  migration_.Switched(now_);
  migration_.Fail(Unavailable("rank 2 is lost"), /*workers_forget=*/true);
  EXPECT_EQ(migration_.phase(), MigrationPhase::kIdle);
  EXPECT_TRUE(migration_.failure().ok()) << "the placement is in force";
}

// In a router.

// Under the thread sanitizer a step takes far longer, and threads meet in fewer of them as well.
#ifdef __SANITIZE_THREAD__
constexpr std::uint64_t kSeeds = 1;
#else
constexpr std::uint64_t kSeeds = 3;
#endif

HarnessOptions Options() { return {.workers = 3, .redundant_experts = 2, .max_step_tokens = 48, .prefill_chunk = 16}; }

TEST(MigratingRouter, MovesWhileItIsIdle) {
  EngineHarness harness(Options());
  harness.Start();
  std::mt19937_64 random(5);
  for (std::uint64_t generation = 2; generation < 5; ++generation) {
    const Placement next = RandomPlacement(harness.placement(), random);
    EXPECT_EQ(*harness.router().BeginMigration(next), generation);
    while (harness.router().migration().finished + 1 < generation) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(harness.router().placement()->generation, generation);
    EXPECT_EQ(PlacementJson(*harness.router().placement()), PlacementJson(next));
    EXPECT_EQ(harness.router().migrated_workers().size(), 3u);
  }
  EXPECT_TRUE(harness.Stop().ok());
}

TEST(MigratingRouter, RefusesAtOnceWhatItCannotDo) {
  EngineHarness harness(Options());
  Placement wrong = harness.placement();
  wrong.layers[1].slots[2] = {0};
  EXPECT_EQ(harness.router().BeginMigration(wrong).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(*harness.router().BeginMigration(harness.placement()), 2u);
  const Status second = harness.router().BeginMigration(harness.placement()).status();
  EXPECT_EQ(second.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(second.message(), HasSubstr("generation 2 is under way"));
  EXPECT_TRUE(harness.Drain().ok()) << "a drain does not wait for it";
  EXPECT_EQ(harness.router().BeginMigration(harness.placement()).status().code(), StatusCode::kUnavailable);
  EngineHarness dense({.model = "tests/goldens/llama"});
  EXPECT_EQ(dense.router().BeginMigration(Placement()).status().code(), StatusCode::kUnimplemented);
}

// Every running sequence gets a token in each step, whether or not experts move: nobody waits for a migration.
TEST(MigratingRouter, HoldsUpNoSequenceForASingleStep) {
  class Steps final : public OutputListener {
   public:
    Steps(const SequenceOutput& output, const Engine& engine) : output_(output), engine_(engine) {}
    void OnOutput() override {
      if (output_.tokens() > 1) longest = std::max(longest, engine_.totals().steps - last_);
      last_ = engine_.totals().steps;
      done = output_.finished();
      done.notify_all();
    }
    std::uint64_t longest = 0;  // steps between two tokens; the engine thread's until it is done
    std::atomic<bool> done{false};

   private:
    const SequenceOutput& output_;
    const Engine& engine_;
    std::uint64_t last_ = 0;
  };
  constexpr std::uint32_t kEndless = 25'000;  // tokens: far more than the moves take
  constexpr std::uint64_t kMoves = 5;
  EngineHarness harness({.workers = 3, .max_step_tokens = 48, .kv_pages = 3200});
  std::vector<std::shared_ptr<Steps>> listeners;
  std::vector<std::shared_ptr<SequenceOutput>> outputs;
  std::vector<std::unique_ptr<Sequence>> batch;
  for (std::uint32_t i = 0; i < 4; ++i) {
    SequenceRequest request = Greedy({i + 1}, kEndless);
    outputs.push_back(std::make_shared<SequenceOutput>(request, harness.config()));
    listeners.push_back(std::make_shared<Steps>(*outputs.back(), harness.engine()));
    batch.push_back(std::make_unique<Sequence>(std::move(request), outputs.back(), listeners.back(), harness.config()));
  }
  ASSERT_TRUE(harness.router().Submit(std::move(batch)).ok());
  harness.Start();
  std::mt19937_64 random(8);
  while (harness.router().migration().finished < kMoves && !listeners[0]->done) {
    (void)harness.router().BeginMigration(RandomPlacement(harness.placement(), random));
    std::this_thread::sleep_for(1ms);
  }
  EXPECT_GE(harness.router().migration().finished, kMoves);
  for (const auto& output : outputs) output->Cancel();
  for (const auto& listener : listeners) listener->done.wait(false);
  ASSERT_TRUE(harness.Stop().ok());
  for (const auto& listener : listeners) EXPECT_EQ(listener->longest, 1u);
}

TEST(MigratingRouter, MeasuresWhatCameOfAMove) {
  HarnessOptions options = Options();
  options.cost_steps = 50;
  EngineHarness harness(options);
  harness.Start();
  const auto steps = [&](std::uint32_t count) { harness.Submit(Greedy({1, 2}, count)).watcher->WaitFinished(); };
  steps(60);
  std::mt19937_64 random(5);
  ASSERT_TRUE(harness.router().BeginMigration(RandomPlacement(harness.placement(), random), 0.125).ok());
  while (harness.router().migration().finished == 0) std::this_thread::sleep_for(1ms);
  steps(60);
  ASSERT_TRUE(harness.router().BeginMigration(RandomPlacement(harness.placement(), random)).ok());
  while (harness.router().migration().finished == 1) std::this_thread::sleep_for(1ms);
  steps(5);
  ASSERT_TRUE(harness.Stop().ok());
  ASSERT_TRUE(harness.router().moves().outcome());
  const MoveOutcome& outcome = *harness.router().moves().outcome();
  EXPECT_EQ(outcome.generation, 2u) << "of the third there are too few steps";
  EXPECT_GE(outcome.steps.steps, MoveMeter::kLeastSteps);
  EXPECT_EQ(outcome.steps.rows, 1) << "the decodes";
  EXPECT_DOUBLE_EQ(*outcome.expected_seconds(), outcome.steps.seconds_before * 0.875);
  EXPECT_NEAR(harness.Metric("moe_moved_step_seconds"), outcome.steps.seconds, 1e-12);
  EXPECT_NEAR(harness.Metric("moe_moved_step_before_seconds"), outcome.steps.seconds_before, 1e-12);
  EXPECT_NEAR(harness.Metric("moe_moved_step_expected_seconds"), *outcome.expected_seconds(), 1e-12);
}

TEST(MigratingRouter, ASilentWorkerEndsTheRouterAsInAStep) {
  HarnessOptions options = Options();
  options.exchange_timeout = 2s;  // longer than a busy machine takes for the answers of the others
  options.faults = {{.kind = FaultKind::kDeadPeer, .worker = WorkerId(1), .exchange = 1}};
  EngineHarness harness(options);
  std::mt19937_64 random(5);
  ASSERT_TRUE(harness.router().BeginMigration(RandomPlacement(harness.placement(), random)).ok());
  harness.Start();
  while (harness.router().migration().failed == 0) std::this_thread::sleep_for(1ms);
  EXPECT_THAT(harness.router().migration().last_failure, HasSubstr("rank 2"));
  EXPECT_EQ(harness.router().placement()->generation, 1u);
  (void)harness.Stop();
}

TEST(MigratingRouter, RandomMovesNeverShow) {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed)
    ExpectPlainBitsWhileMigrating({.options = Options(), .seed = seed});
}

TEST(MigratingRouter, RandomMovesNeverShowInMicroBatches) {
  HarnessOptions options = Options();
  options.micro_batches = {.most = 3};
  options.threads = 2;
  options.exchange_type = ExchangeType::kF32;
  ExpectPlainBitsWhileMigrating({.options = options, .seed = 11});
  options.model = "tests/goldens/switch_base";
  options.max_step_tokens = 80;
  ExpectPlainBitsWhileMigrating({.options = options, .seed = 12, .batches = 2});
}

TEST(MigratingRouter, RandomMovesOfWhichSomeFailNeverShow) {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed)
    ExpectPlainBitsWhileMigrating({.options = Options(), .seed = 20 + seed, .failures = true});
}

}  // namespace
}  // namespace moe
