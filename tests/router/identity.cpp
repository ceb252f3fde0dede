#include "tests/router/identity.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "core/text.h"

namespace moe {
namespace {

/// What each request gives when there is no other; computed once a model, type of the cache and type of the weights.
const std::vector<Client>& Plain(const HarnessOptions& options) {
  static std::map<std::tuple<std::string, KvType, std::optional<WeightType>>, std::vector<Client>> cache;
  std::vector<Client>& plain = cache[{options.model, options.kv_type, options.weight_type}];
  if (!plain.empty()) return plain;
  const HarnessOptions alone{
      .model = options.model, .max_step_tokens = 128, .kv_type = options.kv_type, .weight_type = options.weight_type};
  for (SequenceRequest& request : MixedRequests(EngineHarness(alone).config()))
    plain.push_back(EngineHarness(alone).RunAll({std::move(request)}).front());
  return plain;
}

}  // namespace

std::vector<std::string> CasesIn(const std::string& folder) {
  std::vector<std::string> cases;
  for (const auto& entry : std::filesystem::directory_iterator(SourcePath(folder)))
    if (entry.is_directory()) cases.push_back(Cat(folder, "/", entry.path().filename().string()));
  std::ranges::sort(cases);
  return cases;
}

std::vector<std::string> GoldenCases() {
  std::vector<std::string> cases = CasesIn("tests/goldens");
  std::ranges::copy(CasesIn("tests/option_goldens"), std::back_inserter(cases));
  return cases;
}

std::string CaseName(const std::string& golden) { return std::filesystem::path(golden).filename().string(); }

std::vector<SequenceRequest> MixedRequests(const ModelConfig& config) {
  const int vocab = config.vocab_size;
  SequenceRequest greedy = Greedy(RandomTokens(1, 29, vocab), 9);  // decodes over the end of its page
  greedy.num_logprobs = 5;
  greedy.return_routing = true;

  SequenceRequest sampled = Greedy(RandomTokens(2, 40, vocab), 30);
  sampled.index = 1;
  sampled.sampling = {.temperature = 0.9f,
                      .top_k = 50,
                      .top_p = 0.95f,
                      .min_p = 0.005f,
                      .repetition_penalty = 1.3f,
                      .presence_penalty = 0.4f,
                      .frequency_penalty = 0.2f,
                      .seed = 77};
  sampled.num_logprobs = 1;

  SequenceRequest hot = Greedy(RandomTokens(3, 1, vocab), 33);
  hot.index = 2;
  hot.sampling = {.temperature = 1.5f, .seed = 77};

  // An encoder–decoder has the logits of its first step only.
  SequenceRequest score =
      Scoring(RandomTokens(4, kLongestMixed, vocab), config.has_encoder() ? ScoreLogits::kLast : ScoreLogits::kAll);
  score.return_routing = true;

  std::vector<SequenceRequest> requests = {std::move(greedy), std::move(sampled), std::move(hot), std::move(score),
                                           Scoring(RandomTokens(5, 5, vocab), ScoreLogits::kLast)};
  for (SequenceRequest& request : requests) request = ForModel(config, std::move(request));
  return requests;
}

void ExpectPlainBits(const HarnessOptions& options) {
  EngineHarness harness(options);
  const std::vector<Client> clients = harness.RunAll(MixedRequests(harness.config()));
  const std::vector<Client>& plain = Plain(options);
  ASSERT_EQ(clients.size(), plain.size());
  for (std::size_t i = 0; i < clients.size(); ++i) {
    SCOPED_TRACE("request " + std::to_string(i));
    ExpectSameBits(*clients[i].output, *plain[i].output);
  }
}

}  // namespace moe
