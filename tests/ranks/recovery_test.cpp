// Workers lost at any exchange of a step: the same tokens where every expert has another copy, otherwise the failure of
// exactly those sequences that need what is gone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>

#include "tests/ranks/fleet_harness.h"
#include "tests/router/identity.h"

namespace moe {
namespace {

using testing::HasSubstr;

/// What each request gives when nothing happens.
const std::vector<Client>& Undisturbed(const std::string& model) {
  static std::map<std::string, std::vector<Client>> known;
  std::vector<Client>& clients = known[model];
  if (clients.empty()) {
    EngineHarness harness({.model = model, .max_step_tokens = 128});
    clients = harness.RunAll(MixedRequests(harness.config()));
  }
  return clients;
}

struct LossCase {
  std::string name;
  std::string model = "tests/goldens/mixtral";
  int redundant_experts = 6;  // a second copy of every expert
  int micro_batches = 1;
  std::size_t max_step_tokens = 128;
  bool silent = false;
};

class Loss : public testing::TestWithParam<LossCase> {
 protected:
  static FleetOptions Options() {
    const LossCase& c = GetParam();
    return {.model = c.model,
            .redundant_experts = c.redundant_experts,
            .micro_batches = c.micro_batches,
            // Short only where the deadline is what must end it, and then longer than a busy machine takes.
            .exchange_timeout = std::chrono::milliseconds(c.silent ? 2'000 : 60'000),
            .max_step_tokens = c.max_step_tokens};
  }

