#include "bench/engine/engine_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "bench/engine/local_engine.h"

namespace moe {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

RankOptions Model(const char* name) {
  return {.model = std::filesystem::path(MOE_SOURCE_DIR) / "models" / name, .threads = 1, .max_step_tokens = 64};
}

std::unique_ptr<LocalEngine> Load(const RankOptions& rank, const EngineBenchOptions& bench) {
  RankSetup setup = *PrepareEmbedded(rank);
  const KvPlan kv = *PlanCache(bench, setup);
  Result<std::unique_ptr<LocalEngine>> engine = LocalEngine::Load(std::move(setup), kv);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return *std::move(engine);
}

std::vector<EngineTestResult> Measure(const RankOptions& rank, const EngineBenchOptions& bench) {
  const std::unique_ptr<LocalEngine> engine = Load(rank, bench);
  std::vector<std::string> started;
  Result<std::vector<EngineTestResult>> results = RunEngineBench(
      bench, engine->setup(), engine->router(), [&](const EngineTest& test) { started.push_back(test.name()); });
  EXPECT_TRUE(results.ok()) << results.status().message();
  EXPECT_EQ(started.size(), results->size());
  EXPECT_EQ(engine->router().cache().used_tokens(), 0u);  // the pages are back
  return *std::move(results);
}

TEST(TestsOf, ArePrefillsThenDecodesOfEveryBatch) {
  std::vector<std::string> names;
  for (const EngineTest& test : TestsOf({.prompt_lengths = {8, 0}, .generated = {4}, .batches = {1, 2}}))
    names.push_back(Cat(test.name(), "x", test.batch));
  EXPECT_THAT(names, ElementsAre("pp8x1", "pp8x2", "tg4x1", "tg4x2"));
}

TEST(RunEngineBench, PrefillsEveryTokenOfEverySequence) {
  const auto results = Measure(Model("eight-languages-moe"),
                               {.prompt_lengths = {40}, .generated = {}, .batches = {3}, .repetitions = 2});
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].work.rows, 2u * 3 * 40);
  EXPECT_EQ(results[0].work.steps, 2u * 2);  // 120 rows in steps of at most 64
  EXPECT_EQ(results[0].tokens_per_s.size(), 2u);
  EXPECT_GT(results[0].mean_tokens_per_s(), 0);
}

TEST(RunEngineBench, ADecodeOfOneSequenceTouchesTheActiveWeights) {
  const auto results =
      Measure(Model("eight-languages-moe"), {.prompt_lengths = {}, .generated = {5}, .batches = {1}, .repetitions = 2});
  ASSERT_EQ(results.size(), 1u);
  const Work& work = results[0].work;
  EXPECT_EQ(work.steps, 10u);
  EXPECT_EQ(work.rows, 10u);
  EXPECT_EQ(work.distinct_experts, 10u * 4 * 2);  // 4 layers, top 2
  // Keys and values of positions 1 … 5, 4 layers, 2 KV heads of 32 floats.
  EXPECT_EQ(work.kv_bytes, 2.0 * (1 + 2 + 3 + 4 + 5) * 4 * 2 * (2 * 32 * 4));
  // All of 1,053,824 active parameters but the table, of which it reads a row; bf16 but for gates (4 × 8 × 128) and
  // norms (9 × 128) in f32.
  const double wide = 4 * 8 * 128 + 9 * 128;
  const double narrow = 1053824 - wide - 256 * 128 + 128;
  EXPECT_EQ(work.weight_bytes / 10, narrow * 2 + wide * 4);
}

TEST(RunEngineBench, SequencesHaveTokensOfTheirOwn) {
  const auto results =
      Measure(Model("eight-languages-moe"), {.prompt_lengths = {}, .generated = {8}, .batches = {8}, .repetitions = 1});
  const double distinct = static_cast<double>(results[0].work.distinct_experts) / 8 / 4;
  EXPECT_GT(distinct, 4);  // 2, were all tokens the same; 7.2, were routing uniform
}

