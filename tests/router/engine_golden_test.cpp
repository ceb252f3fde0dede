// The engine against what an independent implementation gives: tests/goldens and tests/option_goldens.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "core/text.h"
#include "tests/reference/golden.h"
#include "tests/router/engine_harness.h"
#include "tests/router/identity.h"

namespace moe {
namespace {

void ExpectNear(std::span<const float> actual, std::span<const float> expected, double tolerance,
                const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (std::size_t i = 0; i < actual.size(); ++i)
    ASSERT_LE(std::abs(double{actual[i]} - double{expected[i]}), tolerance) << what << "[" << i << "]";
}

std::uint32_t Largest(std::span<const float> row) {
  return static_cast<std::uint32_t>(std::ranges::max_element(row) - row.begin());
}

class EngineGolden : public testing::TestWithParam<std::string> {
 protected:
  EngineGolden()
      : folder_(GetParam()), golden_(ReadGolden(SourcePath(folder_))), config_(*ReadModelConfig(SourcePath(folder_))) {}

  std::size_t vocab() const { return static_cast<std::size_t>(config_.vocab_size); }
  SequenceRequest ForPrompt(std::size_t i, SequenceRequest request) const {
    request.prompt = golden_.prompts[i].ids;
    return ForModel(config_, std::move(request));
  }
  /// All that a decoder-only model is asked, or the first step of an encoder–decoder.
  ScoreLogits AllLogits() const { return config_.has_encoder() ? ScoreLogits::kLast : ScoreLogits::kAll; }