  /// Worker `victim` is lost when it is sent its dispatch of this number; nobody may notice.
  void LoseAt(std::uint64_t dispatch, int victim) {
    SCOPED_TRACE(Cat("dispatch ", dispatch, " of worker ", victim));
    FleetHarness harness(Options());
    Switchboard& board = harness.workers().worker(victim).board();
    GetParam().silent ? board.BeSilentAtDispatch(dispatch) : board.DieAtDispatch(dispatch);
    const std::vector<Client> clients = harness.Submit(MixedRequests(harness.config()));
    harness.Start();
    for (const Client& client : clients) client.watcher->WaitFinished();
    const std::vector<Client>& expected = Undisturbed(GetParam().model);
    for (std::size_t i = 0; i < clients.size(); ++i) {
      SCOPED_TRACE(Cat("request ", i));
      EXPECT_EQ(clients[i].output->result.status.message(), "");
      ExpectSameBits(*clients[i].output, *expected[i].output);
      EXPECT_EQ(clients[i].watcher->ends(), 1);
    }
    EXPECT_EQ(harness.Metric("moe_step_retries_total"), 1);
    EXPECT_EQ(harness.Metric("moe_requests_total{outcome=\"failed\"}"), 0);
    // A silent one is looked for and answers again only when it is no longer silent.
    EXPECT_EQ(harness.Metric(Cat("moe_worker_up{rank=\"", victim + 1, "\"}")), 0);
    EXPECT_TRUE(harness.Stop().ok());
    EXPECT_EQ(harness.cache().used_tokens(), 0u);
  }
};

TEST_P(Loss, AtAnyExchangeOfTheFirstStepsNobodyNotices) {
  for (std::uint64_t dispatch = 0; dispatch < (GetParam().silent ? 2 : 9); ++dispatch) LoseAt(dispatch, 1);
}

TEST_P(Loss, AtRandomExchangesNobodyNotices) {
  std::mt19937_64 random(7);
  for (int i = 0; i < (GetParam().silent ? 1 : 6); ++i) LoseAt(random() % 30, static_cast<int>(random() % 3));
}

INSTANTIATE_TEST_SUITE_P(
    All, Loss,
    testing::Values(LossCase{.name = "Mixtral"}, LossCase{.name = "MicroBatches", .micro_batches = 2},
                    LossCase{.name = "Chunks", .micro_batches = 3, .max_step_tokens = 16},
                    LossCase{.name = "EncoderDecoder", .model = "tests/goldens/switch_base"},
                    LossCase{.name = "Windows", .model = "tests/goldens/gpt_oss", .max_step_tokens = 24},
                    LossCase{.name = "Silent", .silent = true},
                    LossCase{.name = "SilentMicroBatches", .micro_batches = 2, .silent = true}),
    [](const auto& test) { return test.param.name; });

TEST(Recovery, AStepThatIsRunAgainIsCountedOnce) {
  const auto figures = [](bool disturbed) {
    FleetHarness harness({.redundant_experts = 6, .max_step_tokens = 128});
    if (disturbed) harness.workers().worker(1).board().DieAtDispatch(4);
    const std::vector<Client> clients = harness.Submit(MixedRequests(harness.config()));
    harness.Start();
    for (const Client& client : clients) client.watcher->WaitFinished();
    EXPECT_TRUE(harness.Stop().ok());
    std::vector<double> counts = {harness.Metric("moe_steps_total"),
                                  harness.Metric("moe_step_touched_parameters_total"),
                                  harness.Metric("moe_batch_tokens_count"), harness.Metric("moe_batch_tokens_sum")};
    for (int expert = 0; expert < harness.config().num_experts(); ++expert)
      counts.push_back(harness.Metric(Cat("moe_expert_tokens_total{expert=\"", expert, "\"}")));
    const LoadWindow& window = harness.engine().load_window();
    for (std::size_t layer = 0; layer < harness.config().sparse_layers().size(); ++layer)
      for (const std::uint64_t tokens : window.layer(layer)) counts.push_back(static_cast<double>(tokens));
    double rows = 0;
    for (const WorkerStep& worker : harness.engine().totals().workers) rows += static_cast<double>(worker.rows);
    counts.push_back(rows);
    return counts;
  };
  EXPECT_EQ(figures(true), figures(false));
}

/// Short requests of their own: one in three or so does without a given expert.
std::vector<SequenceRequest> ShortRequests(const ModelConfig& config, std::size_t count) {
  std::vector<SequenceRequest> requests;
  for (std::size_t i = 0; i < count; ++i) {
    requests.push_back(
        Greedy(RandomTokens(100 + i, 1 + i % 2, config.vocab_size), static_cast<std::uint32_t>(1 + i % 2)));
    requests.back().return_routing = true;
  }
  return requests;
}

/// Whether the undisturbed run of a sequence ever wants an expert of which worker `lost` has the only copy.
bool Needs(const SequenceOutput& output, const Placement& placement, int lost) {
  const RoutingShape& shape = output.routing_shape;
  for (std::size_t layer = 0; layer < placement.layers.size(); ++layer) {
    const std::vector<std::vector<int>>& slots = placement.layers[layer].slots;
    std::set<int> elsewhere;
    for (std::size_t w = 0; w < slots.size(); ++w)
      if (static_cast<int>(w) != lost) elsewhere.insert(slots[w].begin(), slots[w].end());
    for (std::size_t i = 0; i < shape.tokens * shape.experts_per_token; ++i)
      if (!elsewhere.contains(output.routing_ids[shape.begin(layer) + i])) return true;
  }
  return false;
}

class Unreplicated : public testing::TestWithParam<int> {
 protected:
  static constexpr int kWorkers = 6;  // an expert each
  static constexpr int kVictim = 3;

