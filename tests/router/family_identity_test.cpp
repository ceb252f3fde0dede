// Invariant 1 for every family: every golden on all arrangements of workers, chunks, company and threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "core/text.h"
#include "tests/router/identity.h"

namespace moe {
namespace {

struct Arrangement {
  std::string name;
  HarnessOptions options;
  bool whole_sources = true;  // an encoder could take the requests' sources
};

/// `experts` is 0 for a dense model, where workers are no arrangement.
std::vector<Arrangement> Arrangements(int experts) {
  std::vector<Arrangement> all = {
      {"chunk1", {.workers = 2, .max_step_tokens = 70, .prefill_chunk = 1}},
      {"chunk3", {.workers = 2, .max_step_tokens = 70, .prefill_chunk = 3}},
      {"chunk_all", {.workers = 2, .max_step_tokens = 256}},
      {"steps_of_3", {.workers = 2, .max_step_tokens = 3}, false},
      {"one_at_a_time", {.workers = 3, .max_sequences = 1, .max_step_tokens = 128}},
      {"few_pages", {.workers = 2, .max_step_tokens = 70, .prefill_chunk = 7, .kv_pages = 3}},
      {"threads2", {.threads = 2, .max_step_tokens = 256}},
      {"threads2_chunk3", {.workers = 3, .threads = 2, .max_step_tokens = 70, .prefill_chunk = 3}},
  };
  if (experts == 0) return all;
  for (const int workers : std::set<int>{1, 2, 3, 5, experts + 1}) {
    for (const PlacementRule rule : {PlacementRule::kLinear, PlacementRule::kRoundRobin})
      all.push_back({Cat(rule == PlacementRule::kLinear ? "linear" : "round_robin", workers),
                     {.workers = workers, .placement = rule, .max_step_tokens = 128}});
  }
  all.push_back({"micro2", {.workers = 2, .micro_batches = {.most = 2}, .max_step_tokens = 256}});
  all.push_back({"micro3_chunk5",
                 {.workers = 3,
                  .redundant_experts = 2,
                  .threads = 2,
                  .micro_batches = {.most = 3},
                  .max_step_tokens = 70,
                  .prefill_chunk = 5}});
  all.push_back(
      {"micro4_few_pages",
       {.workers = 2, .micro_batches = {.most = 4}, .max_step_tokens = 70, .prefill_chunk = 7, .kv_pages = 3}});
  all.push_back(
      {"micro_measured", {.workers = 2, .micro_batches = {.most = 2, .measure = true}, .max_step_tokens = 70}});
  all.push_back({"embedded", {.embedded = true, .max_step_tokens = 128}});
  all.push_back({"redundant2", {.workers = 2, .redundant_experts = 3, .max_step_tokens = 128}});
  all.push_back({"redundant5",
                 {.workers = 5,
                  .placement = PlacementRule::kRoundRobin,
                  .redundant_experts = experts,
                  .max_step_tokens = 70,
                  .prefill_chunk = 3}});
  return all;
}

struct Case {
  std::string name;
  HarnessOptions options;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const std::string& model : ModelsToRun(GoldenCases())) {
    const ModelConfig config = *ReadModelConfig(SourcePath(model));
    for (Arrangement& arrangement : Arrangements(config.num_experts())) {
      if (config.has_encoder() && !arrangement.whole_sources) continue;
      arrangement.options.model = model;
      cases.push_back({Cat(CaseName(model), "_", arrangement.name), arrangement.options});
    }
  }
  return cases;
}

/// Grouped heads, a window, latents, sinks with windows in turns, chunks, an encoder with cross attention and relative
/// bias: every form of attention, over a cache that rounds.
std::vector<Case> RoundedCacheCases() {
  std::vector<Case> cases;
  for (const std::string& name :
       ModelsToRun({"goldens/qwen3_moe", "option_goldens/mixtral_window", "goldens/deepseek_v2", "goldens/gpt_oss",
                    "goldens/llama4_text", "goldens/switch_base"})) {
    const std::string model = Cat("tests/", name);
    const bool encoder = ReadModelConfig(SourcePath(model))->has_encoder();
    for (Arrangement& arrangement : Arrangements(0)) {
      if (encoder && !arrangement.whole_sources) continue;
      arrangement.options.model = model;
      arrangement.options.kv_type = KvType::kBf16;
      cases.push_back({Cat(CaseName(model), "_", arrangement.name), arrangement.options});
    }
  }
  return cases;
}

/// Experts of every kind, with and without biases, dense layers and shared experts, latents and an encoder, whose
/// weights and activations are integers. Widths are no multiples of a group.
std::vector<Case> QuantizedCases() {
  std::vector<Case> cases;
  for (const std::string& name : ModelsToRun({"mixtral", "deepseek_v3", "gpt_oss", "switch_base"})) {
    const std::string model = Cat("tests/goldens/", name);
    const ModelConfig config = *ReadModelConfig(SourcePath(model));
    for (const WeightType type : {WeightType::kInt8, WeightType::kInt4}) {
      for (Arrangement& arrangement : Arrangements(config.num_experts())) {
        if (config.has_encoder() && !arrangement.whole_sources) continue;
        arrangement.options.model = model;
        arrangement.options.weight_type = type;
        cases.push_back({Cat(name, "_", Name(type), "_", arrangement.name), arrangement.options});
      }
    }
  }
  return cases;
}

class FamilyIdentity : public testing::TestWithParam<Case> {};

TEST_P(FamilyIdentity, GivesTheBitsOfThePlainRun) { ExpectPlainBits(GetParam().options); }

INSTANTIATE_TEST_SUITE_P(All, FamilyIdentity, testing::ValuesIn(Cases()),
                         [](const auto& test) { return test.param.name; });

INSTANTIATE_TEST_SUITE_P(Bf16Cache, FamilyIdentity, testing::ValuesIn(RoundedCacheCases()),
                         [](const auto& test) { return test.param.name; });

INSTANTIATE_TEST_SUITE_P(Quantized, FamilyIdentity, testing::ValuesIn(QuantizedCases()),
                         [](const auto& test) { return test.param.name; });

constexpr std::size_t kPositions = 40;

/// The logits of all positions of a prompt, (kPositions, vocab).
std::vector<float> LogitsOf(const HarnessOptions& options) {
  EngineHarness harness(options);
  SequenceRequest request = Scoring(RandomTokens(6, kPositions, harness.config().vocab_size), ScoreLogits::kAll);
  return harness.RunAll({std::move(request)}).front().output->logits;
}

/// What the logits of a position are off by, relative to their size: the median of all positions, since one that takes
/// another route, which a gate near a tie may, is off by more.
double MedianLoss(std::span<const float> logits, std::span<const float> exact) {
  const std::size_t vocab = exact.size() / kPositions;
  std::vector<double> losses;
  for (std::size_t position = 0; position < kPositions; ++position) {
    double difference = 0;
    double size = 0;
    for (std::size_t i = position * vocab; i < (position + 1) * vocab; ++i) {
      difference += std::pow(logits[i] - exact[i], 2);
      size += std::pow(exact[i], 2);
    }
    losses.push_back(std::sqrt(difference / size));
  }
  std::ranges::nth_element(losses, losses.begin() + kPositions / 2);
  return losses[kPositions / 2];
}

// The largest of 64 normal values is about 2.4 deviations: a step of int8 is 0.019 of them, and rounding to it is off
// by 0.0055 (a step / sqrt(12)), of weights as of activations: 0.8 % of a product. A token passes up to seven products
// in each of two to four layers, and the head, whose errors add as squares: about 4 %. A step of int4, for 32 weights,
// is 0.27 deviations, 8 % of each of the three products of an MLP: about 24 %. Twice as much is allowed.
TEST(QuantizedWeights, GiveOtherLogitsNearThoseOfTheStoredOnes) {
  for (const char* name : {"llama", "mixtral", "deepseek_v3", "granitemoe", "olmoe"}) {
    const std::string model = Cat("tests/goldens/", name);
    const std::vector<float> exact = LogitsOf({.model = model});
    ASSERT_FALSE(exact.empty());
    const double int8 = MedianLoss(LogitsOf({.model = model, .weight_type = WeightType::kInt8}), exact);
    const double int4 = MedianLoss(LogitsOf({.model = model, .weight_type = WeightType::kInt4}), exact);
    EXPECT_GT(int8, 0.005) << name << ": nothing was rounded";
    EXPECT_LT(int8, 0.08) << name;
    EXPECT_GT(int4, 1.5 * int8) << name << ": int4 was not taken";
    EXPECT_LT(int4, 0.48) << name;
  }
}

}  // namespace
}  // namespace moe