TEST(RunEngineBench, KnowsHowLongThreadsWereBusy) {
  RankOptions rank = Model("eight-languages-moe");
  rank.threads = 2;
  const auto results = Measure(rank, {.prompt_lengths = {32}, .generated = {}, .batches = {2}, .repetitions = 1});
  const EngineTestResult& result = results[0];
  EXPECT_GT(result.usage.loops, 0u);
  EXPECT_GT(result.usage.busy, std::chrono::nanoseconds(0));
  EXPECT_LE(Seconds(result.usage.loop_time), result.seconds);
  EXPECT_GE(result.straggler_share(2), 0);
  EXPECT_GE(result.idle_share(2), result.straggler_share(2));
  EXPECT_LT(result.idle_share(2), 1);
}

TEST(RunEngineBench, RunsModelsWithoutExperts) {
  const auto results = Measure(Model("eight-languages-dense"),
                               {.prompt_lengths = {4}, .generated = {3}, .batches = {2}, .repetitions = 1});
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[1].work.distinct_experts, 0u);
  EXPECT_EQ(results[1].work.steps, 3u);
  const double wide = 9 * 128;
  EXPECT_EQ(results[1].work.weight_bytes / 3, (1049728 - wide - 256 * 128 + 2 * 128) * 2 + wide * 4);
}

TEST(CheckEngineBench, NamesWhatDoesNotFit) {
  const RankSetup setup = *PrepareEmbedded(Model("eight-languages-moe"));
  const std::pair<EngineBenchOptions, const char*> cases[] = {
      {{.prompt_lengths = {0}, .generated = {}}, "nothing to measure"},
      {{.batches = {}}, "nothing to measure"},
      {{.repetitions = 0}, "-r is 0"},
      {{.batches = {1, 0}}, "-b 0"},
      {{.batches = {65}}, "1 to 64"},
      {{.prompt_lengths = {513}}, "-p 513 is more than the model's context of 512"},
      {{.generated = {600}}, "-n 600"},
  };
  for (const auto& [options, expected] : cases) {
    const Status status = CheckEngineBench(options, setup);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << expected;
    EXPECT_THAT(status.message(), HasSubstr(expected));
  }
  EXPECT_TRUE(CheckEngineBench({}, setup).ok());
}

TEST(PlanCache, TakesTheTypeThatWasChosen) {
  RankOptions options{.model = std::filesystem::path(MOE_SOURCE_DIR) / "models/eight-languages-moe"};
  const KvPlan wide = *PlanCache(*PrepareEmbedded(options), 4, 100);
  options.kv_type = KvType::kBf16;
  const KvPlan narrow = *PlanCache(*PrepareEmbedded(options), 4, 100);
  EXPECT_EQ(wide.type, KvType::kF32);
  EXPECT_EQ(narrow.type, KvType::kBf16);
  EXPECT_EQ(2 * narrow.bytes, wide.bytes);
}

TEST(PlanCache, RefusesWhatTheMachineCannotHold) {
  const RankSetup setup = *PrepareEmbedded(Model("eight-languages-moe"));
  const Result<KvPlan> plan = PlanCache(setup, std::size_t{1} << 20, std::size_t{1} << 20);
  ASSERT_FALSE(plan.ok());
  EXPECT_THAT(plan.status().message(), HasSubstr("1048576 sequences of 1048576 tokens need a KV cache of "));
}

TEST(RunEngineBench, RunsEveryFamily) {
  for (const auto& golden :
       std::filesystem::directory_iterator(std::filesystem::path(MOE_SOURCE_DIR) / "tests/goldens")) {
    if (!golden.is_directory()) continue;
    SCOPED_TRACE(golden.path().filename().string());
    const RankOptions rank{.model = golden.path(), .threads = 1, .max_step_tokens = 16};
    const auto results = Measure(rank, {.prompt_lengths = {7}, .generated = {5}, .batches = {2}, .repetitions = 1});
    ASSERT_EQ(results.size(), 2u);
    const ModelConfig config = *ReadModelConfig(golden.path());
    // An encoder takes the prompt, then the decoder's first token comes.
    const std::uint64_t encoder = config.has_encoder() ? 1 : 0;
    EXPECT_EQ(results[0].work.rows, 2 * (7 + encoder));
    EXPECT_EQ(results[1].work.rows, 2 * (5 + encoder));
    EXPECT_EQ(results[1].work.steps, 5 + encoder);
    EXPECT_EQ(results[1].work.distinct_experts > 0, config.num_experts() > 0);
    for (const EngineTestResult& result : results) {
      EXPECT_GT(result.work.kv_bytes, 0);
      EXPECT_GT(result.work.operations, 0);
    }
  }
}