  FleetOptions Options() const {
    return {.workers = kWorkers, .micro_batches = GetParam(), .max_sequences = 64, .max_step_tokens = 128};
  }
  void SetUp() override {
    EngineHarness plain({.workers = kWorkers, .max_sequences = 64, .max_step_tokens = 128});
    requests_ = ShortRequests(plain.config(), 64);
    expected_ = plain.RunAll(requests_);
    for (const Client& client : expected_) needs_.push_back(Needs(*client.output, plain.placement(), kVictim));
    ASSERT_GT(std::ranges::count(needs_, true), 5);
    ASSERT_GT(std::ranges::count(needs_, false), 5);
  }
  static void ExpectFailure(const Client& client, const Client& expected) {
    const SequenceResult& result = client.output->result;
    EXPECT_EQ(result.finish, FinishKind::kFailed);
    EXPECT_EQ(result.status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(result.status.message(), HasSubstr("rank 4 (test)"));
    EXPECT_THAT(result.status.message(), HasSubstr("expert 3"));
    const std::vector<std::uint32_t> tokens = Tokens(*client.output);
    const std::vector<std::uint32_t> all = Tokens(*expected.output);
    ASSERT_LT(tokens.size(), all.size());
    EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), all.begin())) << "what came before is right";
    EXPECT_EQ(client.watcher->ends(), 1);
  }

  std::vector<SequenceRequest> requests_;
  std::vector<Client> expected_;
  std::vector<bool> needs_;
};

TEST_P(Unreplicated, ExactlyTheSequencesThatNeedTheLostExpertFail) {
  FleetHarness harness(Options());
  harness.workers().worker(kVictim).board().DieAtDispatch(0);
  const std::vector<Client> clients = harness.Submit(requests_);
  harness.Start();
  for (std::size_t i = 0; i < clients.size(); ++i) {
    SCOPED_TRACE(Cat("request ", i));
    clients[i].watcher->WaitFinished();
    needs_[i] ? ExpectFailure(clients[i], expected_[i]) : ExpectSameBits(*clients[i].output, *expected_[i].output);
  }
  EXPECT_EQ(harness.Metric("moe_requests_total{outcome=\"failed\"}"),
            static_cast<double>(std::ranges::count(needs_, true)));
  EXPECT_TRUE(harness.Stop().ok()) << "what failed long before the drain is no failure of it";
  EXPECT_EQ(harness.cache().used_tokens(), 0u);
}

TEST_P(Unreplicated, LostAtAnyTimeNoOtherSequenceFails) {
  for (std::uint64_t dispatch = 1; dispatch < 8; ++dispatch) {
    SCOPED_TRACE(Cat("dispatch ", dispatch));
    FleetHarness harness(Options());
    harness.workers().worker(kVictim).board().DieAtDispatch(dispatch);
    const std::vector<Client> clients = harness.Submit(requests_);
    harness.Start();
    for (std::size_t i = 0; i < clients.size(); ++i) {
      SCOPED_TRACE(Cat("request ", i));
      clients[i].watcher->WaitFinished();
      if (clients[i].output->result.finish == FinishKind::kFailed) {
        EXPECT_TRUE(needs_[i]);
        ExpectFailure(clients[i], expected_[i]);
      } else {
        ExpectSameBits(*clients[i].output, *expected_[i].output);
      }
    }
    EXPECT_TRUE(harness.Stop().ok());
  }
}

TEST_P(Unreplicated, AReturnMakesEverythingWorkAgain) {
  FleetHarness harness(Options());
  harness.Start();
  harness.workers().Kill(kVictim);
  std::vector<Client> clients = harness.Finish(requests_);
  for (std::size_t i = 0; i < clients.size(); ++i)
    EXPECT_EQ(clients[i].output->result.finish == FinishKind::kFailed, needs_[i]) << "request " << i;
  EXPECT_EQ(harness.Metric("moe_worker_up{rank=\"4\"}"), 0);
  EXPECT_EQ(harness.Metric("moe_worker_up{rank=\"3\"}"), 1);
  harness.workers().Start(kVictim);
  harness.WaitForWorkers(kWorkers);
  clients = harness.Finish(requests_);
  for (std::size_t i = 0; i < clients.size(); ++i) {
    SCOPED_TRACE(Cat("request ", i));
    ExpectSameBits(*clients[i].output, *expected_[i].output);
  }
  EXPECT_EQ(harness.Metric("moe_worker_up{rank=\"4\"}"), 1);
  EXPECT_EQ(harness.Metric("moe_worker_returns_total{rank=\"4\"}"), 1);
  EXPECT_TRUE(harness.Stop().ok());
}

