#include "router/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <moe/v1/inference.pb.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

namespace moe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint64_t kDrawnSeed = 4242;

ModelConfig Config() {
  ModelConfig config;
  config.vocab_size = 100;
  config.context_length = 16;
  config.eos_token_ids = {7, 3};
  return config;
}

RequestLimits Limits() {
  return {.max_sequences_per_request = 3, .max_logprobs = 5, .max_stop_token_ids = 4, .max_reply_bytes = 4000};
}

void AddSequence(std::initializer_list<std::uint32_t> tokens, auto& request) {
  v1::TokenSequence& sequence = *request.add_sequences();
  for (const std::uint32_t token : tokens) sequence.add_token_ids(token);
}

v1::GenerateRequest Generate() {
  v1::GenerateRequest request;
  AddSequence({1, 2, 3}, request);
  request.set_max_new_tokens(4);
  return request;
}

v1::ScoreRequest Score() {
  v1::ScoreRequest request;
  AddSequence({1, 2, 3}, request);
  return request;
}

auto Parse(const v1::GenerateRequest& request) { return ParseGenerate(request, Config(), Limits(), kDrawnSeed); }
auto Parse(const v1::ScoreRequest& request) { return ParseScore(request, Config(), Limits()); }

// The only sequence of a request that must be valid.
SequenceRequest ParseOne(const auto& message) {
  const Result<std::vector<SequenceRequest>> parsed = Parse(message);
  EXPECT_TRUE(parsed.ok()) << parsed.status().message();
  return parsed.ok() && parsed->size() == 1 ? parsed->front() : SequenceRequest{};
}

TEST(ParseGenerate, AbsentFieldsHaveTheirDefaults) {
  const SequenceRequest request = ParseOne(Generate());
  EXPECT_EQ(request.kind, SequenceKind::kGenerate);
  EXPECT_EQ(request.index, 0u);
  EXPECT_THAT(request.prompt, ElementsAre(1, 2, 3));
  EXPECT_EQ(request.max_new_tokens, 4u);
  EXPECT_EQ(request.kv_tokens(), 6u);
  EXPECT_EQ(request.sampling.temperature, 0);
  EXPECT_EQ(request.sampling.top_k, 0u);
  EXPECT_EQ(request.sampling.top_p, 1);
  EXPECT_EQ(request.sampling.min_p, 0);
  EXPECT_EQ(request.sampling.repetition_penalty, 1);
  EXPECT_EQ(request.sampling.presence_penalty, 0);
  EXPECT_EQ(request.sampling.frequency_penalty, 0);
  EXPECT_EQ(request.sampling.seed, kDrawnSeed);
  EXPECT_FALSE(request.sampling.has_penalties());
  EXPECT_THAT(request.stop_token_ids, ElementsAre(3, 7)) << "the model's own, sorted";
  EXPECT_EQ(request.num_logprobs, 0u);
  EXPECT_FALSE(request.return_routing);
}

TEST(ParseGenerate, EveryFieldArrives) {
  v1::GenerateRequest message = Generate();
  v1::Sampling& sampling = *message.mutable_sampling();
  sampling.set_temperature(0.5f);
  sampling.set_top_k(6);
  sampling.set_top_p(0.7f);
  sampling.set_min_p(0.8f);
  sampling.set_repetition_penalty(1.9f);
  sampling.set_seed(0);
  sampling.set_presence_penalty(-2.5f);
  sampling.set_frequency_penalty(2.25f);
  message.set_ignore_eos(true);
  message.add_stop_token_ids(99);
  message.add_stop_token_ids(0);
  message.set_logprobs(5);
  message.set_return_routing(true);
  AddSequence({9}, message);
  const Result<std::vector<SequenceRequest>> parsed = Parse(message);
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  ASSERT_EQ(parsed->size(), 2u);
  const SequenceRequest& second = (*parsed)[1];
  EXPECT_EQ(second.index, 1u);
  EXPECT_THAT(second.prompt, ElementsAre(9));
  EXPECT_EQ(second.sampling.temperature, 0.5f);
  EXPECT_EQ(second.sampling.top_k, 6u);
  EXPECT_EQ(second.sampling.top_p, 0.7f);
  EXPECT_EQ(second.sampling.min_p, 0.8f);
  EXPECT_EQ(second.sampling.repetition_penalty, 1.9f);
  EXPECT_EQ(second.sampling.seed, 0u) << "present, though zero";
  EXPECT_EQ(second.sampling.presence_penalty, -2.5f);
  EXPECT_EQ(second.sampling.frequency_penalty, 2.25f);
  EXPECT_THAT(second.stop_token_ids, ElementsAre(0, 99)) << "the model's own are ignored";
  EXPECT_EQ(second.num_logprobs, 5u);
  EXPECT_TRUE(second.return_routing);
}

