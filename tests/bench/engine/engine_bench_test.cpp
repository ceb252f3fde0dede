#include "bench/engine/engine_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "bench/engine/local_engine.h"
#include "test_folders.h"

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

std::vector<EngineTestResult> Measure(const RankOptions& rank, const EngineBenchOptions& bench,
                                      MachineProbe* probe = nullptr) {
  const std::unique_ptr<LocalEngine> engine = Load(rank, bench);
  std::vector<std::string> started;
  Result<std::vector<EngineTestResult>> results =
      RunEngineBench(bench, {engine->setup(), engine->router(), probe},
                     [&](const EngineTest& test) { started.push_back(test.name()); });
  EXPECT_TRUE(results.ok()) << results.status().message();
  EXPECT_EQ(started.size() * bench.micro_batches.size(), results->size());
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
  EXPECT_EQ(results[0].work().rows, 2u * 3 * 40);
  EXPECT_EQ(results[0].work().steps, 2u * 2);  // 120 rows in steps of at most 64
  EXPECT_EQ(results[0].repetitions.size(), 2u);
  EXPECT_GT(results[0].mean_tokens_per_s(), 0);
}

TEST(RunEngineBench, ADecodeOfOneSequenceTouchesTheActiveWeights) {
  const auto results =
      Measure(Model("eight-languages-moe"), {.prompt_lengths = {}, .generated = {5}, .batches = {1}, .repetitions = 2});
  ASSERT_EQ(results.size(), 1u);
  const Work work = results[0].work();
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
  const double distinct = static_cast<double>(results[0].work().distinct_experts) / 8 / 4;
  EXPECT_GT(distinct, 4);  // 2, were all tokens the same; 7.2, were routing uniform
}

TEST(RunEngineBench, MeasuresTheMachineAroundEveryRepetition) {
  MachineProbe probe({.threads = 1, .buffer_bytes = 1 << 20, .seconds = 0}, SimdKernels().name());
  RankOptions rank = Model("eight-languages-moe");
  rank.weight_type = WeightType::kInt8;
  rank.weight_cache = "off";  // others look for one beside the model meanwhile
  const auto results =
      Measure(rank, {.prompt_lengths = {}, .generated = {2}, .batches = {1, 2}, .repetitions = 2}, &probe);
  ASSERT_EQ(results.size(), 2u);
  for (const EngineTestResult& result : results) {
    ASSERT_EQ(result.repetitions.size(), 2u);
    for (const Repetition& repetition : result.repetitions) {
      EXPECT_GT(repetition.work.operations.int8, repetition.work.operations.fp32);
      ASSERT_TRUE(repetition.machine);
      EXPECT_GT(*repetition.s_mbu(), 0);
      EXPECT_EQ(repetition.s_mfu().has_value(), InstructionOf(SimdKernels().name(), "int8") != nullptr);
      EXPECT_GT(repetition.s_mfu().value_or(1), 0);
    }
  }
}

/// An engine in one process that cuts steps as an MPI job's would.
std::vector<EngineTestResult> MeasureCut(MicroBatchChoice::Options micro_batches, const EngineBenchOptions& bench) {
  RankSetup setup = *PrepareEmbedded(Model("eight-languages-moe"));
  setup.micro_batches = micro_batches;
  setup.exchange.max_micro_batches = static_cast<std::size_t>(micro_batches.most);
  setup.transport_limits = ExpertExchange::Limits(setup.exchange);
  const KvPlan kv = *PlanCache(bench, setup);
  const std::unique_ptr<LocalEngine> engine = *LocalEngine::Load(std::move(setup), kv);
  return *RunEngineBench(bench, {engine->setup(), engine->router()}, [](const EngineTest&) {});
}

TEST(RunEngineBench, TriesMicroBatchesInWarmUpsAlone) {
  // Prefills of 10 rows, and of 64 and 16, which are two classes; decodes of one row, with nothing to choose, and of 8.
  const auto results = MeasureCut({.most = 2, .measure = true},
                                  {.prompt_lengths = {10}, .generated = {3}, .batches = {1, 8}, .repetitions = 2});
  ASSERT_EQ(results.size(), 4u);
  for (const EngineTestResult& result : results) {
    for (const Repetition& repetition : result.repetitions) EXPECT_EQ(repetition.micro_batch_trials, 0u);
    const auto steps = result.micro_batch_steps();
    EXPECT_EQ(steps[0] + steps[1], result.work().steps) << result.test.name();
  }
  EXPECT_THAT(results[2].micro_batch_steps(), ElementsAre(2 * 3, 0, 0, 0));
  EXPECT_THAT(results[3].micro_batch_steps(), testing::Contains(2u * 3)) << "one class has one choice";
}

