#include "bench/engine/replay_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "bench/engine/local_workers.h"
#include "ranks/router_engine.h"
#include "test_folders.h"
#include "tests/temporary_folder.h"

namespace moe {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr std::size_t kSteps = 12;

RankOptions Model(int redundant) {
  return {.model = std::filesystem::path(MOE_SOURCE_DIR) / "models/eight-languages-moe",
          .threads = 1,
          .redundant_experts = redundant,
          .max_step_tokens = 32};
}

// Steps of 1 to 32 rows, by the writer of real ones; one pair in eight is not sent.
std::uint64_t WriteTrace(const std::filesystem::path& path, const TraceHeader& header) {
  std::mt19937_64 random(5);
  std::string trace = EncodeTraceHeader(header);
  std::uint64_t sent = 0;
  for (std::size_t step = 0; step < kSteps; ++step) {
    const std::size_t rows = 1 + step * 31 / (kSteps - 1);
    std::string record(kTraceFrameBytes + TraceStepBytes(header, 0, rows), '\0');
    const auto payload = std::as_writable_bytes(std::span(record)).subspan(kTraceFrameBytes);
    EncodeTraceStepHead({.step = step, .decoder_rows = static_cast<std::uint32_t>(rows)}, payload);
    const auto k = static_cast<std::size_t>(header.experts_per_token);
    const std::size_t layer_bytes = kTracePairBytes * rows * k;
    for (std::size_t layer = 0; layer < header.layers.size(); ++layer) {
      std::vector<std::int32_t> ids;
      std::vector<float> weights;
      for (std::size_t row = 0; row < rows; ++row) {
        const auto first = static_cast<std::int32_t>(random() % 3);  // few experts have most
        ids.insert(ids.end(), {first, first + 1 + static_cast<std::int32_t>(random() % 5)});
        weights.insert(weights.end(), {0.75f, random() % 4 == 0 ? 0.0f : 0.25f});
        sent += weights.back() == 0 ? 1u : 2u;
      }
      EncodeTraceLayer({ids.data(), rows, k}, {weights.data(), rows, k},
                       payload.subspan(kTraceStepHeadBytes + layer * layer_bytes, layer_bytes));
    }
    EncodeTraceStepFrame(payload, std::as_writable_bytes(std::span(record)));
    trace += record;
  }
  trace += EncodeTraceEnd(kSteps, 0, TraceEnd::kStopped);
  std::ofstream(path, std::ios::binary) << trace;
  return sent;
}

class ReplayTest : public testing::Test {
 protected:
  void SetUp() override {
    options_ = {.trace = folder_.path() / "some.moetrace", .repetitions = 2, .calibrate = 3};
    const RankSetup setup = *PrepareLocalWorkers(Model(0), 1);
    header_ = MakeTraceHeader(setup.config, setup.placement);
    header_.model = "another";
    header_.routing = "zipf:1";
    sent_ = WriteTrace(options_.trace, header_);
  }

  Result<ReplayResult> Run(int workers, int redundant) {
    const RankSetup setup = *PrepareLocalWorkers(Model(redundant), workers);
    ThreadPool pool(PoolOptions(setup));
    MOE_ASSIGN_OR_RETURN(const std::unique_ptr<LocalWorkers> local, LocalWorkers::Start(setup, pool));
    MOE_RETURN_IF_ERROR(AwaitWorkers(setup, local->transport()).status());
    return RunReplay(options_, setup, pool, local->transport(), [&](std::size_t pass) { EXPECT_EQ(pass, passes_++); });
  }