TEST(ParseGenerate, OwnStopTokensJoinTheModels) {
  v1::GenerateRequest message = Generate();
  message.add_stop_token_ids(50);
  message.add_stop_token_ids(5);
  EXPECT_THAT(ParseOne(message).stop_token_ids, ElementsAre(3, 5, 7, 50));
}

TEST(ParseGenerate, LogprobsNeverExceedTheVocabulary) {
  ModelConfig config = Config();
  config.vocab_size = 4;
  config.eos_token_ids = {};
  v1::GenerateRequest message = Generate();
  message.set_logprobs(5);
  const auto parsed = ParseGenerate(message, config, Limits(), 0);
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  EXPECT_EQ(parsed->front().num_logprobs, 4u);
}

TEST(ParseGenerate, ValuesAtTheirLimitsAreAccepted) {
  v1::GenerateRequest message = Generate();
  message.set_max_new_tokens(13);  // 3 + 13 fill the context
  message.mutable_sampling()->set_top_p(1);
  message.mutable_sampling()->set_min_p(1);
  message.mutable_sampling()->set_repetition_penalty(1e-6f);
  AddSequence({99}, message);
  AddSequence({0}, message);
  for (int i = 0; i < 4; ++i) message.add_stop_token_ids(99);
  EXPECT_TRUE(Parse(message).ok()) << Parse(message).status().message();
  message.mutable_sampling()->set_min_p(0);
  EXPECT_TRUE(Parse(message).ok());
}

struct BadGenerate {
  const char* name;
  std::function<void(v1::GenerateRequest&)> spoil;
  std::vector<std::string> words;  // the field, the value, what was allowed
};

class ParseBadGenerate : public testing::TestWithParam<BadGenerate> {};

TEST_P(ParseBadGenerate, IsRefusedNamingFieldAndValue) {
  v1::GenerateRequest message = Generate();
  GetParam().spoil(message);
  const auto parsed = Parse(message);
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument);
  for (const std::string& word : GetParam().words) EXPECT_THAT(parsed.status().message(), HasSubstr(word));
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
using G = v1::GenerateRequest;

