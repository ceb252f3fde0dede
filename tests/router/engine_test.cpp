// The engine and the router's loop over it: the same bits whatever surrounds a sequence, and what a step reports.
#include "router/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
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
  all.push_back({"micro2", {.workers = 2, .micro_batches = {.most = 2}}});
  all.push_back({"micro4", {.workers = 3, .threads = 2, .micro_batches = {.most = 4}}});
  all.push_back({"micro2_embedded", {.embedded = true, .micro_batches = {.most = 2}}});
  all.push_back({"micro2_measured", {.workers = 2, .micro_batches = {.most = 2, .measure = true}}});
  all.push_back({"micro2_redundant", {.workers = 3, .redundant_experts = 6, .micro_batches = {.most = 2}}});
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

TEST_F(EngineStep, AReportIsTheSameForAnyNumberOfMicroBatches) {
  const auto step = [&](int micro_batches, int redundant, auto&& check) {
    EngineHarness harness({.workers = 2, .redundant_experts = redundant, .micro_batches = {.most = micro_batches}});
    const auto sequence = Admit(harness, Greedy(RandomTokens(1, 12, harness.config().vocab_size), 2));
    for (const std::size_t tokens : {std::size_t{11}, std::size_t{1}}) {
      ASSERT_TRUE(Step(harness, *sequence, tokens).ok());
      const StepReport& report = harness.engine().report();
      EXPECT_EQ(report.micro_batches, static_cast<int>(std::min(tokens, static_cast<std::size_t>(micro_batches))));
      check(tokens, report, *sequence);
      const double parts = report.attention_seconds + report.gate_seconds + report.head_seconds +
                           report.sample_seconds + report.exchange.dispatch + report.exchange.wait +
                           report.exchange.combine;
      EXPECT_LE(parts, report.seconds) << "phases overlap";
      EXPECT_LE(report.exchange.experts, report.exchange.wait);
      for (const WorkerStep& worker : report.workers) EXPECT_EQ(worker.busy_seconds > 0, worker.rows > 0);
    }
    EXPECT_EQ(harness.engine().load_window().steps(), 2u);
  };
  for (const int redundant : {0, 6}) {  // 6: every expert is on both workers, and its rows take turns
    struct Figures {
      std::vector<std::uint64_t> expert_tokens;
      std::uint64_t distinct_experts, touched_parameters, expert_rows, unique_experts;
      std::vector<std::uint64_t> worker_rows;
      bool operator==(const Figures&) const = default;
    };
    std::vector<Figures> plain, cut;
    const auto note = [](std::vector<Figures>& all) {
      return [&all](std::size_t, const StepReport& report, const Sequence& sequence) {
        Figures& figures =
            all.emplace_back(Figures{.expert_tokens = {report.expert_tokens.begin(), report.expert_tokens.end()},
                                     .distinct_experts = report.distinct_experts,
                                     .touched_parameters = report.touched_parameters,
                                     .expert_rows = sequence.result.expert_rows,
                                     .unique_experts = sequence.result.unique_experts,
                                     .worker_rows = {}});
        for (const WorkerStep& worker : report.workers) figures.worker_rows.push_back(worker.rows);
      };
    };
    step(1, redundant, note(plain));
    for (const int micro_batches : {2, 3}) {
      cut.clear();
      step(micro_batches, redundant, note(cut));
      EXPECT_EQ(cut, plain) << micro_batches << " micro-batches, " << redundant << " redundant experts";
    }
    ASSERT_EQ(plain.size(), 2u);
    EXPECT_LT(plain[0].distinct_experts, 3u * 6 + 1);
    EXPECT_GT(plain[0].expert_rows, plain[0].distinct_experts) << "no expert was wanted twice: the test shows nothing";
  }
}

// Lets no reply to the first micro-batch of a layer pass before the second one's request has left.
class TwoInFlight final : public FrameTap {
 public:
  bool Pass(FrameHeader& header, std::span<std::byte>, WorkerId) override {
    if (header.kind == FrameKind::kRequest) {
      requests_.store(header.sequence);
      requests_.notify_all();
    } else if (header.kind == FrameKind::kReply && header.sequence % 2 == 1) {
      for (std::uint64_t seen = requests_.load(); seen <= header.sequence; seen = requests_.load())
        requests_.wait(seen);
    }
    return true;
  }
  /// Lets everything pass.
  void Stop() {
    requests_.store(~std::uint64_t{0});
    requests_.notify_all();
  }

 private:
  std::atomic<std::uint64_t> requests_{0};
};

TEST_F(EngineStep, TheSecondMicroBatchIsSentBeforeTheFirstIsAnswered) {
  TwoInFlight tap;
  EngineHarness harness(
      {.workers = 1, .micro_batches = {.most = 2}, .exchange_timeout = std::chrono::milliseconds(5'000), .tap = &tap});
  const auto sequence = Admit(harness, Greedy(RandomTokens(1, 12, harness.config().vocab_size), 2));
  const Status status = Step(harness, *sequence, 12);
  tap.Stop();
  EXPECT_TRUE(status.ok()) << status.message();
}

// A fault at worker 1, rank 2, in the middle of the second step.
struct FaultCase {
  const char* name = "";
  FaultKind kind = FaultKind::kDropReply;
  bool silent = false;  // a deadline ends it
  int micro_batches = 1;
};

class EngineFault : public EngineStep, public testing::WithParamInterface<FaultCase> {
 protected:
  static HarnessOptions Options() {
    // Three layers a step, each one exchange a micro-batch: in the fifth of two a step, another is in flight behind it.
    // Short only where the deadline is what must end it.
    const int micro_batches = GetParam().micro_batches;
    return {.workers = 3,
            .micro_batches = {.most = micro_batches},
            .exchange_timeout = std::chrono::milliseconds(GetParam().silent ? 2'000 : 120'000),
            .faults = {{.kind = GetParam().kind,
                        .worker = WorkerId(1),
                        .exchange = micro_batches == 1 ? std::uint64_t{4} : std::uint64_t{8}}},
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
                                         FaultCase{"CorruptRequestLength", FaultKind::kCorruptRequestLength},
                                         FaultCase{"DroppedReplyOfTwo", FaultKind::kDropReply, true, 2},
                                         FaultCase{"DeadPeerOfTwo", FaultKind::kDeadPeer, true, 2},
                                         FaultCase{"CorruptReplyLengthOfTwo", FaultKind::kCorruptReplyLength, false, 2},
                                         FaultCase{"CorruptRequestLengthOfTwo", FaultKind::kCorruptRequestLength, false,
                                                   2}),
                         [](const auto& test) { return test.param.name; });

TEST(EngineDelays, LateAndReorderedRepliesChangeNothing) {
  const std::vector<std::uint32_t> prompt = RandomTokens(6, 30, 200);
  const std::vector<Client> prompt_reply = EngineHarness({.workers = 3}).RunAll({Greedy(prompt, 20)});
  const std::vector<Client> delayed =
      EngineHarness({.workers = 3, .faults = RandomDelays(3, 3, 200, 10)}).RunAll({Greedy(prompt, 20)});
  ExpectSameBits(*delayed[0].output, *prompt_reply[0].output);
  const std::vector<Client> crossed =
      EngineHarness({.workers = 3, .micro_batches = {.most = 3}, .faults = RandomDelays(4, 3, 400, 10)})
          .RunAll({Greedy(prompt, 20), Greedy(prompt, 20), Greedy(prompt, 20)});
  for (const Client& client : crossed) ExpectSameBits(*client.output, *prompt_reply[0].output);
}

}  // namespace
}  // namespace moe
