#include "bench/engine/quality.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "bench/engine/engine_run.h"
#include "bench/engine/local_engine.h"
#include "test_folders.h"

namespace moe {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::filesystem::path Source(const std::string& relative) { return std::filesystem::path(MOE_SOURCE_DIR) / relative; }

constexpr const char* kText = "order 6 2 8 : 2 6 8\norder 4 1 9 : 1 4 9\norder 3 0 6 : 0 3 6\n";

QualityOptions Options(const std::string& model, std::vector<std::optional<WeightType>> types) {
  return {.rank = {.model = Source(model), .threads = 1, .max_step_tokens = 16},
          .text = kText,
          .window = 24,
          .weight_types = std::move(types)};
}

std::vector<QualityResult> Judge(const QualityOptions& options) {
  Result<std::vector<QualityResult>> results = RunQuality(options, [](const std::string&) {});
  EXPECT_TRUE(results.ok()) << results.status().message();
  return *std::move(results);
}

// Logits of every window, each (window, vocab), with weights of `type`.
std::vector<std::vector<float>> Logits(const QualityOptions& options, WeightType type) {
  RankOptions rank = options.rank;
  rank.weight_type = type;
  RankSetup setup = *PrepareEmbedded(rank);
  const KvPlan kv = *PlanCache(setup, 1, options.window);
  const std::unique_ptr<LocalEngine> engine = *LocalEngine::Load(std::move(setup), kv);
  std::vector<std::vector<float>> logits;
  for (const std::string_view window : Windows(options.text, options.window, 0)) {
    std::shared_ptr<SequenceOutput> output;
    std::vector<std::unique_ptr<Sequence>> sequences;
    sequences.push_back(
        MakeSequence({.kind = SequenceKind::kScore, .prompt = ByteTokens(window), .score_logits = ScoreLogits::kAll},
                     engine->setup().config, &output));
    EXPECT_TRUE(RunSequences(engine->router(), {.max_sequences = 1, .max_step_tokens = 16}, std::move(sequences),
                             [](std::span<const Chunk>, const StepReport&) { return true; })
                    .ok());
    logits.push_back(output->logits);
  }
  return logits;
}

TEST(RunQuality, ScoresEveryTokenOfAWindowButTheFirst) {
  QualityOptions options = Options("models/eight-languages-moe", {WeightType::kF32});
  const std::vector<std::string_view> windows = Windows(options.text, options.window, 0);
  const auto logits = Logits(options, WeightType::kF32);
  Mean expected;
  for (std::size_t w = 0; w < windows.size(); ++w) {
    const std::vector<std::uint32_t> tokens = ByteTokens(windows[w]);
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      const std::span of_position = std::span(logits[w]).subspan(i * 256, 256);
      double sum = 0;
      for (const float logit : of_position) sum += std::exp(static_cast<double>(logit));
      expected.Add(std::log(sum) - of_position[tokens[i + 1]]);
    }
  }
  const std::vector<QualityResult> results = Judge(options);
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].tokens, expected.count());
  EXPECT_NEAR(results[0].mean_nll, expected.value(), 1e-6);
  EXPECT_EQ(results[0].kl, 0);
  EXPECT_TRUE(results[0].tasks.empty());

  options.max_windows = 1;
  EXPECT_EQ(Judge(options)[0].tokens, windows[0].size() - 1);
}

TEST(RunQuality, MeasuresWhatRoundingWeightsCosts) {
  // An f32 checkpoint: bf16 changes its weights; for f32 itself the divergence is 0 by definition.
  const auto results = Judge(Options("tests/goldens/mixtral", {WeightType::kBf16, WeightType::kF32, WeightType::kF16}));
  ASSERT_EQ(results.size(), 3u);
  EXPECT_EQ(results[1].weight_type, WeightType::kF32);
  EXPECT_EQ(results[1].kl, 0);
  EXPECT_GT(results[0].kl, 1e-9);
  EXPECT_LT(results[0].kl, 0.1);
  EXPECT_NE(results[0].mean_nll, results[1].mean_nll);
  EXPECT_GT(results[2].kl, 0);
  EXPECT_LT(results[2].kl, results[0].kl);  // 10 bits of a fraction against 7
}

TEST(RunQuality, DivergesFromF32AtThePositionsThatAreScored) {
  const QualityOptions options = Options("tests/goldens/mixtral", {WeightType::kBf16});
  const auto reference = Logits(options, WeightType::kF32);
  const auto rounded = Logits(options, WeightType::kBf16);
  constexpr std::size_t kVocab = 211;
  Mean expected;
  for (std::size_t w = 0; w < reference.size(); ++w)
    for (std::size_t at = 0; at + kVocab < reference[w].size(); at += kVocab)
      expected.Add(
          KlDivergence(std::span(reference[w]).subspan(at, kVocab), std::span(rounded[w]).subspan(at, kVocab)));
  const QualityResult result = Judge(options)[0];
  EXPECT_EQ(result.tokens, expected.count());
  EXPECT_NEAR(result.kl, expected.value(), 1e-12);
}

TEST(RunQuality, ATypeThatChangesNothingDivergesNowhere) {
  const auto results = Judge(Options("models/eight-languages-moe", {WeightType::kBf16}));  // as it is stored
  EXPECT_EQ(results[0].kl, 0);
}