INSTANTIATE_TEST_SUITE_P(
    Fields, ParseBadGenerate,
    testing::Values(
        BadGenerate{"NoSequences", [](G& m) { m.clear_sequences(); }, {"sequences is empty"}},
        BadGenerate{"TooManySequences",
                    [](G& m) {
                      for (int i = 0; i < 3; ++i) AddSequence({1}, m);
                    },
                    {"sequences", "4", "3"}},
        BadGenerate{"EmptySequence", [](G& m) { m.add_sequences(); }, {"sequences[1].token_ids", "empty"}},
        BadGenerate{"TokenBeyondVocabulary",
                    [](G& m) {
                      AddSequence({0, 99, 100}, m);
                    },
                    {"sequences[1].token_ids[2]", "100", "vocabulary size 100"}},
        BadGenerate{"PromptBeyondContext",
                    [](G& m) {
                      for (int i = 0; i < 20; ++i) m.mutable_sequences(0)->add_token_ids(1);
                    },
                    {"sequences[0]", "23", "16"}},
        BadGenerate{"PromptAndNewTokensBeyondContext",
                    [](G& m) { m.set_max_new_tokens(14); },
                    {"sequences[0]", "3 prompt tokens", "max_new_tokens 14", "16"}},
        BadGenerate{"NewTokensThatOverflow",
                    [](G& m) { m.set_max_new_tokens(0xFFFFFFFF); },
                    {"max_new_tokens 4294967295", "16"}},
        BadGenerate{"NoNewTokens", [](G& m) { m.set_max_new_tokens(0); }, {"max_new_tokens 0", "at least 1"}},
        BadGenerate{"Logprobs", [](G& m) { m.set_logprobs(6); }, {"logprobs 6", "5"}},
        BadGenerate{"StopTokenBeyondVocabulary",
                    [](G& m) { m.add_stop_token_ids(100); },
                    {"stop_token_ids", "100", "vocabulary size 100"}},
        BadGenerate{"TooManyStopTokens",
                    [](G& m) {
                      for (int i = 0; i < 5; ++i) m.add_stop_token_ids(1);
                    },
                    {"stop_token_ids", "5", "4"}},
        BadGenerate{
            "NegativeTemperature", [](G& m) { m.mutable_sampling()->set_temperature(-0.5f); }, {"temperature -0.5"}},
        BadGenerate{
            "TemperatureNan", [](G& m) { m.mutable_sampling()->set_temperature(kNan); }, {"temperature", "nan"}},
        BadGenerate{
            "TemperatureInf", [](G& m) { m.mutable_sampling()->set_temperature(kInf); }, {"temperature", "inf"}},
        BadGenerate{"TopPZero", [](G& m) { m.mutable_sampling()->set_top_p(0); }, {"top_p 0", "(0, 1]"}},
        BadGenerate{"TopPAboveOne", [](G& m) { m.mutable_sampling()->set_top_p(1.5f); }, {"top_p 1.5", "(0, 1]"}},
        BadGenerate{"TopPNan", [](G& m) { m.mutable_sampling()->set_top_p(kNan); }, {"top_p", "nan"}},
        BadGenerate{"MinPNegative", [](G& m) { m.mutable_sampling()->set_min_p(-0.25f); }, {"min_p -0.25", "[0, 1]"}},
        BadGenerate{"MinPAboveOne", [](G& m) { m.mutable_sampling()->set_min_p(1.25f); }, {"min_p 1.25", "[0, 1]"}},
        BadGenerate{"MinPNan", [](G& m) { m.mutable_sampling()->set_min_p(kNan); }, {"min_p", "nan"}},
        BadGenerate{"RepetitionPenaltyZero",
                    [](G& m) { m.mutable_sampling()->set_repetition_penalty(0); },
                    {"repetition_penalty 0", "> 0"}},
        BadGenerate{"RepetitionPenaltyNegative",
                    [](G& m) { m.mutable_sampling()->set_repetition_penalty(-1); },
                    {"repetition_penalty -1"}},
        BadGenerate{"RepetitionPenaltyInf",
                    [](G& m) { m.mutable_sampling()->set_repetition_penalty(kInf); },
                    {"repetition_penalty", "inf"}},
        BadGenerate{"PresencePenaltyInf",
                    [](G& m) { m.mutable_sampling()->set_presence_penalty(-kInf); },
                    {"presence_penalty", "-inf"}},
        BadGenerate{"FrequencyPenaltyNan",
                    [](G& m) { m.mutable_sampling()->set_frequency_penalty(kNan); },
                    {"frequency_penalty", "nan"}}),
    [](const auto& test) { return test.param.name; });

