#include "router/inference_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <thread>

#include "tests/reference/golden.h"
#include "tests/router/service_harness.h"

namespace moe {
namespace {

using grpc::StatusCode;  // hides moe::StatusCode: clients see gRPC's
using testing::AllOf;
using testing::HasSubstr;

const Golden& Mixtral() {
  static const Golden golden = ReadGolden(SourcePath("tests/goldens/mixtral"));
  return golden;
}
const std::vector<std::uint32_t>& Prompt(std::size_t i) { return Mixtral().prompts[i].ids; }

// More tokens than any test reads: the cache holds two of them.
constexpr std::uint32_t kEndless = 25'000;

// Every reply of rank 2 from the eleventh step on is broken: three layers a step, each one exchange. (Rank 2 has no
// part in some of them.)
FaultScript BrokenFromStepEleven() {
  FaultScript script;
  for (std::uint64_t exchange = 30; exchange < 75; ++exchange)
    script.push_back({.kind = FaultKind::kCorruptReplyLength, .worker = WorkerId(1), .exchange = exchange});
  return script;
}

ServiceOptions Roomy() { return {.engine = {.workers = 2, .kv_pages = 1600}}; }

TEST(GenerateCall, StreamsABatchInOrderAndFinishesEachSequenceOnce) {
  ServiceHarness harness({.engine = {.workers = 2, .max_step_tokens = 16, .prefill_chunk = 7}});
  v1::GenerateRequest request = GenerateBatch({Prompt(0), Prompt(1), Prompt(3)}, 24);
  request.set_logprobs(2);
  request.set_return_routing(true);
  const GenerateOutcome outcome = Generate(harness.inference(), request);
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  ASSERT_EQ(outcome.sequences.size(), 3u);
  const std::array<std::size_t, 3> goldens = {0, 1, 3};
  for (std::size_t i = 0; i < 3; ++i) {
    const Received& received = outcome.sequences[i];
    const GoldenPrompt& golden = Mixtral().prompts[goldens[i]];
    EXPECT_EQ(received.tokens, golden.greedy);
    ASSERT_EQ(received.logprobs.size(), 24u);
    for (std::size_t t = 0; t < 24; ++t) {
      ASSERT_EQ(received.logprobs[t].top_token_ids_size(), 2);
      EXPECT_EQ(received.logprobs[t].top_token_ids(0), received.tokens[t]);
      EXPECT_EQ(received.logprobs[t].top_logprobs(0), received.logprobs[t].logprob());
    }
    ASSERT_EQ(received.routed.size(), 3u) << "one a sparse layer";
    const std::size_t positions = golden.ids.size() + 23;
    for (const auto& layer : received.routed) EXPECT_EQ(layer.size(), positions * 2);
    ASSERT_TRUE(received.finish.has_value());
    EXPECT_EQ(received.finish->reason(), v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(received.finish->message(), "");
    const v1::Usage& usage = received.finish->usage();
    EXPECT_EQ(usage.prompt_tokens(), golden.ids.size());
    EXPECT_EQ(usage.generated_tokens(), 24u);
    EXPECT_EQ(usage.active_parameters_per_token(), harness.engine().parameters().active);
    EXPECT_EQ(usage.expert_rows(), positions * 3 * 2);
    EXPECT_GT(usage.unique_experts(), 0u);
    EXPECT_GE(usage.queue_seconds(), 0);
    EXPECT_GT(usage.time_to_first_token_seconds(), usage.queue_seconds());
    EXPECT_GT(usage.total_seconds(), usage.time_to_first_token_seconds());
  }
  EXPECT_EQ(harness.engine().Metric("moe_generated_tokens_total"), 72);
}

TEST(GenerateCall, RoutingIsThatOfTheEngine) {
  ServiceHarness harness({.engine = {.workers = 2}});
  v1::GenerateRequest request = GenerateBatch({Prompt(0)}, 1);
  request.set_return_routing(true);
  const GenerateOutcome outcome = Generate(harness.inference(), request);
  for (std::size_t layer = 0; layer < 3; ++layer) {
    const std::vector<std::int32_t>& golden = Mixtral().tensor(Cat("prompt0.router.", layer, ".ids")).ints;
    EXPECT_EQ(outcome.sequences[0].routed[layer], std::vector<std::uint32_t>(golden.begin(), golden.end()));
  }
}

TEST(GenerateCall, StopTokensAndTheModelsOwnEndASequence) {
  ServiceHarness harness;
  v1::GenerateRequest request = GenerateBatch({Prompt(0)}, 24);
  request.add_stop_token_ids(Mixtral().prompts[0].greedy[4]);
  const GenerateOutcome stopped = Generate(harness.inference(), request);
  EXPECT_EQ(stopped.sequences[0].tokens.size(), 5u);
  EXPECT_EQ(stopped.sequences[0].finish->reason(), v1::FINISH_REASON_STOP);

  // Prompt 1's continuation has the model's end, 2, as its 20th token.
  request = GenerateBatch({Prompt(1)}, 24);
  request.set_ignore_eos(false);
  const GenerateOutcome ended = Generate(harness.inference(), request);
  EXPECT_EQ(ended.sequences[0].tokens.size(), 20u);
  EXPECT_EQ(ended.sequences[0].finish->reason(), v1::FINISH_REASON_STOP);
}

TEST(GenerateCall, ASeedRepeatsASampleAndWithoutOneItIsDrawn) {
  ServiceHarness harness;
  v1::GenerateRequest request = GenerateBatch({Prompt(0), Prompt(0)}, 30);
  request.mutable_sampling()->set_temperature(1.5f);
  const auto sample = [&] { return Generate(harness.inference(), request).sequences; };
  EXPECT_NE(sample()[0].tokens, sample()[0].tokens);
  request.mutable_sampling()->set_seed(9);
  const std::vector<Received> seeded = sample();
  EXPECT_EQ(sample()[0].tokens, seeded[0].tokens);
  EXPECT_NE(seeded[1].tokens, seeded[0].tokens) << "the index in the batch counts";
}

TEST(GenerateCall, AClientThatCancelsFreesItsSequences) {
  ServiceHarness harness(Roomy());
  grpc::ClientContext context;
  const auto reader = harness.inference().Generate(&context, GenerateBatch({Prompt(0), Prompt(1)}, kEndless));
  v1::GenerateEvent event;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(reader->Read(&event));
  EXPECT_GT(harness.engine().Metric("moe_kv_tokens_used"), 0);
  context.TryCancel();
  while (reader->Read(&event)) continue;
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::CANCELLED);
  EXPECT_TRUE(harness.EventuallyIdle());
  EXPECT_EQ(harness.engine().Metric(R"(moe_requests_total{outcome="cancelled"})"), 2);
}

TEST(GenerateCall, AClientsDeadlineEndsItsSequences) {
  ServiceHarness harness(Roomy());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  const auto reader = harness.inference().Generate(&context, GenerateBatch({Prompt(0)}, kEndless));
  v1::GenerateEvent event;
  while (reader->Read(&event)) continue;
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(harness.EventuallyIdle());
  EXPECT_EQ(harness.engine().Metric(R"(moe_requests_total{outcome="finished"})"), 0);
}

TEST(GenerateCall, ASlowReaderGetsFewerEventsAndEveryToken) {
  constexpr std::uint32_t kTokens = 2000;
  const std::vector<Client> alone = EngineHarness({.kv_pages = 80}).RunAll({Greedy(Prompt(0), kTokens)});
  ServiceHarness harness({.engine = {.workers = 2, .kv_pages = 80}});
  v1::GenerateRequest request = GenerateBatch({Prompt(0)}, kTokens);
  request.set_logprobs(20);  // fills the connection's window long before the end
  request.set_return_routing(true);
  grpc::ClientContext context;
  const auto reader = harness.inference().Generate(&context, request);
  // Nothing is read until all of it is there.
  ASSERT_TRUE(
      harness.Eventually([&] { return harness.engine().Metric(R"(moe_requests_total{outcome="finished"})") == 1; }));
  std::vector<Received> sequences;
  v1::GenerateEvent event;
  while (reader->Read(&event)) Receive(event, sequences);
  ASSERT_TRUE(reader->Finish().ok());
  ASSERT_EQ(sequences.size(), 1u);
  EXPECT_EQ(sequences[0].tokens, Tokens(*alone[0].output));
  EXPECT_EQ(sequences[0].logprobs.size(), kTokens);
  for (const auto& layer : sequences[0].routed) EXPECT_EQ(layer.size(), 2 * (Prompt(0).size() + kTokens - 1));
  EXPECT_LT(sequences[0].events, static_cast<int>(kTokens));
  EXPECT_EQ(sequences[0].finish->usage().generated_tokens(), kTokens);
  EXPECT_EQ(harness.engine().Metric("moe_generated_tokens_total"), kTokens);
}

TEST(GenerateCall, AMessageOverTheLimitIsRefused) {
  ServiceHarness harness({.max_receive_bytes = 4096});
  const GenerateOutcome outcome = Generate(harness.inference(), GenerateBatch({RandomTokens(1, 5000, 128)}, 1));
  EXPECT_EQ(outcome.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("4096"));
  EXPECT_TRUE(Generate(harness.inference(), GenerateBatch({RandomTokens(1, 500, 128)}, 1)).status.ok());
}

TEST(GenerateCall, BadRequestsAreInvalidArgumentsAndCountAsRejected) {
  ServiceHarness harness;
  v1::GenerateRequest request = GenerateBatch({{1}, {211}, {2}}, 5);
  const grpc::Status status = Generate(harness.inference(), request).status;
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), AllOf(HasSubstr("sequences[1].token_ids[0]"), HasSubstr("211")));
  EXPECT_EQ(Generate(harness.inference(), {}).status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(harness.engine().Metric(R"(moe_requests_total{outcome="rejected"})"), 3 + 1);
  EXPECT_EQ(harness.engine().Metric("moe_steps_total"), 0);
}

TEST(GenerateCall, WhatTheQueueOrTheCacheCannotHoldIsRefusedAtOnce) {
  ServiceHarness harness({.engine = {.kv_pages = 2, .max_queued = 3}});
  const grpc::Status queue = Generate(harness.inference(), GenerateBatch({{1}, {1}, {1}, {1}}, 2)).status;
  EXPECT_EQ(queue.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(queue.error_message(), AllOf(HasSubstr("at most 3"), HasSubstr("4 more")));
  const grpc::Status cache = Generate(harness.inference(), GenerateBatch({{1}}, 65)).status;
  EXPECT_EQ(cache.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(cache.error_message(), AllOf(HasSubstr("65"), HasSubstr("64")));
}

TEST(GenerateCall, CallsOverTheLimitAreRefusedUntilOneEnds) {
  ServiceOptions options = Roomy();
  options.limits.max_streams = 2;
  ServiceHarness harness(options);
  std::array<grpc::ClientContext, 2> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>>> readers;
  v1::GenerateEvent event;
  for (grpc::ClientContext& context : contexts) {
    readers.push_back(harness.inference().Generate(&context, GenerateBatch({Prompt(0)}, kEndless)));
    ASSERT_TRUE(readers.back()->Read(&event));
  }
  const grpc::Status third = Generate(harness.inference(), GenerateBatch({{1}, {2}}, 1)).status;
  EXPECT_EQ(third.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(third.error_message(), HasSubstr("at most 2 calls"));
  grpc::ClientContext score_context;
  v1::ScoreResponse scores;
  EXPECT_EQ(harness.inference().Score(&score_context, ScoreBatch({{1, 2}}), &scores).error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(harness.engine().Metric(R"(moe_requests_total{outcome="rejected"})"), 2);
  for (grpc::ClientContext& context : contexts) context.TryCancel();
  for (const auto& reader : readers) {
    while (reader->Read(&event)) continue;
    EXPECT_EQ(reader->Finish().error_code(), StatusCode::CANCELLED);
  }
  EXPECT_TRUE(harness.Eventually([&] { return Generate(harness.inference(), GenerateBatch({{1}}, 1)).status.ok(); }));
}

TEST(GenerateCall, OutputsOverTheBudgetOfAllCallsAreRefused) {
  ServiceOptions options;
  options.limits.max_output_bytes = 10'000;
  ServiceHarness harness(options);
  const grpc::Status status = Generate(harness.inference(), GenerateBatch({{1}}, 2000)).status;
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("10000 bytes"));
  // What a call held is given back: many small ones pass, one after the other.
  for (int i = 0; i < 50; ++i)
    EXPECT_TRUE(
        harness.Eventually([&] { return Generate(harness.inference(), GenerateBatch({{1}}, 100)).status.ok(); }));
}

TEST(GenerateCall, IsUnavailableWhileDraining) {
  ServiceHarness harness;
  harness.engine().router().Drain();
  const grpc::Status status = Generate(harness.inference(), GenerateBatch({{1}}, 1)).status;
  EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("draining"));
}

TEST(GenerateCall, WhenAllSequencesFailForOneReasonTheCallFailsWithIt) {
  ServiceOptions options = Roomy();
  options.engine.faults = BrokenFromStepEleven();
  ServiceHarness harness(options);
  const GenerateOutcome outcome = Generate(harness.inference(), GenerateBatch({Prompt(0), Prompt(1)}, kEndless));
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("rank 2"));
  EXPECT_FALSE(outcome.status.ok());
  ASSERT_EQ(outcome.sequences.size(), 2u);
  for (const Received& received : outcome.sequences) {
    EXPECT_FALSE(received.tokens.empty());
    ASSERT_TRUE(received.finish.has_value());
    EXPECT_EQ(received.finish->reason(), v1::FINISH_REASON_FAILED);
    EXPECT_EQ(received.finish->message(), outcome.status.error_message());
    EXPECT_EQ(received.finish->usage().generated_tokens(), received.tokens.size());
  }
}

TEST(GenerateCall, WhenOneOfSeveralFailsTheCallIsOk) {
  ServiceOptions options = Roomy();
  options.engine.faults = BrokenFromStepEleven();
  ServiceHarness harness(options);
  v1::GenerateRequest request = GenerateBatch({Prompt(0), Prompt(1)}, kEndless);
  request.add_stop_token_ids(Mixtral().prompts[0].greedy[2]);
  ASSERT_THAT(Mixtral().prompts[1].greedy, testing::Not(testing::Contains(Mixtral().prompts[0].greedy[2])));
  const GenerateOutcome outcome = Generate(harness.inference(), request);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.sequences[0].finish->reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(outcome.sequences[1].finish->reason(), v1::FINISH_REASON_FAILED);
  EXPECT_THAT(outcome.sequences[1].finish->message(), HasSubstr("rank 2"));
}

TEST(ScoreCall, GivesTheEnginesNumbersForEveryKindOfLogits) {
  EngineHarness engine({.workers = 3});
  SequenceRequest wanted = Scoring(Prompt(3), ScoreLogits::kAll);
  wanted.return_routing = true;
  const std::vector<Client> clients = engine.RunAll({wanted, Scoring({5}, ScoreLogits::kAll)});
  const SequenceOutput& expected = *clients[0].output;
  ServiceHarness harness({.engine = {.workers = 2}});
  for (const v1::LogitsMode mode : {v1::LOGITS_MODE_NONE, v1::LOGITS_MODE_LAST, v1::LOGITS_MODE_ALL}) {
    v1::ScoreRequest request = ScoreBatch({Prompt(3), {5}});
    request.set_return_logits(mode);
    request.set_return_routing(true);
    grpc::ClientContext context;
    v1::ScoreResponse response;
    const grpc::Status status = harness.inference().Score(&context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    ASSERT_EQ(response.scores_size(), 2);
    const v1::SequenceScore& score = response.scores(0);
    EXPECT_EQ(std::vector(score.token_logprobs().begin(), score.token_logprobs().end()), expected.token_logprobs);
    const double sum = std::accumulate(expected.token_logprobs.begin(), expected.token_logprobs.end(), 0.0);
    EXPECT_DOUBLE_EQ(score.mean_nll(), -sum / static_cast<double>(expected.token_logprobs.size()));
    const std::size_t rows = mode == v1::LOGITS_MODE_NONE ? 0 : mode == v1::LOGITS_MODE_LAST ? 1 : Prompt(3).size();
    EXPECT_EQ(std::vector(score.logits().begin(), score.logits().end()),
              std::vector(expected.logits.end() - static_cast<std::ptrdiff_t>(rows * 211), expected.logits.end()));
    ASSERT_EQ(score.routing_size(), 3);
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
    for (int layer = 0; layer < 3; ++layer) {
      EXPECT_EQ(score.routing(layer).layer(), static_cast<std::uint32_t>(layer));
      EXPECT_EQ(score.routing(layer).experts_per_token(), 2u);
      for (const std::uint32_t id : score.routing(layer).expert_ids()) ids.push_back(static_cast<std::int32_t>(id));
      weights.insert(weights.end(), score.routing(layer).weights().begin(), score.routing(layer).weights().end());
    }
    EXPECT_EQ(ids, expected.routing_ids);
    EXPECT_EQ(weights, expected.routing_weights);
    EXPECT_EQ(response.scores(1).token_logprobs_size(), 0);
    EXPECT_EQ(response.scores(1).mean_nll(), 0);
    EXPECT_EQ(response.scores(1).logits_size(), rows == 0 ? 0 : 211);
  }
  EXPECT_EQ(harness.engine().Metric("moe_prompt_tokens_total"), 3.0 * static_cast<double>(Prompt(3).size() + 1));
  EXPECT_EQ(harness.engine().Metric(R"(moe_requests_total{outcome="finished"})"), 0) << "a score is no request";
}

TEST(ScoreCall, BadRequestsAreInvalidArguments) {
  ServiceHarness harness;
  grpc::ClientContext context;
  v1::ScoreResponse response;
  const grpc::Status status = harness.inference().Score(&context, ScoreBatch({{1}, {}}), &response);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("sequences[1].token_ids"));
}

TEST(ScoreCall, AClientsDeadlineEndsItsSequences) {
  // A chunk a step, so that 30,000 positions take far longer than the deadline.
  ServiceHarness harness({.engine = {.max_step_tokens = 2, .kv_pages = 1000}});
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  v1::ScoreResponse response;
  const grpc::Status status =
      harness.inference().Score(&context, ScoreBatch({RandomTokens(1, 30'000, 200)}), &response);
  EXPECT_EQ(status.error_code(), StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(harness.EventuallyIdle());
}

TEST(GetModelCall, DescribesTheModelAndTheLimits) {
  ServiceOptions options;
  options.limits = {.max_sequences_per_request = 17,
                    .max_logprobs = 18,
                    .max_stop_token_ids = 19,
                    .max_streams = 20,
                    .max_reply_bytes = 21,
                    .max_output_bytes = 22};
  options.engine.max_queued = 23;
  ServiceHarness harness(options);
  grpc::ClientContext context;
  v1::ModelDescription model;
  ASSERT_TRUE(harness.inference().GetModel(&context, {}, &model).ok());
  EXPECT_EQ(model.name(), "test-model");
  EXPECT_EQ(model.architecture(), "MixtralForCausalLM");
  EXPECT_EQ(model.weight_type(), "f32");
  EXPECT_EQ(model.vocab_size(), 211u);
  EXPECT_EQ(model.hidden_size(), 56u);
  EXPECT_EQ(model.num_layers(), 3u);
  EXPECT_EQ(model.num_experts(), 6u);
  EXPECT_EQ(model.experts_per_token(), 2u);
  EXPECT_EQ(model.context_length(), 32768u);
  EXPECT_THAT(model.eos_token_ids(), testing::ElementsAre(2));
  // 3 layers of 6 experts of 3 matrices (44, 56), two of six of them active; 186,312 parameters by the golden.
  EXPECT_EQ(model.parameters().total(), 186'312u);
  EXPECT_EQ(model.parameters().active(), 186'312u - 3 * 4 * 3 * 44 * 56);
  EXPECT_EQ(model.parameters().active_without_embedding(), model.parameters().active() - 211 * 56);
  EXPECT_EQ(model.limits().max_sequences(), 8u);
  EXPECT_EQ(model.limits().max_queued(), 23u);
  EXPECT_EQ(model.limits().max_step_tokens(), 64u);
  EXPECT_EQ(model.limits().kv_tokens(), 64u * kPageTokens);
  EXPECT_EQ(model.limits().max_sequences_per_request(), 17u);
  EXPECT_EQ(model.limits().max_message_bytes(), 1u << 20);
  EXPECT_EQ(model.limits().max_logprobs(), 18u);
  EXPECT_EQ(model.limits().max_stop_token_ids(), 19u);
  EXPECT_EQ(model.limits().max_streams(), 20u);
  EXPECT_EQ(model.limits().max_output_bytes(), 22u);
}

}  // namespace
}  // namespace moe