  const std::string folder_;
  const Golden golden_;
  const ModelConfig config_;
};

TEST_P(EngineGolden, GreedyTokensAreEqual) {
  for (const int workers : {1, 3}) {
    EngineHarness harness({.model = folder_, .workers = workers, .max_step_tokens = 42, .prefill_chunk = 7});
    std::vector<SequenceRequest> requests;
    for (std::size_t i = 0; i < golden_.prompts.size(); ++i)
      requests.push_back(ForPrompt(i, Greedy({}, static_cast<std::uint32_t>(golden_.prompts[i].greedy.size()))));
    const std::vector<Client> clients = harness.RunAll(std::move(requests));
    for (std::size_t i = 0; i < clients.size(); ++i) {
      EXPECT_EQ(Tokens(*clients[i].output), golden_.prompts[i].greedy) << "prompt " << i << ", workers " << workers;
      EXPECT_EQ(clients[i].output->result.finish, FinishKind::kLength);
    }
  }
}

TEST_P(EngineGolden, LogitsAreWithinTheirTolerance) {
  for (const int workers : {1, 3}) {
    EngineHarness harness({.model = folder_, .workers = workers});
    std::vector<SequenceRequest> requests;
    for (std::size_t i = 0; i < golden_.prompts.size(); ++i) requests.push_back(ForPrompt(i, Scoring({}, AllLogits())));
    const std::vector<Client> clients = harness.RunAll(std::move(requests));
    for (std::size_t i = 0; i < clients.size(); ++i) {
      const std::span<const float> logits = clients[i].output->logits;
      const std::size_t positions = config_.has_encoder() ? 1 : golden_.prompts[i].ids.size();
      ASSERT_EQ(logits.size(), positions * vocab());
      ExpectNear(logits.last(vocab()), golden_.tensor(Cat("prompt", i, ".logits")).floats, golden_.logit_tolerance,
                 Cat("logits of prompt ", i));
    }
  }
}

// What only the cases of tests/goldens tell: every position, the routing, an encoder–decoder's steps.
class EngineGoldenInDetail : public EngineGolden {};

TEST_P(EngineGoldenInDetail, EveryPositionIsRight) {
  if (config_.has_encoder()) return;  // has one position; see below
  EngineHarness harness({.model = folder_, .workers = 3, .max_step_tokens = 16});
  std::vector<SequenceRequest> requests;
  for (const GoldenPrompt& prompt : golden_.prompts) requests.push_back(Scoring(prompt.ids, ScoreLogits::kAll));
  const std::vector<Client> clients = harness.RunAll(std::move(requests));
  for (std::size_t i = 0; i < clients.size(); ++i) {
    const std::span<const float> logits = clients[i].output->logits;
    const std::vector<std::uint32_t>& argmax = golden_.prompts[i].argmax;
    ASSERT_EQ(logits.size(), argmax.size() * vocab());
    for (std::size_t p = 0; p < argmax.size(); ++p)
      EXPECT_EQ(Largest(logits.subspan(p * vocab(), vocab())), argmax[p]) << "prompt " << i << ", position " << p;
  }
  ExpectNear(clients[0].output->logits, golden_.tensor("prompt0.all_logits").floats, golden_.logit_tolerance,
             "all_logits");
}

/// Experts and weights of one token.
std::map<std::int32_t, float> Routes(std::span<const std::int32_t> ids, std::span<const float> weights) {
  std::map<std::int32_t, float> routes;
  for (std::size_t j = 0; j < ids.size(); ++j) routes[ids[j]] = weights[j];
  return routes;
}

TEST_P(EngineGoldenInDetail, RoutingOfAPromptIsEqual) {
  const std::vector<int> layers = config_.sparse_layers();
  if (layers.empty()) return;
  EngineHarness harness({.model = folder_, .workers = 3, .max_step_tokens = config_.has_encoder() ? 16u : 4u});
  SequenceRequest request = ForPrompt(0, Scoring({}, config_.has_encoder() ? ScoreLogits::kLast : ScoreLogits::kNone));
  request.return_routing = true;
  const std::vector<Client> clients = harness.RunAll({std::move(request)});
  const SequenceOutput& output = *clients[0].output;
  const auto k = static_cast<std::size_t>(config_.experts_per_token());
  const std::size_t tokens = golden_.prompts[0].ids.size();
  const std::size_t compared = static_cast<std::size_t>(std::ranges::count_if(
      layers, [&](int layer) { return !config_.has_encoder() || layer < config_.encoder_layers; }));
  ASSERT_EQ(output.routing_shape.begin(compared), compared * tokens * k);
  std::uint64_t dropped = 0;
  for (std::size_t l = 0; l < compared; ++l) {
    const std::string name = Cat("prompt0.router.", layers[l]);
    const double scale = std::max(1.0f, config_.layers[static_cast<std::size_t>(layers[l])].moe->gate.scale);
    for (std::size_t t = 0; t < tokens; ++t) {
      const std::size_t at = t * k;
      const auto given = Routes(std::span(output.routing_ids).subspan(l * tokens * k + at, k),
                                std::span(output.routing_weights).subspan(l * tokens * k + at, k));
      const auto expected = Routes(std::span(golden_.tensor(name + ".ids").ints).subspan(at, k),
                                   std::span(golden_.tensor(name + ".weights").floats).subspan(at, k));
      ASSERT_EQ(expected.size(), k);
      for (const auto& [expert, weight] : expected) {
        ASSERT_TRUE(given.contains(expert)) << name << ", token " << t << ": expert " << expert;
        EXPECT_NEAR(given.at(expert), weight, 1e-5 * scale) << name << ", token " << t << ", expert " << expert;
        EXPECT_EQ(given.at(expert) == 0, weight == 0) << name << ", token " << t << " past its expert's capacity";
        if (weight == 0) ++dropped;
      }
    }
  }
  // Every pair but those past their expert's capacity was computed; the decoder has one token of its own.
  const std::size_t decoded = (layers.size() - compared) * k;
  EXPECT_EQ(output.result.expert_rows, compared * tokens * k + decoded - dropped);
  EXPECT_EQ(dropped > 0, config_.has_encoder()) << "the case has dropped tokens to tell of";
}

// A generation's log-probabilities, against its tokens scored.
TEST_P(EngineGolden, LogprobsOfAGenerationAreTheScoresOfItsTokens) {
  if (config_.has_encoder()) return;  // has no scores of given decoder tokens; its logits are compared below
  const GoldenPrompt& prompt = golden_.prompts[3];
  SequenceRequest request = Greedy(prompt.ids, 24);
  request.num_logprobs = 4;
  const std::vector<Client> generated = EngineHarness({.model = folder_}).RunAll({request});
  const SequenceOutput& output = *generated[0].output;

  std::vector<std::uint32_t> all = prompt.ids;
  all.insert(all.end(), output.token_ids.begin(), output.token_ids.end());
  const std::vector<Client> scored = EngineHarness({.model = folder_}).RunAll({Scoring(all, ScoreLogits::kAll)});
  const SequenceOutput& score = *scored[0].output;
  ASSERT_EQ(score.token_logprobs.size(), all.size() - 1);
  for (std::size_t i = 0; i < output.token_ids.size(); ++i) {
    const std::size_t position = prompt.ids.size() - 1 + i;
    EXPECT_EQ(output.token_logprobs[i], score.token_logprobs[position]);
    EXPECT_EQ(output.top_token_ids[i * 4], output.token_ids[i]) << "greedy takes the first";
    EXPECT_EQ(output.top_logprobs[i * 4], output.token_logprobs[i]);
    // An honest log-softmax in double, within what fp32 can hold of numbers of this size.
    const std::span<const float> row = std::span(score.logits).subspan(position * vocab(), vocab());
    double sum = 0;
    for (const float logit : row) sum += std::exp(static_cast<double>(logit));
    for (std::size_t j = 0; j < 4; ++j) {
      EXPECT_NEAR(output.top_logprobs[i * 4 + j],
                  static_cast<double>(row[output.top_token_ids[i * 4 + j]]) - std::log(sum), 1e-5);
      if (j > 0) {
        EXPECT_GE(output.top_logprobs[i * 4 + j - 1], output.top_logprobs[i * 4 + j]);
      }
    }
  }
}

TEST_P(EngineGoldenInDetail, EveryStepOfAnEncoderDecoderHasTheGoldensLogprobs) {
  if (!config_.has_encoder()) return;
  constexpr std::uint32_t kTop = 8;
  EngineHarness harness({.model = folder_, .workers = 2});
  std::vector<SequenceRequest> requests;
  for (std::size_t i = 0; i < golden_.prompts.size(); ++i) {
    requests.push_back(ForPrompt(i, Greedy({}, 24)));
    requests.back().num_logprobs = kTop;
  }
  const std::vector<Client> clients = harness.RunAll(std::move(requests));
  for (std::size_t i = 0; i < clients.size(); ++i) {
    const SequenceOutput& output = *clients[i].output;
    const std::vector<float>& steps = golden_.tensor(Cat("prompt", i, ".step_logits")).floats;
    ASSERT_EQ(steps.size(), 24 * vocab());
    for (std::size_t step = 0; step < 24; ++step) {
      const std::span<const float> row = std::span(steps).subspan(step * vocab(), vocab());
      double sum = 0;
      for (const float logit : row) sum += std::exp(double{logit});
      for (std::size_t j = 0; j < kTop; ++j) {
        const double expected = double{row[output.top_token_ids[step * kTop + j]]} - std::log(sum);
        // The logit's own error, and that of the logarithm of a sum whose terms have it.
        EXPECT_NEAR(output.top_logprobs[step * kTop + j], expected, 2 * golden_.logit_tolerance)
            << "prompt " << i << ", step " << step;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, EngineGolden, testing::ValuesIn(ModelsToRun(GoldenCases())),
                         [](const auto& test) { return CaseName(test.param); });
INSTANTIATE_TEST_SUITE_P(Models, EngineGoldenInDetail, testing::ValuesIn(CasesIn("tests/goldens")),
                         [](const auto& test) { return CaseName(test.param); });

}  // namespace
}  // namespace moe