TEST(ParseScore, AbsentFieldsHaveTheirDefaults) {
  const SequenceRequest request = ParseOne(Score());
  EXPECT_EQ(request.kind, SequenceKind::kScore);
  EXPECT_THAT(request.prompt, ElementsAre(1, 2, 3));
  EXPECT_EQ(request.max_new_tokens, 0u);
  EXPECT_EQ(request.kv_tokens(), 3u);
  EXPECT_EQ(request.score_logits, ScoreLogits::kNone);
  EXPECT_FALSE(request.return_routing);
}

TEST(ParseScore, EveryFieldArrives) {
  v1::ScoreRequest message = Score();
  message.set_return_routing(true);
  message.set_return_logits(v1::LOGITS_MODE_LAST);
  EXPECT_EQ(ParseOne(message).score_logits, ScoreLogits::kLast);
  message.set_return_logits(v1::LOGITS_MODE_ALL);
  EXPECT_EQ(ParseOne(message).score_logits, ScoreLogits::kAll);
  EXPECT_TRUE(ParseOne(message).return_routing);
  AddSequence({4}, message);
  EXPECT_EQ(Parse(message)->back().index, 1u);
}

struct BadScore {
  const char* name;
  std::function<void(v1::ScoreRequest&)> spoil;
  std::vector<std::string> words;
};

class ParseBadScore : public testing::TestWithParam<BadScore> {};

TEST_P(ParseBadScore, IsRefusedNamingFieldAndValue) {
  v1::ScoreRequest message = Score();
  GetParam().spoil(message);
  const auto parsed = Parse(message);
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument);
  for (const std::string& word : GetParam().words) EXPECT_THAT(parsed.status().message(), HasSubstr(word));
}

using S = v1::ScoreRequest;

INSTANTIATE_TEST_SUITE_P(
    Fields, ParseBadScore,
    testing::Values(BadScore{"NoSequences", [](S& m) { m.clear_sequences(); }, {"sequences is empty"}},
                    BadScore{"TooManySequences",
                             [](S& m) {
                               for (int i = 0; i < 3; ++i) AddSequence({1}, m);
                             },
                             {"sequences", "4", "3"}},
                    BadScore{"EmptySequence", [](S& m) { m.add_sequences(); }, {"sequences[1].token_ids", "empty"}},
                    BadScore{"TokenBeyondVocabulary",
                             [](S& m) { AddSequence({100}, m); },
                             {"sequences[1].token_ids[0]", "100", "vocabulary size 100"}},
                    BadScore{"LongerThanTheContext",
                             [](S& m) {
                               for (int i = 0; i < 14; ++i) m.mutable_sequences(0)->add_token_ids(1);
                             },
                             {"sequences[0]", "17", "16"}},
                    BadScore{"UnknownLogits",
                             [](S& m) { m.set_return_logits(static_cast<v1::LogitsMode>(9)); },
                             {"return_logits 9", "NONE, LAST, ALL"}},
                    // 10 positions of 100 logits, and the log-probabilities, 4 bytes each.
                    BadScore{"AnswerTooLarge",
                             [](S& m) {
                               m.set_return_logits(v1::LOGITS_MODE_ALL);
                               for (int i = 0; i < 7; ++i) m.mutable_sequences(0)->add_token_ids(1);
                             },
                             {"return_logits", "4040", "4000"}}),
    [](const auto& test) { return test.param.name; });

TEST(ParseScore, RoutingCountsTowardsTheAnswersSize) {
  ModelConfig config = Config();
  config.layers.resize(50, {.moe = MoeSpec{.gate = {.num_experts = 8, .experts_per_token = 4}}});
  v1::ScoreRequest message = Score();
  EXPECT_TRUE(ParseScore(message, config, Limits()).ok());
  message.set_return_routing(true);  // 50 layers, 3 tokens, 4 experts: an id and a weight each
  const auto parsed = ParseScore(message, config, Limits());
  ASSERT_FALSE(parsed.ok());
  EXPECT_THAT(parsed.status().message(),
              testing::AllOf(HasSubstr("return_routing"), HasSubstr("4812"), HasSubstr("4000")));
}

