// Ranks, what fits, the fewest workers, the longest context.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "bench/plan/memory_plan.h"
#include "bench/plan/memory_report.h"
#include "tests/bench/plan_models.h"
#include "tests/temporary_folder.h"

namespace moe {
namespace {

using testing::HasSubstr;

constexpr std::uint64_t kGB = 1'000'000'000;
constexpr std::uint64_t kMixtralExpert = 2u * 176'160'768;  // bf16

MemoryOptions Options(int workers, std::uint64_t device_bytes) {
  return {.kv = {.context = 4096,
                 .batch = 2,
                 .encoder_tokens = 4096,
                 .prefill_chunk = 512,
                 .step_tokens = 512,
                 .page_tokens = 32,
                 .element_bytes = 4},
          .step = {.max_step_tokens = 512},
          .workers = workers,
          .device_bytes = device_bytes};
}

MemoryPlan Plan(const std::string& model, const MemoryOptions& options, std::string_view type = "bf16") {
  const ModelConfig config = BuiltIn(model);
  const Result<MemoryPlan> plan = PlanMemory(config, Scheme(type, config), options);
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  return plan.ok() ? *plan : MemoryPlan{};
}

std::string ErrorOf(const MemoryOptions& options) {
  const ModelConfig config = BuiltIn("mixtral-8x7b");
  const Result<MemoryPlan> plan = PlanMemory(config, Scheme("bf16", config), options);
  return plan.ok() ? "no error" : plan.status().message();
}

TEST(MemoryPlan, SharesExpertsOut) {
  const MemoryPlan plan = Plan("mixtral-8x7b", Options(3, 80 * kGB));
  ASSERT_EQ(plan.ranks.size(), 4u);
  EXPECT_EQ(plan.ranks[0].role, "router");
  EXPECT_EQ(plan.ranks[0].weights, 3'213'901'824u);
  EXPECT_EQ(plan.ranks[0].kv, 2u * 4096 * 65536 * 4);
  EXPECT_EQ(plan.ranks[0].exchange, 3 * plan.ranks[1].exchange);
  const std::uint64_t slots[] = {0, 3 * 32, 3 * 32, 2 * 32};
  for (std::size_t rank = 1; rank < 4; ++rank) {
    EXPECT_EQ(plan.ranks[rank].rank, static_cast<int>(rank));
    EXPECT_EQ(plan.ranks[rank].slots, slots[rank]);
    EXPECT_EQ(plan.ranks[rank].weights, slots[rank] * kMixtralExpert);
    EXPECT_EQ(plan.ranks[rank].kv, 0u);
  }
  std::uint64_t sum = 0;
  for (const RankMemory& rank : plan.ranks) sum += rank.total();
  EXPECT_EQ(plan.all_ranks, sum);
  EXPECT_TRUE(plan.fits);
}

TEST(MemoryPlan, OneProcessHoldsEverything) {
  const MemoryPlan plan = Plan("mixtral-8x7b", Options(0, 80 * kGB));
  ASSERT_EQ(plan.ranks.size(), 1u);
  EXPECT_EQ(plan.ranks[0].weights, plan.weights.total);
  EXPECT_EQ(plan.ranks[0].slots, 8u * 32);
  EXPECT_FALSE(plan.fits);
  EXPECT_EQ(plan.longest_context, std::nullopt);
}

TEST(MemoryPlan, ReplicasTakeRoom) {
  MemoryOptions options = Options(2, 80 * kGB);
  options.redundant_experts = 8;
  const MemoryPlan plan = Plan("mixtral-8x7b", options);
  EXPECT_EQ(plan.ranks[1].slots, 8u * 32);
  EXPECT_EQ(plan.ranks[2].slots, 8u * 32);
  options.redundant_experts = 9;
  EXPECT_THAT(ErrorOf(options), HasSubstr("--redundant-experts 9"));
}

TEST(MemoryPlan, FindsTheFewestWorkers) {
  // Of 40 GB, two workers would need 45 GB each, three 34 GB.
  EXPECT_EQ(Plan("mixtral-8x7b", Options(1, 40 * kGB)).smallest_workers, 3);
  EXPECT_EQ(Plan("mixtral-8x7b", Options(5, 100 * kGB)).smallest_workers, 0);
  EXPECT_EQ(Plan("mixtral-8x7b", Options(1, 12 * kGB)).smallest_workers, 8);  // an expert of each layer, 11.3 GB
  EXPECT_EQ(Plan("mixtral-8x7b", Options(1, 11 * kGB)).smallest_workers, std::nullopt);
  EXPECT_EQ(Plan("llama-2-70b", Options(0, 80 * kGB)).smallest_workers, std::nullopt);  // no experts to share out
  EXPECT_EQ(Plan("llama-2-70b", Options(0, 160 * kGB)).smallest_workers, 0);
}

TEST(MemoryPlan, TheFewestWorkersFitAndOneLessDoNot) {
  for (const char* model : {"deepseek-v3", "gpt-oss-120b", "qwen3-30b-a3b", "switch-c-2048", "llama-4-maverick"}) {
    for (const std::uint64_t gigabytes : {64u, 130u}) {
      MemoryOptions options = Options(1, gigabytes * kGB);
      const std::optional<int> least = Plan(model, options).smallest_workers;
      ASSERT_TRUE(least) << model;
      options.workers = *least;
      EXPECT_TRUE(Plan(model, options).fits) << model << " " << *least;
      if (*least == 0) continue;
      options.workers = *least - 1;
      EXPECT_FALSE(Plan(model, options).fits) << model << " " << *least;
    }
  }
}

TEST(MemoryPlan, TheLongestContextFitsAndOneMoreDoesNot) {
  for (const char* model : {"deepseek-v3", "gpt-oss-120b", "mixtral-8x7b", "llama-4-scout"}) {
    MemoryOptions options = Options(16, 80 * kGB);
    const std::optional<std::uint64_t> longest = Plan(model, options).longest_context;
    ASSERT_TRUE(longest) << model;
    options.kv.context = *longest;
    EXPECT_LE(Plan(model, options).ranks[0].total(), 80 * kGB) << model;
    options.kv.context = *longest + 1;
    EXPECT_GT(Plan(model, options).ranks[0].total(), 80 * kGB) << model;
  }
}

TEST(MemoryPlan, AModelOfWindowsTakesAnyContext) {
  EXPECT_EQ(Plan("mistral-7b-v0.1", Options(0, 80 * kGB)).longest_context, kMostContext);
}

TEST(MemoryPlan, OnlyAShareOfTheDeviceIsUsed) {
  MemoryOptions options = Options(3, 40 * kGB);
  options.usable_share = 0.5;
  const MemoryPlan plan = Plan("mixtral-8x7b", options);
  EXPECT_EQ(plan.usable_bytes, 20 * kGB);
  EXPECT_FALSE(plan.fits);
  EXPECT_EQ(plan.smallest_workers, 8);  // two experts of each layer are 22.5 GB
}

TEST(MemoryPlan, ATiedTableIsHeldTwice) {
  const MemoryPlan plan = Plan("llama-3.2-1b", Options(0, 80 * kGB));
  EXPECT_EQ(plan.ranks[0].weights, plan.weights.total + 2u * 128256 * 2048);
}

TEST(MemoryPlan, TakesThePlacementsOfADeployment) {
  MemoryOptions options = Options(3, 40 * kGB);
  options.placement = "round_robin";
  EXPECT_EQ(Plan("mixtral-8x7b", options).ranks[3].slots, 2u * 32);
  options.placement = "auto";
  EXPECT_EQ(Plan("mixtral-8x7b", options).smallest_workers, 3);
  options.placement = "eplb";
  EXPECT_THAT(ErrorOf(options), HasSubstr("8 slots cannot be divided evenly by 3"));
  options.workers = 2;
  const MemoryPlan plan = Plan("mixtral-8x7b", options);
  EXPECT_EQ(plan.ranks[1].slots, 4u * 32);
  EXPECT_EQ(plan.smallest_workers, 4) << "three do not divide the slots";
}

TEST(MemoryPlan, FollowsAPlacementFile) {
  const TemporaryFolder folder;
  nlohmann::json layers = nlohmann::json::array();
  for (int layer = 0; layer < 32; ++layer)
    layers.push_back({{"layer", layer}, {"slots", {{0, 1, 2, 3, 4, 5}, {5, 6, 7}}}});
  folder.Write("placement.json",
               nlohmann::json{{"schema", 1}, {"num_experts", 8}, {"workers", 2}, {"layers", layers}}.dump());
  MemoryOptions options = Options(2, 80 * kGB);
  options.placement = folder.path() / "placement.json";
  const MemoryPlan plan = Plan("mixtral-8x7b", options);
  EXPECT_EQ(plan.ranks[1].slots, 6u * 32);
  EXPECT_EQ(plan.ranks[2].slots, 3u * 32);
  EXPECT_EQ(plan.smallest_workers, std::nullopt);
  options.workers = 3;
  EXPECT_THAT(ErrorOf(options), HasSubstr("workers 2 is not the cluster's 3"));
  options.placement = "no such file";
  EXPECT_THAT(ErrorOf(options), HasSubstr("no such file"));
}

TEST(MemoryPlan, BadOptionsAreNamed) {
  const auto with = [](auto change) {
    MemoryOptions options = Options(2, 80 * kGB);
    change(options);
    return ErrorOf(options);
  };
  EXPECT_EQ(with([](auto& o) { o.kv.batch = 0; }), "batch 0 is not in 1 … 1048576");
  EXPECT_THAT(with([](auto& o) { o.kv.context = 0; }), HasSubstr("context 0"));
  EXPECT_THAT(with([](auto& o) { o.kv.context = kMostContext + 1; }), HasSubstr("context 1099511627777"));
  EXPECT_THAT(with([](auto& o) { o.step.max_step_tokens = 0; }), HasSubstr("max_step_tokens 0"));
  EXPECT_THAT(with([](auto& o) { o.workers = -1; }), HasSubstr("workers -1"));
  EXPECT_THAT(with([](auto& o) { o.workers = kMostWorkers + 1; }), HasSubstr("workers 4097"));
  EXPECT_THAT(with([](auto& o) { o.device_bytes = 0; }), HasSubstr("device_memory 0"));
  EXPECT_THAT(with([](auto& o) { o.usable_share = 1.5; }), HasSubstr("memory_share 1.5"));
  EXPECT_THAT(with([](auto& o) {
                o.kv.context = kMostContext;
                o.kv.batch = kMostBatch;
              }),
              HasSubstr("63 bits"));
  EXPECT_THAT(with([](auto& o) {
                o.kv.context = kMostContext;
                o.kv.batch = 8;
              }),
              HasSubstr("KV cache"));
}

TEST(MemoryReport, TextAndJsonAgree) {
  const NamedModel model = *OpenModel("gpt-oss-120b");
  const MemoryOptions options = Options(4, 80 * kGB);
  MemoryReport report{.model = model, .options = options, .device = "--device-memory"};
  report.entries.push_back({Scheme("mxfp4", model.config), Plan("gpt-oss-120b", options, "mxfp4")});
  const auto json = nlohmann::json::parse(MemoryJson(report));
  EXPECT_EQ(json["by_weight_type"][0]["ranks"].size(), 5u);
  EXPECT_EQ(json["by_weight_type"][0]["ranks"][0]["total"], report.entries[0].plan.ranks[0].total());
  EXPECT_EQ(json["kv"]["uses"][1]["kind"], "window");
  EXPECT_EQ(json["assumptions"]["max_step_tokens"], 512);
  const std::string text = MemoryText(report);
  EXPECT_THAT(text, HasSubstr("1…4 each a worker"));
  EXPECT_THAT(text, HasSubstr("steps of 512 tokens"));
}

}  // namespace
}  // namespace moe
