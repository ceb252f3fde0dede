// Whole load runs against a service that answers rightly or wrongly on purpose.
#include "bench/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/bench/fake_inference_server.h"

namespace moe {
namespace {

using testing::HasSubstr;

LoadOptions Options(const FakeInferenceServer& server) {
  LoadOptions options;
  options.client.server = server.address();
  options.workload.input_len = {8, 8};
  options.workload.output_len = {4, 4};
  options.num_requests = 10;
  return options;
}

LoadResult RunOk(const LoadOptions& options) {
  auto result = RunLoad(options);
  EXPECT_TRUE(result.ok()) << result.status().message();
  return result.ok() ? *std::move(result) : LoadResult{};
}

TEST(Load, CountsEveryRequestAndToken) {
  const FakeInferenceServer server;
  const LoadResult result = RunOk(Options(server));
  EXPECT_TRUE(result.clean());
  EXPECT_EQ(result.figures.completed, 10u);
  EXPECT_EQ(result.figures.failed, 0u);
  EXPECT_EQ(result.figures.total_input_tokens, 80u);
  EXPECT_EQ(result.figures.total_output_tokens, 40u);
  EXPECT_EQ(server.seen().size(), 10u);
  ASSERT_TRUE(result.figures.ttft_ms);
  EXPECT_GT(result.figures.ttft_ms->mean, 0);
  EXPECT_GE(result.figures.e2el_ms->mean, result.figures.ttft_ms->mean);
  EXPECT_GE(result.figures.duration * 1000, result.figures.e2el_ms->p99);
}

TEST(Load, TokensThatComeTogetherAreCountedEach) {
  const FakeInferenceServer server({.tokens_per_event = 3});
  const LoadResult result = RunOk(Options(server));
  EXPECT_TRUE(result.clean());
  EXPECT_EQ(result.figures.total_output_tokens, 40u);
  // Of the three gaps of each sequence, the two within its first event are 0.
  EXPECT_EQ(result.figures.itl_ms->median, 0);
}

TEST(Load, RequestsAreSequences) {
  const FakeInferenceServer server;
  LoadOptions options = Options(server);
  options.workload.sequences_per_request = 3;
  const LoadResult result = RunOk(options);
  EXPECT_EQ(result.figures.completed, 30u);
  EXPECT_EQ(result.figures.total_output_tokens, 120u);
  EXPECT_EQ(server.seen().size(), 10u);
}

TEST(Load, ASeedNamesTheWholeRun) {
  const FakeInferenceServer first;
  const FakeInferenceServer second;
  LoadOptions options = Options(first);
  options.workload.input_len = {4, 20};
  options.workload.seed = 11;
  options.client.sampling = {.temperature = 0.5F, .ignore_eos = false};
  const LoadResult result = RunOk(options);
  options.client.server = second.address();
  options.concurrency = 2;  // another order of events, the same requests
  const LoadResult again = RunOk(options);
  EXPECT_EQ(result.figures.output_hash, again.figures.output_hash);
  const auto sent = first.seen();
  const auto sent_again = second.seen();
  ASSERT_EQ(sent.size(), 10u);
  for (const auto& [id, call] : sent) {
    ASSERT_TRUE(sent_again.contains(id));
    EXPECT_EQ(call.prompts, sent_again.at(id).prompts);
    EXPECT_EQ(call.seed, sent_again.at(id).seed);
    EXPECT_EQ(call.temperature, 0.5F);
    EXPECT_FALSE(call.ignore_eos);
  }
  options.workload.seed = 12;
  EXPECT_NE(RunOk(options).figures.output_hash, result.figures.output_hash);
}

// A call that has ended may leave its memory to the next one before its end has been put down.
TEST(Load, ManyShortCallsAreToldApart) {
  // The first are held until as many are open as may be: a server that is faster than this sees fewer at a time.
  const FakeInferenceServer server({.open_together = 200, .refuse_all_with = "queue is full"});
  LoadOptions options = Options(server);
  options.workload.output_len = {1, 1};
  options.num_requests = 20'000;
  options.concurrency = 200;
  const LoadResult result = RunOk(options);
  EXPECT_EQ(result.figures.failures.at("RESOURCE_EXHAUSTED").count, 20'000u);
  EXPECT_EQ(result.max_concurrent_requests, 200u);
}

TEST(Load, OpenLoopSendsWithoutWaitingForAnswers) {
  // Nothing is answered until all are open, so this would never end if one waited for another.
  const FakeInferenceServer server({.open_together = 200});
  LoadOptions options = Options(server);
  options.num_requests = 200;
  const LoadResult result = RunOk(options);
  EXPECT_EQ(result.figures.completed, 200u);
  EXPECT_EQ(result.max_concurrent_requests, 200u);
}

TEST(Load, OpenLoopCountsTheWaitForAPlace) {
  const FakeInferenceServer server;
  LoadOptions options = Options(server);
  options.max_concurrency = 1;  // all are due at once, but go one after the other
  const LoadResult result = RunOk(options);
  EXPECT_EQ(result.figures.completed, 10u);
  EXPECT_EQ(server.most_open(), 1);
  EXPECT_EQ(result.concurrency_limit, 1u);
  // Calls that follow each other take no more than the run together; with their waits from its start they take more.
  EXPECT_GT(result.figures.e2el_ms->mean * 10, result.figures.duration * 1000);
  EXPECT_GT(result.figures.ttft_ms->mean * 10, result.figures.duration * 1000);
}

TEST(Load, ClosedLoopKeepsExactlySoManyOpen) {
  // Answers need four open calls at a time to begin with; a fifth would show in most_open.
  const FakeInferenceServer server({.open_together = 4});
  LoadOptions options = Options(server);
  options.num_requests = 40;
  options.concurrency = 4;
  const LoadResult result = RunOk(options);
  EXPECT_EQ(result.figures.completed, 40u);
  EXPECT_EQ(server.most_open(), 4);
  EXPECT_EQ(result.max_concurrent_requests, 4u);
  EXPECT_EQ(result.concurrency_limit, 4u);
}

TEST(Load, TheWarmUpIsInNoFigure) {
  const FakeInferenceServer server;
  LoadOptions options = Options(server);
  options.warmup = 5;
  const LoadResult result = RunOk(options);
  EXPECT_EQ(result.figures.completed, 10u);
  EXPECT_EQ(result.figures.total_output_tokens, 40u);
  EXPECT_EQ(result.warmup.completed, 5u);
  EXPECT_EQ(result.warmup.input_tokens, 40u);
  EXPECT_EQ(result.warmup.output_tokens, 20u);
  EXPECT_EQ(server.seen().size(), 15u);
}

TEST(Load, AWarmUpThatFailsEndsTheRun) {
  const FakeInferenceServer server({.refuse_all_with = "queue is full"});
  LoadOptions options = Options(server);
  options.warmup = 3;
  const auto result = RunLoad(options);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(result.status().message(),
            "warm-up: 3 of 3 requests did not complete: RESOURCE_EXHAUSTED 3 (queue is full).");
  EXPECT_EQ(server.seen().size(), 3u);
}

TEST(Load, ReportsEveryFaultByItsName) {
  const FakeInferenceServer server({.faults = {{"moe-bench-1", Fault::kDropFinish},
                                               {"moe-bench-2", Fault::kDropToken},
                                               {"moe-bench-3", Fault::kDoubleToken},
                                               {"moe-bench-4", Fault::kTokenAfterFinish},
                                               {"moe-bench-5", Fault::kDoubleFinish},
                                               {"moe-bench-6", Fault::kFailSequence},
                                               {"moe-bench-7", Fault::kStraySequence},
                                               {"moe-bench-8", Fault::kInvalidToken},
                                               {"moe-bench-9", Fault::kRefuse},
                                               {"moe-bench-10", Fault::kBreakOff},
                                               {"moe-bench-11", Fault::kCancelCall}}});
  LoadOptions options = Options(server);
  options.num_requests = 13;
  const LoadResult result = RunOk(options);
  EXPECT_FALSE(result.clean());
  EXPECT_FALSE(result.interrupted);
  EXPECT_EQ(result.figures.completed, 2u);
  EXPECT_EQ(result.figures.failed, 11u);
  EXPECT_EQ(result.figures.lost, 2u);
  EXPECT_EQ(result.figures.doubled, 3u);
  EXPECT_EQ(result.figures.total_output_tokens, 8u);
  std::map<std::string, std::string> reasons;
  for (const auto& [reason, failure] : result.figures.failures) {
    EXPECT_EQ(failure.count, 1u) << reason;
    reasons[reason] = failure.message;
  }
  EXPECT_EQ(reasons,
            (std::map<std::string, std::string>{{"LOST_FINISH", "the call ended OK without a Finish"},
                                                {"LOST_TOKENS", "3 tokens came of 4 counted"},
                                                {"DOUBLED_TOKENS", "5 tokens came, 4 counted"},
                                                {"TOKENS_AFTER_FINISH", "1 tokens after the Finish"},
                                                {"DOUBLED_FINISH", "2 Finish events where one was expected"},
                                                {"FINISH_FAILED", "worker lost"},
                                                {"STRAY_EVENT", "1 events for a sequence that the call does not have"},
                                                {"INVALID_TOKEN", "1 token ids beyond the vocabulary"},
                                                {"RESOURCE_EXHAUSTED", "queue is full"},
                                                {"UNAVAILABLE", "draining"},
                                                {"CANCELLED", "by the server"}}));
}

TEST(Load, OneBadSequenceDoesNotCondemnItsBatch) {
  const FakeInferenceServer server(
      {.faults = {{"moe-bench-0", Fault::kFailSequence}, {"moe-bench-1", Fault::kBreakOff}}});
  LoadOptions options = Options(server);
  options.num_requests = 3;
  options.workload.sequences_per_request = 3;
  const LoadResult result = RunOk(options);
  // Call 0: the first completes, two fail. Call 1: the first completes, then the call breaks off. Call 2: all three.
  EXPECT_EQ(result.figures.completed, 5u);
  EXPECT_EQ(result.figures.failures.at("FINISH_FAILED").count, 2u);
  EXPECT_EQ(result.figures.failures.at("UNAVAILABLE").count, 2u);
}

TEST(Load, ARefusingServerIsReportedInFull) {
  const FakeInferenceServer server({.refuse_all_with = "queue is full"});
  const LoadResult result = RunOk(Options(server));
  EXPECT_EQ(result.figures.completed, 0u);
  EXPECT_EQ(result.figures.failures.at("RESOURCE_EXHAUSTED").count, 10u);
  EXPECT_FALSE(result.figures.ttft_ms);
}

TEST(Load, AnInterruptGivesWhatThereIs) {
  FakeInferenceServer server({.faults = {{"moe-bench-2", Fault::kHang}, {"moe-bench-3", Fault::kHang}}});
  std::atomic<bool> interrupted{false};
  LoadOptions options = Options(server);
  options.concurrency = 2;  // the two that hang keep all others from being sent
  options.client.interrupted = &interrupted;
  std::thread user([&] {
    server.WaitForHanging(2);
    interrupted.store(true);
  });
  const LoadResult result = RunOk(options);
  user.join();
  EXPECT_TRUE(result.interrupted);
  EXPECT_FALSE(result.clean());
  EXPECT_EQ(result.figures.completed, 2u);
  EXPECT_EQ(result.figures.interrupted, 2u);
  EXPECT_EQ(result.figures.not_sent, 6u);
  EXPECT_EQ(result.figures.failed, 0u);
}

TEST(Load, AnInterruptAfterTheLastCallWasSentEndsToo) {
  FakeInferenceServer server({.faults = {{"moe-bench-9", Fault::kHang}}});
  std::atomic<bool> interrupted{false};
  LoadOptions options = Options(server);
  options.client.interrupted = &interrupted;
  std::thread user([&] {
    server.WaitForHanging(1);
    interrupted.store(true);
  });
  const LoadResult result = RunOk(options);
  user.join();
  EXPECT_TRUE(result.interrupted);
  EXPECT_GE(result.figures.interrupted, 1u);
  EXPECT_EQ(result.figures.completed + result.figures.interrupted, 10u);
}

TEST(Load, ACallThatTakesTooLongIsAFailure) {
  FakeInferenceServer server({.faults = {{"moe-bench-0", Fault::kHang}}});
  LoadOptions options = Options(server);
  options.num_requests = 1;
  options.client.call_timeout = std::chrono::milliseconds(50);
  const LoadResult result = RunOk(options);
  EXPECT_EQ(result.figures.failures.at("DEADLINE_EXCEEDED").count, 1u);
}

TEST(Load, AnUnreachableServerIsNamed) {
  LoadOptions options;
  options.client.server = "127.0.0.1:1";
  options.client.connect_timeout = std::chrono::milliseconds(50);
  const auto result = RunLoad(options);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(result.status().message(), HasSubstr("127.0.0.1:1"));
}

TEST(Load, RefusesOptionsThatExcludeEachOther) {
  const FakeInferenceServer server;
  const auto expect_refused = [&](const std::function<void(LoadOptions&)>& spoil, const char* expected) {
    LoadOptions options = Options(server);
    spoil(options);
    const auto result = RunLoad(options);
    ASSERT_FALSE(result.ok()) << expected;
    EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(result.status().message(), HasSubstr(expected));
  };
  expect_refused([](LoadOptions& o) { o.num_requests = 0; }, "--num-requests");
  expect_refused([](LoadOptions& o) { o.workload.sequences_per_request = 0; }, "--sequences-per-request");
  expect_refused([](LoadOptions& o) { o.request_rate = 0; }, "--request-rate");
  expect_refused([](LoadOptions& o) { o.request_rate = -1; }, "--request-rate");
  expect_refused([](LoadOptions& o) { o.concurrency = 2, o.request_rate = 5; }, "--concurrency 2");
  expect_refused([](LoadOptions& o) { o.concurrency = 2, o.max_concurrency = 5; }, "--concurrency 2");
  expect_refused([](LoadOptions& o) { o.workload.input_len = {1, 512}; }, "context of 512");
  EXPECT_TRUE(server.seen().empty());
}

}  // namespace
}  // namespace moe