// Encoder and decoder: the client's tokens are the source.
class ParseForEncoder : public testing::Test {
 protected:
  ParseForEncoder() : config_(Config()), limits_(Limits()) {
    config_.encoder_layers = 1;
    config_.layers.resize(2);
    config_.decoder_start_token = 5;
    limits_.max_source_tokens = 12;
  }
  static v1::GenerateRequest Generating(int source, std::uint32_t new_tokens) {
    v1::GenerateRequest message;
    v1::TokenSequence& sequence = *message.add_sequences();
    for (int i = 0; i < source; ++i) sequence.add_token_ids(static_cast<std::uint32_t>(i));
    message.set_max_new_tokens(new_tokens);
    return message;
  }
  auto Parse(const v1::GenerateRequest& message) { return ParseGenerate(message, config_, limits_, kDrawnSeed); }

  ModelConfig config_;
  RequestLimits limits_;
};

TEST_F(ParseForEncoder, TokensAreTheSourceAndTheDecoderBeginsWithItsStartToken) {
  const auto parsed = Parse(Generating(3, 4));
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  const SequenceRequest& request = parsed->front();
  EXPECT_THAT(request.source, ElementsAre(0, 1, 2));
  EXPECT_THAT(request.prompt, ElementsAre(5));
  EXPECT_EQ(request.sent_tokens(), 3u);
  EXPECT_EQ(request.kv_demand().source, 3u);
  EXPECT_EQ(request.kv_demand().tokens, 4u) << "the start token, and all but the last that is generated";
}

TEST_F(ParseForEncoder, SourceAndContinuationAreTwoContexts) {
  EXPECT_TRUE(Parse(Generating(12, 16)).ok()) << "the context is 16";
  const auto parsed = Parse(Generating(1, 17));
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(parsed.status().message(), testing::AllOf(HasSubstr("max_new_tokens 17"), HasSubstr("16")));
}

TEST_F(ParseForEncoder, ASourceThatNoStepHoldsIsRefused) {
  const auto parsed = Parse(Generating(13, 1));
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(parsed.status().message(),
              testing::AllOf(HasSubstr("sequences[0].token_ids"), HasSubstr("13"), HasSubstr("12")));
  EXPECT_FALSE(Parse(Generating(17, 1)).ok()) << "nor one that the context does not hold";
}

TEST_F(ParseForEncoder, ScoresHaveTheLogitsOfTheFirstStepOnly) {
  v1::ScoreRequest message = Score();
  for (const v1::LogitsMode mode : {v1::LOGITS_MODE_NONE, v1::LOGITS_MODE_ALL}) {
    message.set_return_logits(mode);
    const auto parsed = ParseScore(message, config_, limits_);
    ASSERT_FALSE(parsed.ok());
    EXPECT_EQ(parsed.status().code(), StatusCode::kUnimplemented);
    EXPECT_THAT(parsed.status().message(), testing::AllOf(HasSubstr(v1::LogitsMode_Name(mode)), HasSubstr("LAST")));
  }
  message.set_return_logits(v1::LOGITS_MODE_LAST);
  const auto parsed = ParseScore(message, config_, limits_);
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  EXPECT_THAT(parsed->front().source, ElementsAre(1, 2, 3));
  EXPECT_THAT(parsed->front().prompt, ElementsAre(5));
  EXPECT_EQ(parsed->front().score_logits, ScoreLogits::kLast);
}

TEST(ParseScore, ASequenceMayFillTheContext) {
  v1::ScoreRequest message = Score();
  for (int i = 0; i < 13; ++i) message.mutable_sequences(0)->add_token_ids(1);
  EXPECT_EQ(ParseOne(message).prompt.size(), 16u);
}

}  // namespace
}  // namespace moe
