// Invariant 1 for every family: every golden on all arrangements of workers, chunks, company and threads.
#include <gtest/gtest.h>

#include <set>
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
  for (const std::string& model : GoldenCases()) {
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
  for (const char* name : {"goldens/qwen3_moe", "option_goldens/mixtral_window", "goldens/deepseek_v2",
                           "goldens/gpt_oss", "goldens/llama4_text", "goldens/switch_base"}) {
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

class FamilyIdentity : public testing::TestWithParam<Case> {};

TEST_P(FamilyIdentity, GivesTheBitsOfThePlainRun) { ExpectPlainBits(GetParam().options); }

INSTANTIATE_TEST_SUITE_P(All, FamilyIdentity, testing::ValuesIn(Cases()),
                         [](const auto& test) { return test.param.name; });

INSTANTIATE_TEST_SUITE_P(Bf16Cache, FamilyIdentity, testing::ValuesIn(RoundedCacheCases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace moe
