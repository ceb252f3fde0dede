// The engine against what an independent implementation gives.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

#include "tests/router/engine_harness.h"
#include "tests/router/golden.h"

namespace moe {
namespace {

class EngineGolden : public testing::TestWithParam<std::string> {
 protected:
  EngineGolden() : folder_("tests/goldens/" + GetParam()), golden_(ReadGolden(folder_)) {}

  const std::string folder_;
  const Golden golden_;
};

void ExpectNear(std::span<const float> actual, std::span<const float> expected, float tolerance, const char* what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (std::size_t i = 0; i < actual.size(); ++i)
    ASSERT_LE(std::abs(actual[i] - expected[i]), tolerance) << what << "[" << i << "]";
}

TEST_P(EngineGolden, GreedyTokensAreEqual) {
  EngineHarness harness({.model = folder_, .workers = 3, .max_step_tokens = 32, .prefill_chunk = 7});
  std::vector<SequenceRequest> requests;
  for (const GoldenPrompt& prompt : golden_.prompts)
    requests.push_back(Greedy(prompt.ids, static_cast<std::uint32_t>(prompt.greedy.size())));
  const std::vector<Client> clients = harness.RunAll(std::move(requests));
  for (std::size_t i = 0; i < clients.size(); ++i) {
    EXPECT_EQ(Tokens(*clients[i].output), golden_.prompts[i].greedy) << "prompt " << i;
    EXPECT_EQ(clients[i].output->result.finish, FinishKind::kLength);
  }
}

TEST_P(EngineGolden, LogitsAreWithinTheirTolerance) {
  EngineHarness harness({.model = folder_, .workers = 2});
  std::vector<SequenceRequest> requests;
  for (const GoldenPrompt& prompt : golden_.prompts) requests.push_back(Scoring(prompt.ids, ScoreLogits::kAll));
  const std::vector<Client> clients = harness.RunAll(std::move(requests));
  const auto vocab = static_cast<std::size_t>(harness.config().vocab_size);
  for (std::size_t i = 0; i < clients.size(); ++i) {
    const std::span<const float> logits = clients[i].output->logits;
    const GoldenPrompt& prompt = golden_.prompts[i];
    ASSERT_EQ(logits.size(), prompt.ids.size() * vocab);
    for (std::size_t position = 0; position < prompt.ids.size(); ++position) {
      const std::span<const float> row = logits.subspan(position * vocab, vocab);
      EXPECT_EQ(static_cast<std::uint32_t>(std::max_element(row.begin(), row.end()) - row.begin()),
                prompt.argmax[position]);
    }
    ExpectNear(logits.last(vocab), golden_.floats.at("prompt" + std::to_string(i) + ".logits"), golden_.logit_tolerance,
               "logits");
  }
  ExpectNear(clients[0].output->logits, golden_.floats.at("prompt0.all_logits"), golden_.logit_tolerance, "all_logits");
}

TEST_P(EngineGolden, RoutingOfAPromptIsEqual) {
  EngineHarness harness({.model = folder_, .workers = 3, .max_step_tokens = 4});
  SequenceRequest request = Scoring(golden_.prompts[0].ids, ScoreLogits::kNone);
  request.return_routing = true;
  const std::vector<Client> clients = harness.RunAll({std::move(request)});
  const SequenceOutput& output = *clients[0].output;
  const std::vector<int> layers = harness.config().sparse_layers();
  const auto k = static_cast<std::size_t>(harness.config().experts_per_token());
  const std::size_t pairs = golden_.prompts[0].ids.size() * k;
  ASSERT_EQ(output.routing_ids.size(), layers.size() * pairs);
  EXPECT_EQ(output.routed(), golden_.prompts[0].ids.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::string name = "prompt0.router." + std::to_string(layers[l]);
    const auto ids = std::span(output.routing_ids).subspan(l * pairs, pairs);
    const std::vector<std::int32_t>& expected = golden_.ints.at(name + ".ids");
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), expected.begin(), expected.end())) << name;
    ExpectNear(std::span(output.routing_weights).subspan(l * pairs, pairs), golden_.floats.at(name + ".weights"), 1e-5f,
               "weights");
  }
}

TEST_P(EngineGolden, LogprobsOfAGenerationAreTheScoresOfItsTokens) {
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
  const std::size_t vocab = score.logits.size() / all.size();
  for (std::size_t i = 0; i < output.token_ids.size(); ++i) {
    const std::size_t position = prompt.ids.size() - 1 + i;
    EXPECT_EQ(output.token_logprobs[i], score.token_logprobs[position]);
    EXPECT_EQ(output.top_token_ids[i * 4], output.token_ids[i]) << "greedy takes the first";
    EXPECT_EQ(output.top_logprobs[i * 4], output.token_logprobs[i]);
    // An honest log-softmax in double, within what fp32 can hold of numbers of this size.
    const std::span<const float> row = std::span(score.logits).subspan(position * vocab, vocab);
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

INSTANTIATE_TEST_SUITE_P(Models, EngineGolden,
                         testing::Values("mixtral", "mixtral_bf16", "llama", "mistral", "llama3_rope"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace moe
