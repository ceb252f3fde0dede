#include "router/router.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "tests/reference/golden.h"
#include "tests/router/engine_harness.h"

namespace moe {
namespace {

using testing::HasSubstr;

constexpr const char* kFinished = R"(moe_requests_total{outcome="finished"})";
constexpr const char* kCancelled = R"(moe_requests_total{outcome="cancelled"})";
constexpr const char* kRejected = R"(moe_requests_total{outcome="rejected"})";
constexpr const char* kFailed = R"(moe_requests_total{outcome="failed"})";

// More than any test waits for: 25,000 steps.
SequenceRequest Endless(std::uint32_t first = 1) { return Greedy({first, 2, 3}, 25'000); }
constexpr std::size_t kEndlessPages = 800;

void ExpectIdle(EngineHarness& harness) {
  EXPECT_EQ(harness.cache().used_tokens(), 0u);
  EXPECT_EQ(harness.Metric("moe_kv_tokens_used"), 0);
  EXPECT_EQ(harness.Metric("moe_requests_running"), 0);
  EXPECT_EQ(harness.Metric("moe_requests_waiting"), 0);
}

TEST(RouterSubmit, ABatchThatTheQueueCannotHoldIsRefusedWholeWithTheNumbers) {
  EngineHarness harness({.max_queued = 3});
  std::vector<Client> accepted, refused;
  ASSERT_TRUE(harness.Submit({Greedy({1}, 2), Greedy({2}, 2)}, accepted).ok());
  const Status status = harness.Submit({Greedy({3}, 2), Greedy({4}, 2)}, refused);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(),
              testing::AllOf(HasSubstr("holds 2 "), HasSubstr("at most 3 "), HasSubstr("for 2 more")));
  ASSERT_TRUE(harness.Submit({Greedy({5}, 2)}, accepted).ok()) << "there is room for one";
  EXPECT_TRUE(harness.Drain().ok());
  for (const Client& client : accepted) EXPECT_EQ(client.watcher->ends(), 1);
  for (const Client& client : refused) EXPECT_EQ(client.watcher->calls(), 0);
  EXPECT_EQ(harness.Metric(kFinished), 3);
  EXPECT_EQ(harness.Metric(kRejected), 2);
  EXPECT_EQ(harness.Metric("moe_prompt_tokens_total"), 3) << "of accepted sequences";
}

TEST(RouterSubmit, WhatRunsIsNoLongerInTheQueue) {
  // Submits from the engine thread, in the first step, when the two that were queued run; then drains.
  class Submitter final : public OutputListener {
   public:
    explicit Submitter(EngineHarness& harness) : harness_(harness) {}
    void OnOutput() override {
      if (!clients.empty()) return;
      status = harness_.Submit({Greedy({3}, 2), Greedy({4}, 2)}, clients);
      harness_.router().Drain();
    }
    Status status;
    std::vector<Client> clients;

   private:
    EngineHarness& harness_;
  };
  EngineHarness harness({.max_queued = 2});
  const auto submitter = std::make_shared<Submitter>(harness);
  std::vector<std::unique_ptr<Sequence>> batch;
  for (int i = 0; i < 2; ++i) {
    SequenceRequest request = Greedy({1}, 5);
    auto output = std::make_shared<SequenceOutput>(request, harness.config());
    batch.push_back(std::make_unique<Sequence>(std::move(request), std::move(output), submitter, harness.config()));
  }
  ASSERT_TRUE(harness.router().Submit(std::move(batch)).ok());
  EXPECT_TRUE(harness.router().Run().ok());
  EXPECT_TRUE(submitter->status.ok()) << submitter->status.message();
  for (const Client& client : submitter->clients) EXPECT_EQ(client.output->tokens(), 2u);
}

TEST(RouterSubmit, ASequenceThatTheCacheCannotHoldIsRefusedWithItsBatch) {
  EngineHarness harness({.kv_pages = 4});  // 128 positions
  std::vector<Client> clients;
  SequenceRequest large = Greedy(RandomTokens(1, 100, 200), 30);  // needs 129
  large.index = 1;
  const Status status = harness.Submit({Greedy({1}, 2), large}, clients);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), testing::AllOf(HasSubstr("sequences[1]"), HasSubstr("129"), HasSubstr("128")));
  EXPECT_EQ(harness.Metric(kRejected), 2);
  std::vector<Client> fits;
  ASSERT_TRUE(harness.Submit({Greedy(RandomTokens(1, 100, 200), 29)}, fits).ok());
  EXPECT_TRUE(harness.Drain().ok());
  EXPECT_EQ(fits[0].output->tokens(), 29u);
}

TEST(RouterSubmit, ManyThreadsWhileItRunsLoseAndDoubleNothing) {
  EngineHarness harness({.workers = 2, .max_sequences = 4, .kv_pages = 12, .max_queued = 6});
  const std::vector<std::uint32_t> expected = Tokens(*EngineHarness().RunAll({Greedy({7, 8, 9}, 12)}).front().output);
  harness.Start();
  std::atomic<int> accepted{0}, refused{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      std::vector<Client> kept;
      for (int i = 0; i < 25; ++i) {
        std::vector<Client> clients;
        const Status status = harness.Submit({Greedy({7, 8, 9}, 12), Scoring({7, 8, 9}, ScoreLogits::kNone)}, clients);
        if (status.ok()) {
          accepted += 1;
          kept.insert(kept.end(), clients.begin(), clients.end());
        } else {
          EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status.message();
          refused += 1;
          if (!kept.empty()) kept.back().watcher->WaitFinished();
        }
      }
      for (const Client& client : kept) {
        client.watcher->WaitFinished();
        EXPECT_EQ(client.watcher->ends(), 1);
        if (client.output->result.finish == FinishKind::kLength) {
          EXPECT_EQ(Tokens(*client.output), expected);
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(harness.Stop().ok());
  EXPECT_GT(accepted.load(), 0);
  EXPECT_EQ(harness.Metric(kFinished), accepted.load()) << "scores are no requests";
  EXPECT_EQ(harness.Metric(kRejected), refused.load());
  EXPECT_EQ(harness.Metric("moe_prompt_tokens_total"), 6 * accepted.load());
  ExpectIdle(harness);
}

TEST(RouterCancel, AtRandomMomentsEverySequenceEndsOnceAndAllPagesComeBack) {
  EngineHarness harness({.workers = 2, .max_sequences = 6, .max_step_tokens = 16, .prefill_chunk = 5, .kv_pages = 24});
  const auto request = [](std::uint64_t i) {
    SequenceRequest r = Greedy(RandomTokens(i, 1 + i % 40, 200), 1 + static_cast<std::uint32_t>(i * 7 % 30));
    r.return_routing = i % 2 == 0;
    return r;
  };
  constexpr std::uint64_t kSequences = 120;
  harness.Start();
  std::mt19937_64 random(8);
  std::vector<Client> clients;
  std::vector<bool> asked;
  std::vector<std::thread> cancellers;
  for (std::uint64_t i = 0; i < kSequences; ++i) {
    clients.push_back(harness.Submit(request(i)));
    asked.push_back(random() % 3 == 0);
    if (!asked.back()) continue;
    // While it waits, in its prompt, or after some tokens; one thread of its own for some.
    const std::size_t after = random() % 4 == 0 ? 0 : random() % 12;
    cancellers.emplace_back([client = clients.back(), after] {
      client.watcher->WaitForTokens(after);
      client.output->Cancel();
    });
  }
  for (std::thread& canceller : cancellers) canceller.join();
  for (const Client& client : clients) client.watcher->WaitFinished();
  EXPECT_TRUE(harness.Stop().ok());

  int cancelled = 0;
  EngineHarness alone({.kv_pages = 64});
  alone.Start();
  for (std::uint64_t i = 0; i < kSequences; ++i) {
    EXPECT_EQ(clients[i].watcher->ends(), 1);
    const Client whole = alone.Submit(request(i));
    whole.watcher->WaitFinished();
    const std::vector<std::uint32_t> all = Tokens(*whole.output);
    const std::vector<std::uint32_t> got = Tokens(*clients[i].output);
    ASSERT_LE(got.size(), all.size());
    EXPECT_TRUE(std::equal(got.begin(), got.end(), all.begin())) << "sequence " << i;
    if (clients[i].output->result.finish == FinishKind::kCancelled) {
      EXPECT_TRUE(asked[i]);
      ++cancelled;
    } else {
      EXPECT_EQ(clients[i].output->result.finish, FinishKind::kLength);
      EXPECT_EQ(got.size(), all.size());
    }
  }
  EXPECT_GT(cancelled, 0);
  EXPECT_EQ(harness.Metric(kCancelled), cancelled);
  EXPECT_EQ(harness.Metric(kFinished), static_cast<double>(kSequences) - cancelled);
  EXPECT_EQ(harness.Metric(kFailed), 0);
  ExpectIdle(harness);
}

TEST(RouterCancel, AWaitingSequenceEndsWithoutEverRunning) {
  EngineHarness harness({.max_sequences = 1, .kv_pages = kEndlessPages});
  const Client running = harness.Submit(Endless());
  const Client waiting = harness.Submit(Greedy({4}, 5));
  waiting.output->Cancel();
  harness.Start();
  waiting.watcher->WaitFinished();
  EXPECT_FALSE(running.output->finished());
  EXPECT_EQ(waiting.output->result.finish, FinishKind::kCancelled);
  EXPECT_TRUE(waiting.output->result.status.ok());
  EXPECT_EQ(waiting.output->tokens(), 0u);
  EXPECT_EQ(waiting.output->result.time_to_first_token_seconds, 0);
  EXPECT_EQ(waiting.output->result.queue_seconds, waiting.output->result.total_seconds);
  running.output->Cancel();
  EXPECT_TRUE(harness.Stop().ok()) << "a cancelled sequence is no failure";
  EXPECT_EQ(running.output->result.finish, FinishKind::kCancelled);
}

TEST(RouterDrain, WhatIsAcceptedFinishesAndNothingMoreIsTaken) {
  EngineHarness harness({.max_sequences = 2});
  std::vector<Client> clients;
  std::vector<SequenceRequest> requests;
  for (std::uint32_t i = 0; i < 7; ++i) requests.push_back(Greedy({i, i}, 6));
  ASSERT_TRUE(harness.Submit(std::move(requests), clients).ok());
  EXPECT_FALSE(harness.router().draining());
  harness.router().Drain();
  EXPECT_TRUE(harness.router().draining());
  std::vector<Client> late;
  const Status refused = harness.Submit({Greedy({1}, 1)}, late);
  EXPECT_EQ(refused.code(), StatusCode::kUnavailable);
  EXPECT_THAT(refused.message(), HasSubstr("draining"));
  EXPECT_TRUE(harness.router().Run().ok());
  for (const Client& client : clients) {
    EXPECT_EQ(client.output->result.finish, FinishKind::kLength);
    EXPECT_EQ(client.output->tokens(), 6u);
    EXPECT_EQ(client.watcher->ends(), 1);
  }
  EXPECT_EQ(harness.Submit({Greedy({1}, 1)}, late).code(), StatusCode::kUnavailable);
  ExpectIdle(harness);
}

TEST(RouterDrain, WithoutWorkItEndsAtOnce) {
  EngineHarness harness;
  harness.Start();
  EXPECT_TRUE(harness.Stop().ok());
}

TEST(RouterDrain, WhatTheTimeoutLeavesFailsSayingSo) {
  EngineHarness harness(
      {.max_sequences = 2, .kv_pages = 2 * kEndlessPages, .drain_timeout = std::chrono::milliseconds(1)});
  std::vector<Client> clients;
  ASSERT_TRUE(harness.Submit({Endless(1), Endless(2), Greedy({3}, 5)}, clients).ok());
  harness.Start();
  clients[0].watcher->WaitForTokens(2);
  const Status ended = harness.Stop();
  EXPECT_EQ(ended.code(), StatusCode::kUnavailable);
  EXPECT_THAT(ended.message(), HasSubstr("3 sequence(s) did not finish"));
  for (const Client& client : clients) {
    EXPECT_EQ(client.watcher->ends(), 1);
    EXPECT_EQ(client.output->result.finish, FinishKind::kFailed);
    EXPECT_EQ(client.output->result.status.code(), StatusCode::kUnavailable);
    EXPECT_FALSE(client.output->result.status.message().empty());
  }
  EXPECT_GE(clients[0].output->tokens(), 2u) << "what came before stays";
  EXPECT_EQ(harness.Metric(kFailed), 3);
  ExpectIdle(harness);
}

TEST(RouterDrain, StopNowCutsADrainShort) {
  EngineHarness harness({.max_sequences = 1, .kv_pages = kEndlessPages});
  std::vector<Client> clients;
  ASSERT_TRUE(harness.Submit({Endless(), Greedy({1}, 5)}, clients).ok());
  clients[1].output->Cancel();
  harness.Start();
  clients[0].watcher->WaitForTokens(1);
  harness.router().Drain();
  harness.router().StopNow();
  const Status ended = harness.Stop();
  EXPECT_THAT(ended.message(), HasSubstr("1 sequence(s)"));
  EXPECT_EQ(clients[0].output->result.finish, FinishKind::kFailed);
  EXPECT_EQ(clients[1].output->result.finish, FinishKind::kCancelled);
  for (const Client& client : clients) EXPECT_EQ(client.watcher->ends(), 1);
  ExpectIdle(harness);
}

TEST(RouterInspect, RunsOnTheEngineThreadIdleOrBusyAndNotAfterTheEnd) {
  EngineHarness harness({.kv_pages = kEndlessPages});
  harness.Start();
  const auto engine_thread = [&] {
    std::promise<std::thread::id> id;
    EXPECT_TRUE(harness.router().OnEngineThread([&] { id.set_value(std::this_thread::get_id()); }));
    return id.get_future().get();
  };
  const std::thread::id idle = engine_thread();
  EXPECT_NE(idle, std::this_thread::get_id());
  const Client client = harness.Submit(Endless());
  client.watcher->WaitForTokens(1);
  EXPECT_EQ(engine_thread(), idle);
  std::size_t seen = 0;
  std::promise<void> done;
  ASSERT_TRUE(harness.router().OnEngineThread([&] {
    seen = harness.router().scheduler().running();
    done.set_value();
  }));
  done.get_future().wait();
  EXPECT_EQ(seen, 1u);
  client.output->Cancel();
  EXPECT_TRUE(harness.Stop().ok());
  EXPECT_FALSE(harness.router().OnEngineThread([] { FAIL() << "after the end"; }));
}

TEST(RouterInspect, WhatWasTakenInRunsEvenIfTheRouterEnds) {
  EngineHarness harness;
  int ran = 0;
  ASSERT_TRUE(harness.router().OnEngineThread([&] { ++ran; }));
  harness.router().StopNow();
  EXPECT_TRUE(harness.router().Run().ok());
  EXPECT_EQ(ran, 1);
}

class RouterGeneration : public testing::Test {
 protected:
  const Golden golden_ = ReadGolden(SourcePath("tests/goldens/mixtral"));
};

TEST_F(RouterGeneration, StopsAtTheFirstStopTokenWhichIsItsLast) {
  const std::vector<std::uint32_t>& greedy = golden_.prompts[0].greedy;
  SequenceRequest request = Greedy(golden_.prompts[0].ids, 24);
  request.stop_token_ids = {greedy[5], greedy[9]};
  std::sort(request.stop_token_ids.begin(), request.stop_token_ids.end());
  EngineHarness harness;
  const Client client = harness.RunAll({request}).front();
  EXPECT_EQ(Tokens(*client.output), std::vector(greedy.begin(), greedy.begin() + 6));
  EXPECT_EQ(client.output->result.finish, FinishKind::kStop);
  EXPECT_TRUE(client.output->result.status.ok());
}

TEST_F(RouterGeneration, AStopTokenInThePromptDoesNotStop) {
  SequenceRequest request = Greedy(golden_.prompts[0].ids, 3);
  request.stop_token_ids = {golden_.prompts[0].ids.back()};
  EXPECT_EQ(EngineHarness().RunAll({request}).front().output->tokens(), 3u);
}

TEST_F(RouterGeneration, OneNewTokenNeedsNoStepAfterThePrompt) {
  EngineHarness harness;
  const Client client = harness.RunAll({Greedy(golden_.prompts[3].ids, 1)}).front();
  EXPECT_EQ(Tokens(*client.output), std::vector{golden_.prompts[3].greedy[0]});
  EXPECT_EQ(client.output->result.finish, FinishKind::kLength);
  EXPECT_EQ(harness.engine().totals().steps, 1u);
}

TEST_F(RouterGeneration, AScoreOfOneTokenHasNoLogprobs) {
  for (const ScoreLogits logits : {ScoreLogits::kNone, ScoreLogits::kLast, ScoreLogits::kAll}) {
    EngineHarness harness;
    const Client client = harness.RunAll({Scoring({5}, logits)}).front();
    EXPECT_EQ(client.output->result.finish, FinishKind::kStop);
    EXPECT_TRUE(client.output->token_logprobs.empty());
    EXPECT_EQ(client.output->logits.size(), logits == ScoreLogits::kNone ? 0u : 211u);
    EXPECT_EQ(harness.Metric(kFinished), 0) << "a score is no request";
  }
}

TEST_F(RouterGeneration, TimesAreInOrder) {
  EngineHarness harness({.max_sequences = 1});
  const std::vector<Client> clients = harness.RunAll({Greedy({1, 2}, 8), Greedy({3, 4}, 8), Scoring({5, 6}, {})});
  for (const Client& client : clients) {
    const SequenceResult& result = client.output->result;
    EXPECT_GE(result.queue_seconds, 0);
    EXPECT_GT(result.total_seconds, result.queue_seconds);
    if (client.output->tokens() == 0) continue;
    EXPECT_GT(result.time_to_first_token_seconds, result.queue_seconds);
    EXPECT_LT(result.time_to_first_token_seconds, result.total_seconds);
  }
  EXPECT_GE(clients[1].output->result.queue_seconds,
            clients[0].output->result.total_seconds - clients[0].output->result.queue_seconds)
      << "the second waits until the first has ended";
}

TEST_F(RouterGeneration, MicroBatchesAreCountedAndChangeNoCount) {
  EngineHarness harness({.workers = 2, .micro_batches = {.most = 2}, .max_step_tokens = 8});
  harness.RunAll({Greedy(RandomTokens(1, 24, 200), 10)});
  // Three steps of 8 rows, then nine of one, which is not cut.
  EXPECT_EQ(harness.Metric("moe_steps_total"), 3 + 9);
  EXPECT_EQ(harness.Metric("moe_step_micro_batches_total"), 2 * 3 + 9);
  const auto layers = static_cast<double>(harness.config().sparse_layers().size());
  double rows = 0;
  for (const int rank : {1, 2}) rows += harness.Metric(Cat("moe_rank_rows_total{rank=\"", rank, "\"}"));
  EXPECT_EQ(rows, layers * (24 + 9) * 2);
}

TEST_F(RouterGeneration, MetricsCountWhatHappened) {
  EngineHarness harness({.workers = 2, .max_step_tokens = 8});
  harness.RunAll({Greedy(RandomTokens(1, 20, 200), 10), Greedy(RandomTokens(2, 3, 200), 4)});
  const std::size_t positions = 20 + 9 + 3 + 3;
  const auto layers = static_cast<double>(harness.config().sparse_layers().size());
  EXPECT_EQ(harness.Metric("moe_steps_total"), static_cast<double>(harness.engine().totals().steps));
  EXPECT_EQ(harness.Metric("moe_step_seconds_count"), harness.Metric("moe_steps_total"));
  EXPECT_EQ(harness.Metric("moe_step_micro_batches_total"), harness.Metric("moe_steps_total"));
  EXPECT_EQ(harness.Metric("moe_batch_tokens_sum"), static_cast<double>(positions));
  double rows = 0, tokens = 0;
  for (const int rank : {1, 2}) {
    rows += harness.Metric(Cat("moe_rank_rows_total{rank=\"", rank, "\"}"));
    EXPECT_EQ(harness.Metric(Cat("moe_worker_up{rank=\"", rank, "\"}")), 1);
    EXPECT_GT(harness.Metric(Cat("moe_exchange_seconds_count{rank=\"", rank, "\",transport=\"inprocess\"}")), 0);
  }
  for (int expert = 0; expert < 6; ++expert)
    tokens += harness.Metric(Cat("moe_expert_tokens_total{expert=\"", expert, "\"}"));
  EXPECT_EQ(rows, layers * static_cast<double>(positions) * 2);
  EXPECT_EQ(tokens, rows);
  EXPECT_EQ(harness.Metric("moe_request_inter_token_seconds_count"), 9 + 3);
  EXPECT_EQ(harness.Metric("moe_request_time_to_first_token_seconds_count"), 2);
  EXPECT_EQ(harness.Metric("moe_request_time_per_output_token_seconds_count"), 2);
  EXPECT_EQ(harness.Metric("moe_request_e2e_seconds_count"), 2);
  const double touched = harness.Metric("moe_step_touched_parameters_total");
  EXPECT_EQ(touched, static_cast<double>(harness.parameters().dense() * harness.engine().totals().steps +
                                         harness.parameters().expert_parameters_each() *
                                             harness.engine().totals().distinct_experts));
}

}  // namespace
}  // namespace moe