TEST(RunEngineBench, TakesTheMicroBatchesThatWereAskedFor) {
  const auto results = MeasureCut({.most = 3}, {.prompt_lengths = {}, .generated = {3}, .batches = {2, 8}});
  EXPECT_THAT(results[0].micro_batch_steps(), ElementsAre(0, 9, 0, 0)) << "as many as rows";
  EXPECT_THAT(results[1].micro_batch_steps(), ElementsAre(0, 0, 9, 0));
}

TEST(RunEngineBench, MeasuresEveryNumberOfMicroBatchesAndPredictsItsSteps) {
  // Steps of 64 and 16 rows; of 8.
  const auto results = MeasureCut(
      {.most = 3},
      {.prompt_lengths = {10}, .generated = {3}, .batches = {8}, .micro_batches = {1, 3, 2}, .repetitions = 2});
  ASSERT_EQ(results.size(), 6u);
  for (std::size_t i = 0; i < results.size(); ++i) {
    const EngineTestResult& result = results[i];
    SCOPED_TRACE(Cat(result.test.name(), ", ", result.micro_batches_asked));
    EXPECT_EQ(result.test.name(), i < 3 ? "pp10" : "tg3");
    EXPECT_EQ(result.micro_batches_asked, (std::array{1, 3, 2})[i % 3]);
    EXPECT_EQ(result.repetitions.size(), 2u);
    const auto asked = static_cast<std::size_t>(result.micro_batches_asked);
    EXPECT_EQ(result.micro_batch_steps()[asked - 1], result.work().steps);
    EXPECT_EQ(result.work().rows, i < 3 ? 2u * 80 : 2u * 3 * 8);
    ASSERT_TRUE(result.prediction);
    EXPECT_EQ(result.prediction->layers, 4u);
    EXPECT_GT(result.prediction->times.dense, 0);
    EXPECT_GT(result.prediction->times.expert, 0);
    EXPECT_GE(result.prediction->times.transfer, 0);
    EXPECT_GT(result.prediction->step_seconds, 0);
    EXPECT_DOUBLE_EQ(*result.prediction_error(), result.prediction->step_seconds / result.step_seconds() - 1);
  }
  // Head and sampling are never cut.
  EXPECT_EQ(results[1].prediction->rest_seconds, results[0].prediction->rest_seconds);
}

TEST(RunEngineBench, PredictsOnlyWhereSeveralNumbersAreAskedForAndSomethingIsCut) {
  const auto one =
      MeasureCut({.most = 2}, {.prompt_lengths = {}, .generated = {2}, .batches = {2}, .micro_batches = {2}});
  EXPECT_FALSE(one[0].prediction);
  EXPECT_EQ(one[0].micro_batches_asked, 2);
  RankOptions rank = Model("eight-languages-dense");
  rank.micro_batches = 2;
  const auto dense = Measure(
      rank, {.prompt_lengths = {}, .generated = {2}, .batches = {2}, .micro_batches = {1, 2}, .repetitions = 1});
  ASSERT_EQ(dense.size(), 2u);
  EXPECT_FALSE(dense[1].prediction) << "no experts, no exchange";
  rank.model = std::filesystem::path(MOE_SOURCE_DIR) / "tests/goldens/switch_base";
  const auto encoder = Measure(
      rank, {.prompt_lengths = {}, .generated = {2}, .batches = {2}, .micro_batches = {1, 2}, .repetitions = 1});
  EXPECT_FALSE(encoder[1].prediction) << "an encoder is never cut";
}

TEST(RunEngineBench, PredictsAStepOfOneRowAsOneThatIsNotCut) {
  const auto results = MeasureCut(
      {.most = 2}, {.prompt_lengths = {}, .generated = {3}, .batches = {1}, .micro_batches = {1, 2}, .repetitions = 1});
  ASSERT_TRUE(results[1].prediction);
  EXPECT_EQ(results[1].prediction->step_seconds, results[0].prediction->step_seconds);
  EXPECT_THAT(results[1].micro_batch_steps(), ElementsAre(3, 0, 0, 0));
}

