// The engine and the router's loop over it: the same bits whatever surrounds a sequence, and what a step reports.
#include "router/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <string>

#include "tests/router/engine_harness.h"
#include "tests/router/identity.h"

namespace moe {
namespace {

using testing::HasSubstr;

struct Variation {
  std::string name;
  HarnessOptions options;
};

std::vector<Variation> Variations() {
  std::vector<Variation> all;
  for (const int workers : {1, 2, 3, 7}) {
    all.push_back({"workers" + std::to_string(workers), {.workers = workers}});
    all.push_back(
        {"round_robin" + std::to_string(workers), {.workers = workers, .placement = PlacementRule::kRoundRobin}});
  }
  all.push_back({"redundant2", {.workers = 2, .redundant_experts = 4}});
  all.push_back({"redundant3", {.workers = 3, .placement = PlacementRule::kRoundRobin, .redundant_experts = 6}});
  all.push_back({"redundant7", {.workers = 7, .redundant_experts = 11}});
  all.push_back({"embedded", {.embedded = true}});
  all.push_back({"chunk1", {.workers = 2, .prefill_chunk = 1}});
  all.push_back({"chunk7", {.workers = 2, .prefill_chunk = 7}});
  all.push_back({"small_steps", {.workers = 2, .max_step_tokens = 3}});
  all.push_back({"two_at_a_time", {.workers = 2, .max_sequences = 2}});
  all.push_back({"one_at_a_time", {.workers = 3, .max_sequences = 1}});
  all.push_back({"threads2", {.threads = 2}});
  all.push_back({"threads4", {.workers = 2, .threads = 4}});
  all.push_back({"threads4_chunk7", {.workers = 3, .threads = 4, .prefill_chunk = 7}});
  return all;
}

class EngineIdentity : public testing::TestWithParam<Variation> {};

TEST_P(EngineIdentity, MixtralGivesTheBitsOfThePlainRun) { ExpectPlainBits(GetParam().options); }

TEST_P(EngineIdentity, TheTrainedModelGivesTheBitsOfThePlainRun) {
  HarnessOptions options = GetParam().options;
  options.model = "models/eight-languages-moe";
  ExpectPlainBits(options);
}

INSTANTIATE_TEST_SUITE_P(All, EngineIdentity, testing::ValuesIn(Variations()),
                         [](const auto& test) { return test.param.name; });

TEST(EngineWindow, ASequenceLongerThanTheCacheGivesTheSameBits) {
  // Mistral with a window of 8 on every layer: 300 positions pass through 2 pages of 32, over and over.
  const HarnessOptions wide{.model = "tests/goldens/mistral", .max_step_tokens = 512, .kv_pages = 64};
  HarnessOptions narrow = wide;
  narrow.max_step_tokens = 16;
  narrow.kv_pages = 2;
  for (const std::size_t prompt : {std::size_t{200}, std::size_t{3}}) {
    SequenceRequest request = Greedy(RandomTokens(prompt, prompt, 200), 100);
    request.num_logprobs = 4;
    EngineHarness harness(narrow);
    ASSERT_LT(harness.cache().capacity_tokens(), 100u);
    const std::vector<Client> clients = harness.RunAll({request, request});  // one waits for the other's pages
    const std::vector<Client> expected = EngineHarness(wide).RunAll({request});
    for (const Client& client : clients) ExpectSameBits(*client.output, *expected.front().output);
  }
}

TEST(EngineSampling, ASeedAndAnIndexDecideASampledContinuation) {
  const auto continuation = [](std::uint64_t seed, std::uint32_t index) {
    EngineHarness harness({.workers = 2});
    SequenceRequest request = Greedy({3, 1, 4}, 20);
    request.index = index;
    request.sampling = {.temperature = 1.2f, .seed = seed};
    return Tokens(*harness.RunAll({std::move(request)}).front().output);
  };
  const std::vector<std::uint32_t> first = continuation(5, 0);
  EXPECT_EQ(continuation(5, 0), first);
  EXPECT_NE(continuation(6, 0), first);
  EXPECT_NE(continuation(5, 1), first);
}

TEST(EngineUsage, RowsAndDistinctExpertsAreThoseOfTheRouting) {
  EngineHarness harness({.workers = 3, .prefill_chunk = 4});
  SequenceRequest request = Greedy(RandomTokens(8, 21, harness.config().vocab_size), 13);
  request.return_routing = true;
  // Others beside it, whose experts must not count.
  const std::vector<Client> clients =
      harness.RunAll({request, Greedy(RandomTokens(9, 50, harness.config().vocab_size), 20)});
  const SequenceOutput& output = *clients[0].output;
  const std::size_t positions = 21 + 13 - 1;
  const auto k = static_cast<std::size_t>(harness.config().experts_per_token());
  const std::size_t layers = harness.config().sparse_layers().size();
  ASSERT_EQ(output.routing_ids.size(), layers * positions * k);
  EXPECT_EQ(output.routed(), positions);
  EXPECT_EQ(output.result.expert_rows, layers * positions * k);
  std::set<std::pair<std::size_t, std::int32_t>> distinct;
  for (std::size_t i = 0; i < output.routing_ids.size(); ++i)
    distinct.emplace(i / (positions * k), output.routing_ids[i]);
  EXPECT_EQ(output.result.unique_experts, distinct.size());
}

// One sequence stepped by hand, without a router.
class EngineStep : public testing::Test {
 protected:
  Status Step(EngineHarness& harness, Sequence& sequence, std::size_t tokens) {
    const Chunk chunk{.sequence = &sequence, .tokens = tokens};
    harness.cache().ExtendTokens(sequence.computed, sequence.computed + tokens, sequence.kv);
    return harness.engine().Step({&chunk, 1});
  }
  std::unique_ptr<Sequence> Admit(EngineHarness& harness, SequenceRequest request) {
    std::unique_ptr<Sequence> sequence = harness.Make(std::move(request), client_);
    EXPECT_TRUE(harness.cache().Reserve(sequence->request.kv_demand(), sequence->kv));
    return sequence;
  }
  Client client_;
};

TEST_F(EngineStep, AReportSaysWhatTheStepUsed) {
  EngineHarness harness({.workers = 2});
  const auto sequence = Admit(harness, Greedy(RandomTokens(1, 12, harness.config().vocab_size), 2));
  ASSERT_TRUE(Step(harness, *sequence, 5).ok());
  EXPECT_EQ(sequence->computed, 5u);
  EXPECT_EQ(sequence->generated(), 0u) << "a part of a prompt decides nothing";
  const StepReport& report = harness.engine().report();
  const std::size_t layers = harness.config().sparse_layers().size();
  EXPECT_EQ(report.tokens, 5u);
  EXPECT_EQ(std::accumulate(report.expert_tokens.begin(), report.expert_tokens.end(), std::uint64_t{0}),
            layers * 5 * 2);
  const auto used =
      std::count_if(report.expert_tokens.begin(), report.expert_tokens.end(), [](auto n) { return n > 0; });
  EXPECT_EQ(report.distinct_experts, static_cast<std::uint64_t>(used));
  ASSERT_EQ(report.workers.size(), 2u);
  EXPECT_EQ(report.workers[0].rows + report.workers[1].rows, layers * 5 * 2);
  const double parts = report.attention_seconds + report.gate_seconds + report.head_seconds + report.sample_seconds +
                       report.exchange.dispatch + report.exchange.wait + report.exchange.combine;
  EXPECT_GT(parts, 0);
  EXPECT_LE(parts, report.seconds) << "phases overlap";
  EXPECT_LE(report.exchange.experts, report.exchange.wait);

  ASSERT_TRUE(Step(harness, *sequence, 7).ok());
  EXPECT_EQ(sequence->generated(), 1u);
  ASSERT_TRUE(Step(harness, *sequence, 1).ok());
  EXPECT_EQ(sequence->generated(), 2u);
  EXPECT_EQ(harness.engine().totals().steps, 3u);
  EXPECT_EQ(harness.engine().totals().workers[0].rows + harness.engine().totals().workers[1].rows, layers * 13 * 2);
  EXPECT_EQ(harness.engine().load_window().steps(), 3u);
}

// A fault at worker 1, rank 2, in the middle of the second step.
struct FaultCase {
  const char* name = "";
  FaultKind kind = FaultKind::kDropReply;
  bool silent = false;  // a deadline ends it
};

class EngineFault : public EngineStep, public testing::WithParamInterface<FaultCase> {
 protected:
  static HarnessOptions Options() {
    // Three layers a step, each one exchange. Short only where the deadline is what must end it.
    return {.workers = 3,
            .exchange_timeout = std::chrono::milliseconds(GetParam().silent ? 2'000 : 120'000),
            .faults = {{.kind = GetParam().kind, .worker = WorkerId(1), .exchange = 4}},
            .max_step_tokens = 64,
            .prefill_chunk = 64};
  }
};

TEST_P(EngineFault, AStepFailsAsAWholeAndNamesTheRank) {
  EngineHarness harness(Options());
  const auto sequence = Admit(harness, Greedy(RandomTokens(1, 48, harness.config().vocab_size), 5));
  ASSERT_TRUE(Step(harness, *sequence, 24).ok());
  const Status status = Step(harness, *sequence, 24);
  EXPECT_EQ(status.code() == StatusCode::kDeadlineExceeded, GetParam().silent) << status.message();
  EXPECT_THAT(status.message(), HasSubstr("rank 2"));
  EXPECT_EQ(sequence->computed, 24u);
  EXPECT_EQ(sequence->generated(), 0u);
  EXPECT_EQ(harness.engine().totals().steps, 1u);
}

TEST_P(EngineFault, TheRouterFailsEverySequenceOnceSaysWhyAndEnds) {
  HarnessOptions options = Options();
  options.max_sequences = 2;
  EngineHarness harness(options);
  std::vector<SequenceRequest> requests;
  for (std::uint64_t i = 0; i < 4; ++i)  // two run, two wait
    requests.push_back(Greedy(RandomTokens(i, 30, harness.config().vocab_size), 20));
  std::vector<Client> clients;
  ASSERT_TRUE(harness.Submit(std::move(requests), clients).ok());
  const Status ended = harness.router().Run();
  EXPECT_FALSE(ended.ok());
  EXPECT_THAT(ended.message(), HasSubstr("rank 2"));
  EXPECT_THAT(ended.message(), HasSubstr("4 sequence(s)"));
  for (const Client& client : clients) {
    EXPECT_EQ(client.watcher->ends(), 1);
    EXPECT_EQ(client.output->result.finish, FinishKind::kFailed);
    EXPECT_THAT(client.output->result.status.code(), testing::AnyOf(StatusCode::kUnavailable, StatusCode::kInternal));
    EXPECT_THAT(client.output->result.status.message(), HasSubstr("rank 2"));
  }
  EXPECT_EQ(harness.cache().used_tokens(), 0u);
  EXPECT_TRUE(harness.router().draining());
  std::vector<Client> late;
  EXPECT_EQ(harness.Submit({Greedy({1}, 1)}, late).code(), StatusCode::kUnavailable);
}

INSTANTIATE_TEST_SUITE_P(Faults, EngineFault,
                         testing::Values(FaultCase{"DroppedReply", FaultKind::kDropReply, true},
                                         FaultCase{"DeadPeer", FaultKind::kDeadPeer, true},
                                         FaultCase{"CorruptReplyLength", FaultKind::kCorruptReplyLength},
                                         FaultCase{"CorruptRequestLength", FaultKind::kCorruptRequestLength}),
                         [](const auto& test) { return test.param.name; });

TEST(EngineDelays, LateAndReorderedRepliesChangeNothing) {
  const std::vector<std::uint32_t> prompt = RandomTokens(6, 30, 200);
  const std::vector<Client> prompt_reply = EngineHarness({.workers = 3}).RunAll({Greedy(prompt, 20)});
  const std::vector<Client> delayed =
      EngineHarness({.workers = 3, .faults = RandomDelays(3, 3, 200, 10)}).RunAll({Greedy(prompt, 20)});
  ExpectSameBits(*delayed[0].output, *prompt_reply[0].output);
}

}  // namespace
}  // namespace moe
