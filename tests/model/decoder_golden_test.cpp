// A whole forward pass against the goldens of an independent implementation, within the tolerances of their README.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/text.h"
#include "model/decoder.h"
#include "tests/model/golden_case.h"

namespace moe {
namespace {

using ::testing::Ge;
using ::testing::SizeIs;

std::vector<const Kernels*> AllKernels() {
  std::vector<const Kernels*> all = AvailableSimdKernels();
  all.push_back(&ReferenceKernels());
  return all;
}

auto Cases(const std::vector<std::string>& names) {
  return ::testing::Combine(::testing::ValuesIn(names), ::testing::ValuesIn(AllKernels()));
}

/// What every golden says.
class GoldenModel : public GoldenCase {};
INSTANTIATE_TEST_SUITE_P(All, GoldenModel, Cases(AllGoldens()), CaseName);

/// What the goldens say of the inside, beside that.
class GoldenInside : public GoldenCase {};
INSTANTIATE_TEST_SUITE_P(All, GoldenInside, Cases(Goldens()), CaseName);

class GoldenDecoder : public GoldenCase {};
INSTANTIATE_TEST_SUITE_P(All, GoldenDecoder, Cases(Only(false, Goldens())), CaseName);

class GoldenEncoder : public GoldenCase {};
INSTANTIATE_TEST_SUITE_P(All, GoldenEncoder, Cases(Only(true, Goldens())), CaseName);

TEST(Goldens, AreAllHere) {
  EXPECT_THAT(Goldens(), SizeIs(19));
  EXPECT_THAT(OptionGoldens(), SizeIs(Ge(24u)));
}

void ExpectNear(std::span<const float> actual, std::span<const float> expected, double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  double worst = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double difference = std::abs(static_cast<double>(actual[i]) - expected[i]);
    worst = difference <= worst ? worst : difference;  // NaN too
  }
  EXPECT_LE(worst, tolerance);
}

/// Experts of a token by id, with their weights.
std::map<std::int32_t, float> ById(std::span<const std::int32_t> ids, std::span<const float> weights) {
  std::map<std::int32_t, float> chosen;
  for (std::size_t i = 0; i < ids.size(); ++i) EXPECT_TRUE(chosen.emplace(ids[i], weights[i]).second) << "twice";
  return chosen;
}

/// The routes of prompt 0 in the sparse layers of a stack: experts as sets, weights within the README's tolerance.
void ExpectRoutes(const StepTrace& trace, const ModelConfig& config, const Golden& golden) {
  std::size_t layers = 0;
  for (std::size_t layer = 0; layer < trace.routes.size(); ++layer) {
    const StepTrace::Routes& routes = trace.routes[layer];
    EXPECT_EQ(routes.ids.empty(), !golden.has_tensor(Cat("prompt0.router.", layer, ".ids"))) << "layer " << layer;
    if (routes.ids.empty()) continue;
    ++layers;
    const GateSpec& gate = config.layers[layer].moe->gate;
    const auto k = static_cast<std::size_t>(gate.experts_per_token);
    const std::span<const std::int32_t> ids = golden.tensor(Cat("prompt0.router.", layer, ".ids")).ints;
    const std::span<const float> weights = golden.tensor(Cat("prompt0.router.", layer, ".weights")).floats;
    ASSERT_EQ(routes.ids.size(), ids.size());
    for (std::size_t at = 0; at < ids.size(); at += k) {
      const auto actual = ById(std::span(routes.ids).subspan(at, k), std::span(routes.weights).subspan(at, k));
      for (const auto& [id, weight] : ById(ids.subspan(at, k), weights.subspan(at, k))) {
        ASSERT_TRUE(actual.contains(id)) << "layer " << layer << ", token " << at / k << ", expert " << id;
        EXPECT_NEAR(actual.at(id), weight, 1e-5 * std::max(1.0f, gate.scale));
        EXPECT_EQ(actual.at(id) == 0, weight == 0) << "dropped in one of the two";
      }
    }
  }
  EXPECT_EQ(layers > 0, !config.sparse_layers().empty());
}

TEST_P(GoldenDecoder, LogitsAreTheGoldensAtEveryPosition) {
  LocalModel model = Make();
  const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
  for (std::size_t i = 0; i < golden_.prompts.size(); ++i) {
    LocalModel::Sequence sequence;
    const GoldenPrompt& prompt = golden_.prompts[i];
    const StepTrace trace = model.Step(sequence, prompt.ids);
    ExpectNear(std::span(trace.logits).last(vocab), golden_.tensor(Cat("prompt", i, ".logits")).floats,
               golden_.logit_tolerance);
    ASSERT_EQ(prompt.argmax.size(), prompt.ids.size());
    for (std::size_t row = 0; row < prompt.ids.size(); ++row)
      EXPECT_EQ(ArgMax(std::span(trace.logits).subspan(row * vocab, vocab)), prompt.argmax[row]);
    if (i == 0) ExpectNear(trace.logits, golden_.tensor("prompt0.all_logits").floats, golden_.logit_tolerance);
  }
}

TEST_P(GoldenInside, TheResidualStreamIsTheGoldensAfterEveryLayer) {
  LocalModel model = Make();
  const bool encoder = model.config().has_encoder();
  LocalModel::Sequence sequence;
  const std::vector<std::uint32_t>& ids = golden_.prompts[0].ids;
  const StepTrace trace = encoder ? model.Encode(sequence, ids) : model.Step(sequence, ids);
  // (layers + 1, rows, hidden): of an encoder all tokens, of a decoder the last one.
  const std::size_t width = static_cast<std::size_t>(model.config().hidden) * (encoder ? ids.size() : 1);
  const std::vector<float>& expected = golden_.tensor("prompt0.hidden").floats;
  ASSERT_EQ(expected.size(), trace.hidden.size() * width);
  for (std::size_t i = 0; i < trace.hidden.size(); ++i) {
    SCOPED_TRACE(Cat("after ", i, " layers"));
    ExpectNear(std::span(trace.hidden[i]).last(width), std::span(expected).subspan(i * width, width),
               golden_.hidden_tolerance);
  }
  ExpectNear(std::span(trace.final_norm).last(width),
             golden_.tensor(encoder ? "prompt0.encoder_output" : "prompt0.final_norm").floats,
             golden_.hidden_tolerance);
}

TEST_P(GoldenInside, ExpertsAndTheirWeightsAreTheGoldens) {
  LocalModel model = Make();
  LocalModel::Sequence sequence;
  const std::vector<std::uint32_t>& ids = golden_.prompts[0].ids;
  ExpectRoutes(model.config().has_encoder() ? model.Encode(sequence, ids) : model.Step(sequence, ids), model.config(),
               golden_);
}

TEST_P(GoldenModel, GreedyContinuationsAreTheGoldens) {
  LocalModel model = Make();
  for (std::size_t i = 0; i < golden_.prompts.size(); ++i) {
    const GoldenPrompt& prompt = golden_.prompts[i];
    const LocalModel::Continuation continuation = model.Continue(prompt.ids, prompt.greedy.size());
    EXPECT_EQ(continuation.tokens, prompt.greedy);
    ExpectNear(continuation.logits.front(), golden_.tensor(Cat("prompt", i, ".logits")).floats,
               golden_.logit_tolerance);
    const std::string steps = Cat("prompt", i, ".step_logits");
    if (!golden_.has_tensor(steps)) continue;
    std::vector<float> all;
    for (const std::vector<float>& step : continuation.logits) all.insert(all.end(), step.begin(), step.end());
    ExpectNear(all, golden_.tensor(steps).floats, golden_.logit_tolerance);
  }
}

/// The first row of which two runs choose different experts in some layer; `rows` when there is none.
std::size_t FirstRowRoutedOtherwise(const StepTrace& a, const StepTrace& b, std::size_t rows) {
  std::size_t first = rows;
  for (std::size_t layer = 0; layer < a.routes.size(); ++layer) {
    const std::size_t k = a.routes[layer].ids.size() / rows;
    const auto chosen = [&](const StepTrace& trace, std::size_t row) {
      const auto ids = std::span(trace.routes[layer].ids).subspan(row * k, k);
      return std::set<std::int32_t>(ids.begin(), ids.end());
    };
    for (std::size_t row = 0; row < first; ++row)
      if (chosen(a, row) != chosen(b, row)) first = row;
  }
  return first;
}

// What a cache of bf16 costs. A key or a value is off by at most 2^-9 of itself (7 bits of fraction and the hidden
// one). A sum of values is off by as much, and by as much again where weights move with their scores (for scores of
// order 1); a layer adds that to the stream, and the next norm keeps it in proportion. So the logits should be off by
// about layers * 2 * 2^-9 of the largest, less where errors average out: the bound. It ends where a gate that was near
// a tie chooses another expert. And they must differ, by more than the orders of sums do.
TEST_P(GoldenDecoder, ACacheOfBf16MovesLogitsByItsRoundingAndNoMore) {
  LocalModel exact = Make();
  LocalModel rounded(folder(), {.kernels = std::get<1>(GetParam()), .max_step_tokens = 128, .kv_type = KvType::kBf16});
  const std::vector<std::uint32_t>& ids = golden_.prompts[0].ids;
  LocalModel::Sequence first, second;
  const StepTrace expected = exact.Step(first, ids);
  const StepTrace actual = rounded.Step(second, ids);
  const std::size_t alike = FirstRowRoutedOtherwise(expected, actual, ids.size());
  EXPECT_GE(alike, 2u) << "nothing is left to compare";
  double largest = 0;
  double worst = 0;
  for (std::size_t i = 0; i < alike * static_cast<std::size_t>(exact.config().vocab_size); ++i) {
    const double difference = std::abs(static_cast<double>(actual.logits[i]) - expected.logits[i]);
    largest = std::max(largest, std::abs(static_cast<double>(expected.logits[i])));
    worst = difference <= worst ? worst : difference;  // NaN too
  }
  EXPECT_LE(worst, static_cast<double>(exact.config().num_layers()) * 2 * 0x1p-9 * largest);
  EXPECT_GT(worst, golden_.logit_tolerance);
}

// A token past its expert's capacity keeps its residual stream and nothing else: weight 0.
TEST_P(GoldenEncoder, DropsTheGoldensTokens) {
  LocalModel model = Make();
  std::size_t dropped_tokens = 0;
  for (const GoldenPrompt& prompt : golden_.prompts) {
    LocalModel::Sequence sequence;
    const StepTrace trace = model.Encode(sequence, prompt.ids);
    for (std::size_t layer = 0; layer < trace.routes.size(); ++layer) {
      std::vector<std::uint32_t> dropped;
      for (std::size_t token = 0; token < trace.routes[layer].weights.size(); ++token)
        if (trace.routes[layer].weights[token] == 0) dropped.push_back(static_cast<std::uint32_t>(token));
      const auto expected = prompt.dropped.find(static_cast<int>(layer));
      ASSERT_EQ(expected == prompt.dropped.end(), trace.routes[layer].ids.empty()) << "layer " << layer;
      if (expected == prompt.dropped.end()) continue;
      EXPECT_EQ(dropped, expected->second) << "layer " << layer;
      dropped_tokens += dropped.size();
    }
    model.Release(sequence);
  }
  EXPECT_GT(dropped_tokens, 0u) << "the case is meant to reach the capacity";
}

}  // namespace
}  // namespace moe