TEST(RunEngineBench, KnowsHowLongThreadsWereBusy) {
  RankOptions rank = Model("eight-languages-moe");
  rank.threads = 2;
  const auto results = Measure(rank, {.prompt_lengths = {32}, .generated = {}, .batches = {2}, .repetitions = 1});
  const EngineTestResult& result = results[0];
  EXPECT_GT(result.usage.loops, 0u);
  EXPECT_GT(result.usage.busy, std::chrono::nanoseconds(0));
  EXPECT_LE(Seconds(result.usage.loop_time), result.seconds());
  EXPECT_GE(result.straggler_share(2), 0);
  EXPECT_GE(result.idle_share(2), result.straggler_share(2));
  EXPECT_LT(result.idle_share(2), 1);
}

TEST(RunEngineBench, RunsModelsWithoutExperts) {
  const auto results = Measure(Model("eight-languages-dense"),
                               {.prompt_lengths = {4}, .generated = {3}, .batches = {2}, .repetitions = 1});
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[1].work().distinct_experts, 0u);
  EXPECT_EQ(results[1].work().steps, 3u);
  const double wide = 9 * 128;
  EXPECT_EQ(results[1].work().weight_bytes / 3, (1049728 - wide - 256 * 128 + 2 * 128) * 2 + wide * 4);
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
      {{.micro_batches = {}}, "--micro-batches is empty"},
      {{.micro_batches = {1, 5}}, "--micro-batches 5: a step is cut into 1 to 4"},
      {{.micro_batches = {1, 2, 1}}, "--micro-batches has 1 twice"},
      {{.micro_batches = {1, 0}}, "--micro-batches auto stands alone"},
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
    EXPECT_EQ(results[0].work().rows, 2 * (7 + encoder));
    EXPECT_EQ(results[1].work().rows, 2 * (5 + encoder));
    EXPECT_EQ(results[1].work().steps, 5 + encoder);
    EXPECT_EQ(results[1].work().distinct_experts > 0, config.num_experts() > 0);
    for (const EngineTestResult& result : results) {
      EXPECT_GT(result.work().kv_bytes, 0);
      EXPECT_GT(result.work().operations.total(), 0);
    }
  }
}

EngineTestResult SomeResult() {
  const std::array<std::uint64_t, kMaxMicroBatches> cut = {1, 9};
  const Work work{.steps = 10,
                  .rows = 20,
                  .weight_bytes = 350,
                  .kv_bytes = 50,
                  .operations = {.fp32 = 600, .int8 = 4000},
                  .distinct_experts = 60};
  const MachineRates slow{.read_bytes_per_s = 800, .fp32_operations_per_s = 3000, .int8_operations_per_s = 20000};
  const MachineRates fast{.read_bytes_per_s = 1000, .fp32_operations_per_s = 3000, .int8_operations_per_s = 20000};
  return {.test = {.kind = EngineTest::Kind::kDecode, .tokens = 10, .batch = 2},
          .repetitions = {{.tokens_per_s = 8, .seconds = 2.5, .work = work, .micro_batch_steps = cut, .machine = slow},
                          {.tokens_per_s = 12, .seconds = 1.5, .work = work, .micro_batch_steps = cut, .machine = slow},
                          {.tokens_per_s = 10, .seconds = 2, .work = work, .micro_batch_steps = cut, .machine = fast}}};
}

EngineTestResult Unmeasured(EngineTestResult result) {
  for (Repetition& repetition : result.repetitions) repetition.machine.reset();
  return result;
}

EngineBenchContext SomeContext() {
  return {.model = "m",
          .weight_type = "bf16",
          .kv_type = "f32",
          .transport = "mpi",
          .threads = 2,
          .ranks = 3,
          .sparse_layers = 2};
}

TEST(Repetition, SetsEachKindOfOperationsBesideItsOwnPeak) {
  Repetition repetition = SomeResult().repetitions[2];
  EXPECT_EQ(repetition.s_mbu(), 400.0 / 2 / 1000);
  EXPECT_EQ(repetition.s_mfu(), (600.0 / 3000 + 4000.0 / 20000) / 2);
  repetition.machine->int8_operations_per_s.reset();
  EXPECT_FALSE(repetition.s_mfu()) << "4000 operations of which nobody knows how fast they could be";
  repetition.work.operations.int8 = 0;
  EXPECT_EQ(repetition.s_mfu(), 600.0 / 3000 / 2);
  repetition.machine.reset();
  EXPECT_FALSE(repetition.s_mfu());
  EXPECT_FALSE(repetition.s_mbu());
}