EngineTestResult SomeResult() {
  EngineTestResult result{
      .test = {.kind = EngineTest::Kind::kDecode, .tokens = 10, .batch = 2}, .tokens_per_s = {8, 12}, .seconds = 4};
  result.work = {
      .steps = 20, .rows = 40, .weight_bytes = 700, .kv_bytes = 100, .operations = 2000, .distinct_experts = 120};
  return result;
}

EngineBenchContext SomeContext() {
  return {.model = "m",
          .weight_type = "bf16",
          .kv_type = "f32",
          .transport = "mpi",
          .threads = 2,
          .ranks = 3,
          .sparse_layers = 2,
          .roofs = Roofs{.read_bandwidth_bytes_per_s = 1000, .peak_flops = 5000, .threads = 2}};
}

TEST(EngineResultsJson, HasThePromisedKeysAndFigures) {
  const json results = json::parse(EngineResultsJson({SomeResult()}, SomeContext()));
  ASSERT_EQ(results.size(), 1u);
  const json expected = {{"test", "tg10"},
                         {"batch", 2},
                         {"tokens_per_s", 10.0},
                         {"tokens_per_s_stddev", 2.0},
                         {"step_seconds", 0.2},
                         {"weight_type", "bf16"},
                         {"kv_type", "f32"},
                         {"threads", 2},
                         {"ranks", 3},
                         {"transport", "mpi"},
                         {"model", "m"},
                         {"s_mbu", 0.2},           // 800 bytes in 4 s of 1000 a second
                         {"s_mfu", 0.1},           // 2000 operations in 4 s of 5000 a second
                         {"idle_share", nullptr},  // nobody counted the other ranks' threads
                         {"straggler_share", nullptr},
                         {"bytes_per_token", 20.0},
                         {"distinct_experts", 3.0},
                         {"repetitions", {8.0, 12.0}}};
  EXPECT_EQ(results[0], expected);
}

TEST(EngineResultsJson, SaysNullWhereThereIsNoFigure) {
  EngineBenchContext context = SomeContext();
  context.roofs.reset();
  context.sparse_layers = 0;
  const json result = json::parse(EngineResultsJson({SomeResult()}, context))[0];
  for (const char* key : {"s_mbu", "s_mfu", "distinct_experts"}) EXPECT_TRUE(result[key].is_null()) << key;
}

TEST(EngineResultsJson, HasTheIdleSharesOfOneProcess) {
  EngineBenchContext context = SomeContext();
  context.ranks = 1;
  EngineTestResult result = SomeResult();
  result.usage = {.loops = 7, .loop_time = std::chrono::seconds(3), .busy = std::chrono::milliseconds(4500)};
  const json shares = json::parse(EngineResultsJson({result}, context))[0];
  EXPECT_EQ(shares["idle_share"], 1 - 4.5 / 8);       // two threads for 4 s
  EXPECT_EQ(shares["straggler_share"], 1 - 4.5 / 6);  // two threads for the 3 s of loops
  EXPECT_THAT(EngineTable({result}, context), testing::HasSubstr(" 43.8%      25.0%\n"));
  result.usage = {};
  const json none = json::parse(EngineResultsJson({result}, context))[0];
  EXPECT_EQ(none["idle_share"], 1.0);
  EXPECT_TRUE(none["straggler_share"].is_null());
}

TEST(EngineTable, ShowsSpeedsBesideTheRoofs) {
  const std::string table = EngineTable({SomeResult()}, SomeContext());
  EXPECT_THAT(table, testing::MatchesRegex("m, bf16, KV cache f32, 3 rank\\(s\\) of 2 thread\\(s\\), mpi\n(.|\n)*"));
  EXPECT_THAT(table, testing::MatchesRegex(
                         "(.|\n)*tg10 +2 +10\\.0 \\+- 2\\.0 +200\\.000 +0\\.0 +3\\.00 +20\\.0% +10\\.0% +- +-\n"));
}

}  // namespace
}  // namespace moe