TEST(RunQuality, MeasuresWhatRoundingTheCacheCosts) {
  // f32 weights too: what they are compared with has an f32 cache.
  QualityOptions options = Options("models/eight-languages-moe", {WeightType::kF32, WeightType::kBf16});
  options.rank.kv_type = KvType::kBf16;
  const auto results = Judge(options);
  for (const QualityResult& result : results) {
    EXPECT_EQ(result.kv_type, KvType::kBf16);
    EXPECT_GT(result.kl, 1e-9);
    EXPECT_LT(result.kl, 1e-3);
  }
  EXPECT_EQ(results[0].kl, results[1].kl) << "the weights are stored in bf16";
}

TEST(RunQuality, CountsExactAnswersByLanguage) {
  QualityOptions options = Options("models/eight-languages-moe", {WeightType::kBf16});
  const std::string shown = "order 1 2 1 1 : 1 1 1 2\norder 7 3 1 3 7 : 1 3 3 7 7\norder 3 0 6 : ";
  options.tasks = {{.language = "order", .prompt = shown, .answer = "0 3 6\n"},
                   {.language = "order", .prompt = shown, .answer = "0 3 7\n"},
                   {.language = "other", .prompt = shown, .answer = "0 3 "},
                   {.language = "wrong", .prompt = shown, .answer = "9"}};
  const TaskScores scores = Judge(options)[0].tasks;
  ASSERT_EQ(scores.size(), 3u);
  EXPECT_EQ(scores.at("order").tasks, 2u);
  EXPECT_EQ(scores.at("order").right, 1u);
  EXPECT_EQ(scores.at("other").share(), 1);
  EXPECT_EQ(scores.at("wrong").share(), 0);
}

TEST(RunQuality, NamesWhatDoesNotFitTheModel) {
  struct Case {
    std::function<void(QualityOptions&)> change;
    const char* expected;
  };
  const Case cases[] = {
      {[](QualityOptions& o) { o.window = 1; }, "--window 1"},
      {[](QualityOptions& o) { o.window = 513; }, "--window 513 is more than the model's context of 512"},
      {[](QualityOptions& o) { o.text.resize(1); }, "--text has 1 bytes"},
      {[](QualityOptions& o) { o.weight_types.clear(); }, "--weight-type is empty"},
      {[](QualityOptions& o) {
         o.tasks = {{.language = "a", .prompt = std::string(500, 'a'), .answer = "13 characters"}};
       },
       "--tasks has one of 513 tokens"},
      {[](QualityOptions& o) { o.rank.model = Source("models/none"); }, "models/none"},
      {[](QualityOptions& o) {
         o.rank.model = Source("tests/goldens/mixtral");
         o.text.back() = '\xd3';
       },
       "--text has byte 211, the model's vocabulary 211 tokens"},
      {[](QualityOptions& o) { o.rank.model = Source("tests/goldens/switch_base"); }, "is an encoder–decoder"},
  };
  for (const Case& wrong : cases) {
    QualityOptions options = Options("models/eight-languages-moe", {WeightType::kF32});
    wrong.change(options);
    const Result<std::vector<QualityResult>> results = RunQuality(options, [](const std::string&) {});
    ASSERT_FALSE(results.ok()) << wrong.expected;
    EXPECT_THAT(results.status().message(), HasSubstr(wrong.expected));
  }
}

std::vector<QualityResult> SomeResults() {
  return {{.weight_type = WeightType::kF32, .mean_nll = 0.5, .tokens = 30, .tasks = {{"a", {3, 4}}, {"b", {0, 1}}}},
          {.weight_type = WeightType::kBf16,
           .kv_type = KvType::kBf16,
           .mean_nll = 0.75,
           .kl = 0.125,
           .tokens = 30,
           .tasks = {{"a", {2, 4}}, {"b", {1, 1}}}}};
}

TEST(QualityResultsJson, HasThePromisedKeys) {
  const json results = json::parse(QualityResultsJson(SomeResults()));
  const json expected = {{"weight_type", "bf16"}, {"kv_type", "bf16"}, {"mean_nll", 0.75},
                         {"kl", 0.125},           {"tokens", 30},      {"tasks", {{"a", 0.5}, {"b", 1.0}}},
                         {"tasks_right", 0.6},    {"num_tasks", 5}};
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[1], expected);
  const json without = json::parse(QualityResultsJson({{.weight_type = WeightType::kF16}}))[0];
  EXPECT_TRUE(without["tasks"].is_object());
  EXPECT_TRUE(without["tasks"].empty());
  EXPECT_TRUE(without["tasks_right"].is_null());
}

TEST(QualityTable, HasALineAWeightTypeAndALineALanguage) {
  const std::string table = QualityTable(SomeResults());
  EXPECT_THAT(table, testing::MatchesRegex("(.|\n)*f32 +f32 +0\\.500000 +0\\.000e\\+00 +30 +60\\.0%\n(.|\n)*"));
  EXPECT_THAT(table, testing::MatchesRegex("(.|\n)*\na +4 +75\\.0% +50\\.0%\nb +1 +0\\.0% +100\\.0%\n"));
}

}  // namespace
}  // namespace moe