TEST(EngineTestResult, HasMediansOfTheSharesOfEachRepetition) {
  const EngineTestResult result = SomeResult();
  EXPECT_EQ(result.s_mbu(), 0.2);  // of 0.2, 1/3 and 0.2
  EXPECT_EQ(result.s_mfu(), 0.2);  // of 0.16, 0.4/1.5 and 0.2
  EXPECT_FALSE(Unmeasured(result).s_mbu());
  EXPECT_FALSE(Unmeasured(result).s_mfu());
  EXPECT_EQ(result.mean_tokens_per_s(), 10);
  EXPECT_EQ(result.seconds(), 6);
}

TEST(EngineTestResult, IsBoundByTheSlowerOfTheTwoRoofs) {
  EngineTestResult result = SomeResult();
  // 20 tokens of 400 bytes take 0.5 s at 800 bytes a second (0.4 s at 1000), their operations 0.4 s.
  EXPECT_DOUBLE_EQ(result.binding()->bandwidth_tokens_per_s, 40);
  EXPECT_DOUBLE_EQ(result.binding()->arithmetic_tokens_per_s, 50);
  EXPECT_TRUE(result.binding()->bandwidth());
  for (Repetition& repetition : result.repetitions) repetition.work.operations.fp32 += 600;
  EXPECT_DOUBLE_EQ(result.binding()->arithmetic_tokens_per_s, 20 / 0.6);
  EXPECT_FALSE(result.binding()->bandwidth());
  EXPECT_FALSE(Unmeasured(result).binding());
}

TEST(MedianMachine, IsOfAllRepetitionsOfAllTests) {
  EngineTestResult fast = SomeResult();
  for (Repetition& repetition : fast.repetitions) repetition.machine->read_bytes_per_s = 2000;
  EXPECT_EQ(MedianMachine({SomeResult()})->read_bytes_per_s, 800);
  EXPECT_EQ(MedianMachine({SomeResult(), fast})->read_bytes_per_s, 1500);
  EXPECT_EQ(MedianMachine({SomeResult()})->int8_operations_per_s, 20000);
  EXPECT_FALSE(MedianMachine({Unmeasured(fast)}));
  EXPECT_FALSE(MedianMachine({}));
}

TEST(EngineResultsJson, HasThePromisedKeysAndFigures) {
  const json results = json::parse(EngineResultsJson({SomeResult()}, SomeContext()));
  ASSERT_EQ(results.size(), 1u);
  const json slow = {
      {"read_bandwidth_bytes_per_s", 800.0}, {"fp32_operations_per_s", 3000.0}, {"int8_operations_per_s", 20000.0}};
  json fast = slow;
  fast["read_bandwidth_bytes_per_s"] = 1000.0;
  const json expected = {
      {"test", "tg10"},
      {"batch", 2},
      {"tokens_per_s", 10.0},
      {"tokens_per_s_stddev", std::sqrt(8.0 / 3)},
      {"step_seconds", 0.2},
      {"weight_type", "bf16"},
      {"kv_type", "f32"},
      {"threads", 2},
      {"ranks", 3},
      {"transport", "mpi"},
      {"model", "m"},
      {"routing", "gate"},
      {"traced", false},
      {"trace_cost", nullptr},
      {"s_mbu", 0.2},
      {"s_mfu", 0.2},
      {"binding",
       {{"roof", "bandwidth"}, {"share", 0.2}, {"bandwidth_tokens_per_s", 40.0}, {"arithmetic_tokens_per_s", 50.0}}},
      {"idle_share", nullptr},  // nobody counted the other ranks' threads
      {"straggler_share", nullptr},
      {"micro_batches_asked", "auto"},
      {"micro_batches", {{"1", 3}, {"2", 27}}},
      {"predicted_step_seconds", nullptr},
      {"prediction_error", nullptr},
      {"overlap", nullptr},
      {"bytes_per_token", 20.0},
      {"distinct_experts", 3.0},
      {"repetitions", {8.0, 12.0, 10.0}},
      {"machine", {slow, slow, fast}}};
  EXPECT_EQ(results[0], expected);
}

TEST(EngineResultsJson, SaysNullWhereThereIsNoFigure) {
  EngineBenchContext context = SomeContext();
  context.sparse_layers = 0;
  const json result = json::parse(EngineResultsJson({Unmeasured(SomeResult())}, context))[0];
  for (const char* key : {"s_mbu", "s_mfu", "binding", "machine", "distinct_experts"})
    EXPECT_TRUE(result[key].is_null()) << key;
}

