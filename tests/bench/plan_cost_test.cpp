// The two roofs against figures worked out by hand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "bench/plan/compare_report.h"
#include "bench/plan/cost_plan.h"
#include "bench/plan/cost_report.h"
#include "bench/plan/devices.h"
#include "bench/plan/memory_plan.h"
#include "core/machine.h"
#include "model/parameter_count.h"
#include "tests/bench/plan_models.h"

namespace moe {
namespace {

using testing::HasSubstr;

CostOptions Options() {
  return {.context = 4096, .encoder_tokens = 4096, .kv_element_bytes = 4, .bandwidth = 1e12, .flops = 1e15};
}

StepWork Work(const std::string& model, const WorkShape& shape, std::string_view type = "bf16") {
  const ModelConfig config = BuiltIn(model);
  return CountStepWork(config, Scheme(type, config), shape);
}

CostPoint Point(const std::string& model, const CostOptions& options, std::uint64_t batch) {
  const ModelConfig config = BuiltIn(model);
  const auto points = PlanCost(config, Scheme("bf16", config), options, {batch});
  EXPECT_TRUE(points.ok()) << points.status().message();
  return points.ok() ? points->front() : CostPoint{};
}

TEST(DistinctExperts, FollowTheFormula) {
  EXPECT_DOUBLE_EQ(ExpectedDistinctExperts(8, 2, 1), 2);
  EXPECT_NEAR(ExpectedDistinctExperts(8, 2, 2), 8 * (1 - 0.75 * 0.75), 1e-12);
  EXPECT_NEAR(ExpectedDistinctExperts(256, 8, 8), 256 - 852'891'037'441.0 / 4'294'967'296, 1e-9);  // 31^8 / 2^32
  EXPECT_NEAR(ExpectedDistinctExperts(2048, 1, 1), 1, 1e-12);
  EXPECT_NEAR(ExpectedDistinctExperts(8, 2, 1e6), 8, 1e-12);
  EXPECT_DOUBLE_EQ(ExpectedDistinctExperts(4, 4, 3), 4);
  EXPECT_DOUBLE_EQ(ExpectedDistinctExperts(0, 0, 3), 0);
}

TEST(StepWork, OfMixtralForOneToken) {
  const StepWork work = Work("mixtral-8x7b", {.tokens = 1, .context = 4096});
  // All but the experts, and of the embedding one row.
  EXPECT_DOUBLE_EQ(work.dense_bytes, 3'213'901'824.0 - 2.0 * 32000 * 4096 + 2 * 4096);
  EXPECT_DOUBLE_EQ(work.expert_bytes, 2.0 * 32 * 2 * 176'160'768);
  EXPECT_DOUBLE_EQ(work.kv_bytes, 4096.0 * 65536 * 4);
  EXPECT_DOUBLE_EQ(work.dense_flops + work.expert_flops, 2.0 * 12'748'853'248);
  EXPECT_DOUBLE_EQ(work.attention_flops, 4096.0 * 32 * 32 * 4 * 128);
  EXPECT_DOUBLE_EQ(work.distinct_experts, 2);
  EXPECT_DOUBLE_EQ(work.exchange_bytes, 0);
}

TEST(StepWork, ABatchReadsDenseWeightsOnceAndDistinctExpertsOnce) {
  const StepWork one = Work("mixtral-8x7b", {.tokens = 1, .context = 100});
  const StepWork four = Work("mixtral-8x7b", {.tokens = 4, .context = 100});
  EXPECT_DOUBLE_EQ(four.dense_bytes, one.dense_bytes + 3 * 2 * 4096);  // rows of the embedding
  EXPECT_NEAR(four.expert_bytes / one.expert_bytes, 8 * (1 - std::pow(0.75, 4)) / 2, 1e-12);
  EXPECT_DOUBLE_EQ(four.kv_bytes, 4 * one.kv_bytes);
  EXPECT_DOUBLE_EQ(four.flops(), 4 * one.flops());
}

TEST(StepWork, ALargeBatchReadsEverythingOnceAndNoMore) {
  for (const char* model : {"mixtral-8x7b", "gpt2", "deepseek-v3"}) {
    const StepWork work = Work(model, {.tokens = kMostBatch});
    const WeightBytes all = BytesAs("bf16", model);
    EXPECT_NEAR((work.dense_bytes + work.expert_bytes) / static_cast<double>(all.total + all.tied_head_copy), 1, 1e-12)
        << model;
  }
}

// Every decoder multiplies by all that is active but for tables that it looks up in.
TEST(StepWork, OperationsAreTwoForEachActiveParameter) {
  for (const PublishedModel& model : PublishedModels()) {
    const ModelConfig config = BuiltIn(std::string(model.name));
    if (config.has_encoder() || config.learned_positions > 0) continue;
    const StepWork work = CountStepWork(config, Scheme("bf16", config), {.tokens = 1});
    EXPECT_DOUBLE_EQ(work.flops(), 2.0 * static_cast<double>(CountParameters(config).active_without_embedding))
        << model.name;
  }
}

TEST(StepWork, ATiedTableIsLookedUpAndMultiplied) {
  const StepWork bf16 = Work("llama-3.2-1b", {.tokens = 3});
  EXPECT_DOUBLE_EQ(bf16.dense_bytes, static_cast<double>(BytesAs("bf16", "llama-3.2-1b").total) + 3 * 2 * 2048);
  const WeightBytes int8 = BytesAs("int8", "llama-3.2-1b");
  EXPECT_DOUBLE_EQ(Work("llama-3.2-1b", {.tokens = 3}, "int8").dense_bytes,
                   static_cast<double>(int8.total - 2u * 128256 * 2048 + int8.tied_head_copy) + 3 * 2 * 2048);
}

TEST(StepWork, LatentAttentionReadsTheLatentOnceForAllHeads) {
  const StepWork work = Work("deepseek-v3", {.tokens = 1, .context = 1000}, "stored");
  EXPECT_DOUBLE_EQ(work.kv_bytes, 1000.0 * 61 * 576 * 4);
  EXPECT_DOUBLE_EQ(work.attention_flops, 1000.0 * 61 * 128 * 2 * (576 + 512));
  const StepWork other = Work("deepseek-v3", {.tokens = 1, .context = 1000}, "bf16");
  EXPECT_LT(work.dense_bytes, 0.6 * other.dense_bytes);
}

TEST(StepWork, WindowsBoundWhatIsRead) {
  const StepWork work = Work("gpt-oss-120b", {.tokens = 1, .context = 10000, .kv_element_bytes = 2});
  EXPECT_DOUBLE_EQ(work.kv_bytes, 18.0 * 1024 * 2 * (10000 + 128));
}

TEST(StepWork, AnEncoderIsNotInADecodingStep) {
  const StepWork work = Work("switch-base-8", {.tokens = 1, .context = 10, .encoder_tokens = 100}, "f32");
  // Decoder: 12 layers of self attention and of cross attention without its keys and values, 6 dense MLPs, 6 routed
  // experts; norms (the final ones of both stacks), 6 routers, the relative bias, and the table as the head.
  const double attention = 12.0 * (4 + 2) * 768 * 768;
  const double mlps = 12.0 * 2 * 768 * 3072;
  const double others = (3.0 * 12 + 2) * 768 + 6.0 * 8 * 768 + 32.0 * 12 + 32128.0 * 768;
  EXPECT_DOUBLE_EQ(work.dense_flops + work.expert_flops, 2 * (attention + mlps + others));
  EXPECT_DOUBLE_EQ(work.kv_bytes, (10.0 + 100) * 12 * 1536 * 4);
}

TEST(CostPlan, TakesTheLargerRoof) {
  CostOptions options = Options();
  const CostPoint memory = Point("mixtral-8x7b", options, 1);
  EXPECT_EQ(memory.bound, Roof::kMemory);
  EXPECT_DOUBLE_EQ(memory.step_seconds, memory.work.bytes() / 1e12);
  EXPECT_DOUBLE_EQ(memory.tokens_per_s, 1e12 / memory.work.bytes());
  options.flops = 1e12;
  const CostPoint compute = Point("mixtral-8x7b", options, 64);
  EXPECT_EQ(compute.bound, Roof::kCompute);
  EXPECT_DOUBLE_EQ(compute.step_seconds, compute.work.flops() / 1e12);
  EXPECT_DOUBLE_EQ(compute.tokens_per_s, 64 / compute.step_seconds);
  EXPECT_DOUBLE_EQ(compute.tokens_per_s_per_sequence, 1 / compute.step_seconds);
}

TEST(CostPlan, EfficiencyAndDevicesScaleBothRoofs) {
  CostOptions options = Options();
  const double alone = Point("mixtral-8x7b", options, 8).step_seconds;
  options.efficiency = 0.5;
  EXPECT_DOUBLE_EQ(Point("mixtral-8x7b", options, 8).step_seconds, 2 * alone);
  options.devices = 4;
  EXPECT_DOUBLE_EQ(Point("mixtral-8x7b", options, 8).step_seconds, alone / 2);
}

TEST(CostPlan, WorkersFollowTheRouter) {
  CostOptions options = Options();
  options.workers = 4;
  options.balancedness = 0.5;  // the slowest worker has half of all
  options.network = 1e9;
  options.latency_s = 1e-4;
  const CostPoint point = Point("mixtral-8x7b", options, 1);
  const StepWork& work = point.work;
  // Two draws of four workers hit 1.75; rows there, two rows back, in each of 32 layers.
  EXPECT_NEAR(work.exchange_bytes, 32 * (1.75 + 2) * 4096 * 4, 1e-3);
  EXPECT_NEAR(point.network_seconds, work.exchange_bytes / 1e9 + 32e-4, 1e-12);
  EXPECT_NEAR(point.step_seconds,
              (work.dense_bytes + work.kv_bytes) / 1e12 + work.expert_bytes / 2 / 1e12 + point.network_seconds, 1e-9);
  EXPECT_EQ(PaidDevices(options), 5);
  options.network = 1e6;
  EXPECT_EQ(Point("mixtral-8x7b", options, 1).bound, Roof::kNetwork);
}

TEST(CostPlan, PriceAndEnergyFollowFromTheTime) {
  CostOptions options = Options();
  options.price_per_hour = 3600;  // one a second
  options.watts = 500;
  options.devices = 2;
  const CostPoint point = Point("mixtral-8x7b", options, 8);
  EXPECT_NEAR(point.price_per_million_tokens, 2 * 1e6 * point.step_seconds / 8, 1e-6);
  EXPECT_NEAR(point.joules_per_token, 2 * 500 * point.step_seconds / 8, 1e-9);
}

TEST(CostPlan, BadOptionsAreNamed) {
  const auto error = [](auto change, std::vector<std::uint64_t> batches = {1}) {
    CostOptions options = Options();
    change(options);
    const ModelConfig config = BuiltIn("mixtral-8x7b");
    const auto points = PlanCost(config, Scheme("bf16", config), options, batches);
    return points.ok() ? std::string("no error") : points.status().message();
  };
  EXPECT_EQ(error([](auto&) {}, {1, 0}), "batch 0 is not in 1 … 1048576");
  EXPECT_THAT(error([](auto& o) { o.context = 0; }), HasSubstr("context 0"));
  EXPECT_THAT(error([](auto& o) { o.bandwidth = 0; }), HasSubstr("bandwidth 0"));
  EXPECT_THAT(error([](auto& o) { o.flops = 0; }), HasSubstr("flops 0"));
  EXPECT_THAT(error([](auto& o) { o.efficiency = 1.1; }), HasSubstr("efficiency 1.1"));
  EXPECT_THAT(error([](auto& o) { o.balancedness = 0; }), HasSubstr("balancedness 0"));
  EXPECT_THAT(error([](auto& o) { o.watts = -1; }), HasSubstr("watts -1"));
  EXPECT_THAT(error([](auto& o) {
                o.devices = 2;
                o.workers = 2;
              }),
              HasSubstr("exclude each other"));
}

TEST(CostReport, NamesEveryAssumption) {
  const NamedModel model = *OpenModel("mixtral-8x7b");
  const WeightScheme scheme = Scheme("bf16", model.config);
  CostOptions options = Options();
  options.price_per_hour = 2;
  const CostReport report{.model = model,
                          .scheme = scheme,
                          .options = options,
                          .device = "given by flags",
                          .device_source = "",
                          .points = {Point("mixtral-8x7b", options, 4)}};
  const auto json = nlohmann::json::parse(CostJson(report));
  for (const char* key : {"weight_type", "context", "kv_element_bytes", "bandwidth", "flops", "efficiency", "devices",
                          "workers", "balancedness", "network", "price_per_hour", "watts", "routing"})
    EXPECT_TRUE(json["assumptions"].contains(key)) << key;
  EXPECT_TRUE(json["assumptions"]["watts"].is_null());
  EXPECT_TRUE(json["batches"][0]["joules_per_token"].is_null());
  EXPECT_GT(json["batches"][0]["price_per_million_tokens"], 0);
  EXPECT_EQ(json["batches"][0]["bound"], "memory");
  EXPECT_THAT(CostText(report), HasSubstr("1000 GB/s, 1000 TFLOP/s"));
}

TEST(Devices, AreFoundOrListed) {
  EXPECT_EQ(FindDevice("h100-sxm")->memory_bytes, 80'000'000'000);
  EXPECT_THAT(FindDevice("h9").status().message(), HasSubstr("a100-80gb, h100-sxm"));
  EXPECT_GT(MachineMemoryBytes(), 1u << 28);
}

TEST(Compare, ShowsModelsSideBySide) {
  const CompareOptions options{.weight_types = {"bf16", "int4"}, .read_type = "bf16"};
  const Result<ComparedModel> mixtral = CompareModel(*OpenModel("mixtral-8x7b"), options);
  const Result<ComparedModel> oss = CompareModel(*OpenModel("gpt-oss-20b"), options);
  ASSERT_TRUE(mixtral.ok() && oss.ok());
  EXPECT_NEAR(mixtral->active_share(), 12'879'925'248.0 / 46'702'792'704.0, 1e-12);
  EXPECT_EQ(mixtral->weight_bytes[0], 93'408'215'040u);
  EXPECT_DOUBLE_EQ(mixtral->bytes_per_token[0], 2'951'766'016.0 + 22'548'578'304.0);
  EXPECT_EQ(mixtral->kv_bytes_per_token, 65536u * 4);
  EXPECT_EQ(oss->kv_bytes_per_token, 2 * oss->kv_bytes_per_late_token);
  const std::vector<ComparedModel> models = {*mixtral, *oss};
  const auto json = nlohmann::json::parse(CompareJson(models, options));
  EXPECT_EQ(json["models"][1]["name"], "gpt-oss-20b");
  EXPECT_EQ(json["models"][0]["weight_bytes"]["bf16"], 93'408'215'040);
  EXPECT_TRUE(json["models"][0]["weight_bytes_read_per_token"].contains("64"));
  EXPECT_THAT(CompareText(models, options), HasSubstr("46,702,792,704"));
  EXPECT_FALSE(CompareModel(*OpenModel("gpt2"), {.weight_types = {"int3"}}).ok());
  EXPECT_FALSE(CompareModel(*OpenModel("gpt2"), {.batches = {0}}).ok());
}

}  // namespace
}  // namespace moe