  const TemporaryFolder folder_;
  ReplayOptions options_;
  TraceHeader header_;
  std::uint64_t sent_ = 0;  // pairs in the trace
  std::size_t passes_ = 0;
};

TEST_F(ReplayTest, EveryPairOfTheTraceIsComputedAndWhatItTookIsPredicted) {
  for (const auto& [workers, redundant] : {std::pair(1, 0), std::pair(3, 4)}) {
    passes_ = 0;
    const Result<ReplayResult> result = Run(workers, redundant);
    ASSERT_TRUE(result.ok()) << result.status().message();
    EXPECT_EQ(passes_, 2u);
    EXPECT_EQ(result->steps, kSteps);
    std::uint64_t rows = 0;
    for (std::size_t step = 0; step < kSteps; ++step) rows += 1 + step * 31 / (kSteps - 1);
    EXPECT_EQ(result->rows, rows);
    const std::vector<std::uint64_t> by_worker = result->worker_rows();
    ASSERT_EQ(by_worker.size(), static_cast<std::size_t>(workers));
    EXPECT_EQ(std::accumulate(by_worker.begin(), by_worker.end(), std::uint64_t{0}), sent_);
    std::uint64_t by_expert = 0;
    for (const ReplayLayer& layer : result->layers)
      for (const std::uint64_t tokens : layer.expert_tokens) by_expert += tokens;
    EXPECT_EQ(by_expert, sent_);
    EXPECT_GT(result->seconds, 0);
    EXPECT_NEAR(result->wait_share + result->dispatch_share + result->combine_share, 1, 1e-9);
    EXPECT_GT(result->request_bytes, rows * 128 * 4);  // a row of 128 floats once at least
    EXPECT_GT(result->reply_bytes, sent_ * 128 * 4);
    EXPECT_GE(result->slowest_over_mean(), 1);
    EXPECT_LE(result->exchange_balancedness, 1);
    ASSERT_TRUE(result->prediction.has_value());
    EXPECT_EQ(result->prediction->calibration_steps, kSteps / 3);
    EXPECT_EQ(result->prediction->steps, kSteps - kSteps / 3);
    EXPECT_EQ(result->prediction->calibration_exchanges, 4 * kSteps / 3) << "layers, steps";
    EXPECT_GT(result->prediction->predicted.mean, 0);
    EXPECT_NEAR(result->prediction->error(), result->prediction->predicted.mean / result->prediction->measured.mean - 1,
                1e-12);
  }
}

TEST_F(ReplayTest, ReplicasLevelTheWorkers) {
  const Result<ReplayResult> plain = Run(4, 0);
  passes_ = 0;
  const Result<ReplayResult> replicated = Run(4, 8);
  ASSERT_TRUE(plain.ok() && replicated.ok());
  EXPECT_GT(replicated->exchange_balancedness, plain->exchange_balancedness);
  EXPECT_LT(replicated->slowest_over_mean(), plain->slowest_over_mean());
}

TEST_F(ReplayTest, TheFirstStepsAloneMayBeReplayed) {
  options_.steps = 2;
  const Result<ReplayResult> result = Run(1, 0);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->steps, 2u);
  EXPECT_FALSE(result->prediction.has_value()) << "no step was left to calibrate with";
  EXPECT_THAT(ReplayTable(*result, {}), HasSubstr("no prediction"));
  EXPECT_TRUE(json::parse(ReplayResultsJson(*result, {}))[0]["prediction"].is_null());
}

TEST_F(ReplayTest, RefusesTracesOfAnotherShape) {
  const auto refusal = [&](const TraceHeader& header) {
    WriteTrace(options_.trace, header);
    return Run(1, 0).status().message();
  };
  TraceHeader other = header_;
  other.layers.pop_back();
  other.placement.layers.pop_back();
  EXPECT_THAT(refusal(other), HasSubstr("3 sparse layers"));
  other = header_;
  other.num_experts = 16;
  other.placement.num_experts = 16;
  for (LayerPlacement& layer : other.placement.layers)
    for (int expert = 8; expert < 16; ++expert) layer.slots[0].push_back(expert);
  EXPECT_THAT(refusal(other), HasSubstr("16 experts"));
  EXPECT_THAT(refusal(header_), "");
  options_.trace = folder_.path() / "none.moetrace";
  EXPECT_EQ(Run(1, 0).status().code(), StatusCode::kNotFound);
}

TEST_F(ReplayTest, JsonAndTableHaveTheFiguresOfTheResult) {
  const Result<ReplayResult> result = Run(3, 4);
  ASSERT_TRUE(result.ok());
  const ReplayContext context{.model = "m",
                              .weight_type = "bf16",
                              .exchange_type = "f32",
                              .placement = "linear",
                              .slots = 12,
                              .transport = "inprocess",
                              .threads = 1,
                              .ranks = 1,
                              .workers = 3};
  const json results = json::parse(ReplayResultsJson(*result, context));
  ASSERT_EQ(results.size(), 1u);
  const json& line = results[0];
  EXPECT_EQ(line["workers"], 3);
  EXPECT_EQ(line["slots"], 12);
  EXPECT_EQ(line["trace_model"], "another");
  EXPECT_EQ(line["routing"], "zipf:1");
  EXPECT_EQ(line["layers"].size(), 4u);
  EXPECT_EQ(line["layers"][0]["worker_rows"].size(), 3u);
  EXPECT_EQ(line["layers"][0]["expert_tokens"].size(), 8u);
  EXPECT_EQ(line["step_seconds"]["mean"], result->step_seconds.mean);
  EXPECT_EQ(line["prediction"]["error"], result->prediction->error());
  for (const char* part : {"worker", "dispatch", "wait", "combine"})
    for (const json& coefficient : line["prediction"]["cost_model"][part]) EXPECT_GE(coefficient, 0) << part;
  const std::string table = ReplayTable(*result, context);
  for (const char* text : {"3 worker(s)", "trace of another, routing zipf:1: 12 steps", "balancedness", "predicted"})
    EXPECT_THAT(table, HasSubstr(text));
}

TEST(CheckReplay, NamesTheFlag) {
  EXPECT_TRUE(CheckReplay({}).ok());
  EXPECT_THAT(CheckReplay({.repetitions = 0}).message(), HasSubstr("--repetitions"));
  EXPECT_THAT(CheckReplay({.calibrate = 1}).message(), HasSubstr("--calibrate"));
}

}  // namespace
}  // namespace moe