TEST(EngineResultsJson, HasTheIdleSharesOfOneProcess) {
  EngineBenchContext context = SomeContext();
  context.ranks = 1;
  EngineTestResult result = SomeResult();
  result.usage = {.loops = 7, .loop_time = std::chrono::seconds(4), .busy = std::chrono::seconds(6)};
  const json shares = json::parse(EngineResultsJson({result}, context))[0];
  EXPECT_EQ(shares["idle_share"], 0.5);        // two threads for 6 s
  EXPECT_EQ(shares["straggler_share"], 0.25);  // two threads for the 4 s of loops
  EXPECT_THAT(EngineTable({result}, context), testing::HasSubstr(" 50.0%      25.0%\n"));
  result.usage = {};
  const json none = json::parse(EngineResultsJson({result}, context))[0];
  EXPECT_EQ(none["idle_share"], 1.0);
  EXPECT_TRUE(none["straggler_share"].is_null());
}

EngineTestResult PredictedResult() {
  EngineTestResult result = SomeResult();
  result.micro_batches_asked = 2;
  result.prediction = {.times = {.dense = 0.002, .expert = 0.003, .transfer = 0.0005},
                       .rest_seconds = 0.125,
                       .layers = 2,
                       .step_seconds = 0.25};
  return result;
}

TEST(EngineResultsJson, HasThePredictionAndWhatItIsMadeOf) {
  const json result = json::parse(EngineResultsJson({PredictedResult()}, SomeContext()))[0];
  EXPECT_EQ(result["micro_batches_asked"], 2);
  EXPECT_EQ(result["predicted_step_seconds"], 0.25);
  EXPECT_EQ(result["prediction_error"], 0.25);  // 0.25 s for 0.2 s
  const json overlap = {{"dense_seconds", 0.002},
                        {"expert_seconds", 0.003},
                        {"transfer_seconds", 0.0005},
                        {"rest_seconds", 0.125},
                        {"sparse_layers", 2}};
  EXPECT_EQ(result["overlap"], overlap);
}

TEST(EngineTable, ShowsPredictionsBelow) {
  EXPECT_THAT(EngineTable({PredictedResult()}, SomeContext()),
              testing::EndsWith("\n"
                                "test  batch  micro  ms/step  predicted   error  us dense  us experts  us one way\n"
                                "--------------------------------------------------------------------------------\n"
                                "tg10      2      2  200.000    250.000  +25.0%    2000.0      3000.0       500.0\n"));
  EXPECT_THAT(EngineTable({SomeResult()}, SomeContext()), testing::Not(HasSubstr("predicted")));
}

TEST(EngineTable, ShowsSpeedsBesideTheRoofs) {
  EXPECT_EQ(
      EngineTable({SomeResult()}, SomeContext()),
      "m, bf16, KV cache f32, 3 rank(s) of 2 thread(s), mpi\n"
      "machine meanwhile: reads 0.0 GB/s (0.0 to 0.0), computes 0 Gop/s fp32, 0 Gop/s int8\n"
      "test  batch  tokens/s  ms/step  MB/token  experts  micro  S-MBU  at most  S-MFU  at most  idle  straggler\n"
      "---------------------------------------------------------------------------------------------------------\n"
      "tg10      2  10.0±1.6  200.000     0.000     3.00    1,2  20.0%    40.0*  20.0%     50.0     -          -\n"
      "at most: tokens/s that reading alone, or computing alone, would allow; * binds\n");
  EXPECT_THAT(EngineTable({Unmeasured(SomeResult())}, SomeContext()),
              testing::EndsWith(
                  "\ntg10      2  10.0±1.6  200.000     0.000     3.00    1,2      -        -      -        -     "
                  "-          -\n"));
}

TEST(EngineTable, SaysWhatIsForcedAndWhatRecordingCosts) {
  EngineBenchContext context = SomeContext();
  context.routing = "zipf:1";
  EngineTestResult traced = SomeResult();
  traced.traced = true;
  for (Repetition& repetition : traced.repetitions) repetition.seconds *= 1.02;
  traced.repetitions[1].seconds *= 3;  // one that something else has held up
  EXPECT_NEAR(TraceCost(traced, SomeResult()), 0.02, 1e-12);
  traced.trace_cost = TraceCost(traced, SomeResult());
  const std::string table = EngineTable({SomeResult(), traced}, context);
  EXPECT_THAT(table, HasSubstr("mpi, synthetic routing zipf:1\n"));
  EXPECT_THAT(table, HasSubstr("tg10+trace"));
  EXPECT_THAT(table, HasSubstr("tg10, batch 2: recording its routing takes +2.00 % of its time\n"));
  EXPECT_EQ(json::parse(EngineResultsJson({traced}, context))[0]["routing"], "zipf:1");
}

}  // namespace
}  // namespace moe