INSTANTIATE_TEST_SUITE_P(MicroBatches, Unreplicated, testing::Values(1, 2));

TEST(Recovery, WithoutAnyWorkerRequestsFailAndServiceResumes) {
  FleetHarness harness({.workers = 2});
  harness.Start();
  const SequenceRequest request = Greedy(RandomTokens(1, 10, harness.config().vocab_size), 5);
  const std::vector<Client> before = harness.Finish({request});
  EXPECT_EQ(before[0].output->result.finish, FinishKind::kLength);
  harness.workers().Kill(0);
  harness.workers().Kill(1);
  for (int i = 0; i < 3; ++i) {
    const std::vector<Client> lost = harness.Finish({request});
    EXPECT_EQ(lost[0].output->result.status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(lost[0].output->result.status.message(), HasSubstr("rank "));
  }
  harness.workers().Start(1);
  harness.workers().Start(0);
  harness.WaitForWorkers(2);
  const std::vector<Client> after = harness.Finish({request});
  ExpectSameBits(*after[0].output, *before[0].output);
  EXPECT_TRUE(harness.Stop().ok());
}

TEST(Recovery, AnIdleRouterNoticesToo) {
  FleetHarness harness({.workers = 2});
  harness.Start();
  harness.workers().Kill(1);
  harness.WaitForWorkers(1);
  harness.workers().Start(1);
  harness.WaitForWorkers(2);
  EXPECT_TRUE(harness.Stop().ok());
  EXPECT_EQ(harness.Metric("moe_worker_returns_total{rank=\"2\"}"), 1);
  EXPECT_EQ(harness.Metric("moe_step_retries_total"), 0);
}

TEST(Recovery, WorkersThatGoAndComeUnderLoadLoseNothing) {
  FleetHarness harness({.redundant_experts = 6, .max_step_tokens = 32});
  harness.Start();
  const std::vector<SequenceRequest> requests = MixedRequests(harness.config());
  const std::vector<Client>& expected = Undisturbed("tests/goldens/mixtral");
  std::mt19937_64 random(11);
  std::vector<std::vector<Client>> batches;
  for (int i = 0; i < 6; ++i) {
    batches.push_back(harness.Submit(requests));
    const int victim = i % 3;
    harness.workers().worker(victim).board().DieAtDispatch(harness.workers().worker(victim).board().dispatches() +
                                                           random() % 20);
    batches.back().front().watcher->WaitFinished();
    harness.Replace(victim);
  }
  for (const std::vector<Client>& clients : batches) {
    for (std::size_t i = 0; i < clients.size(); ++i) {
      clients[i].watcher->WaitFinished();
      ExpectSameBits(*clients[i].output, *expected[i].output);
    }
  }
  EXPECT_TRUE(harness.Stop().ok());
}

TEST(Recovery, TwoRoutersOnOneFleetGiveTheTokensOfOne) {
  FleetHarness first({.redundant_experts = 6, .max_step_tokens = 128});
  FleetHarness second({.redundant_experts = 6, .max_step_tokens = 128}, &first.workers());
  first.Start();
  second.Start();
  const std::vector<Client> mine = first.Submit(MixedRequests(first.config()));
  const std::vector<Client> others = second.Submit(MixedRequests(first.config()));
  first.workers().worker(2).board().DieAtDispatch(40);
  const std::vector<Client>& expected = Undisturbed("tests/goldens/mixtral");
  for (std::size_t i = 0; i < expected.size(); ++i) {
    mine[i].watcher->WaitFinished();
    others[i].watcher->WaitFinished();
    ExpectSameBits(*mine[i].output, *expected[i].output);
    ExpectSameBits(*others[i].output, *expected[i].output);
  }
  EXPECT_TRUE(second.Stop().ok());
  EXPECT_TRUE(first.Stop().ok()) << "one router's end is no end of the workers";
}

}  // namespace
}  // namespace moe
