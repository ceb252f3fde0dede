// Bytes of weights, of keys and values and of buffers, against figures worked out by hand and against the engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bench/plan/activations.h"
#include "bench/plan/kv_storage.h"
#include "model/kv_cache.h"
#include "model/weight_bytes.h"
#include "router/expert_exchange.h"
#include "tests/bench/plan_models.h"

namespace moe {
namespace {

using testing::HasSubstr;

constexpr std::uint64_t kMixtralMatrices = 46'701'477'888;  // all but 266,240 of norms and 1,048,576 of routers
constexpr std::uint64_t kMixtralSmall = 4 * (266'240 + 1'048'576);
constexpr std::uint64_t kMixtralExperts = 45'097'156'608;

TEST(WeightBytes, OfMixtralByType) {
  EXPECT_EQ(BytesAs("f32", "mixtral-8x7b").total, 4u * 46'702'792'704);
  EXPECT_EQ(BytesAs("bf16", "mixtral-8x7b").total, 2 * kMixtralMatrices + kMixtralSmall);
  EXPECT_EQ(BytesAs("f16", "mixtral-8x7b").total, 2 * kMixtralMatrices + kMixtralSmall);
  EXPECT_EQ(BytesAs("stored", "mixtral-8x7b").total, 2 * kMixtralMatrices + kMixtralSmall);
  EXPECT_EQ(BytesAs("bf16", "mixtral-8x7b").experts(), 2 * kMixtralExperts);
}

TEST(WeightBytes, Int8HasAScaleForEachGroupOf64AndTheEmbeddingInBf16) {
  const std::uint64_t table = 32000 * 4096;
  const WeightBytes bytes = BytesAs("int8", "mixtral-8x7b");
  EXPECT_EQ(bytes.scales, 2 * (kMixtralMatrices - table) / 64);
  EXPECT_EQ(bytes.total, kMixtralMatrices - table + bytes.scales + 2 * table + kMixtralSmall);
}

TEST(WeightBytes, Int4IsForMlpsAndLeavesAttentionAndHeadInInt8) {
  const std::uint64_t table = 32000 * 4096;
  const std::uint64_t attention = std::uint64_t{32} * 4096 * (2 * 4096 + 2 * 1024);
  const WeightBytes bytes = BytesAs("int4", "mixtral-8x7b");
  EXPECT_EQ(bytes.experts(), kMixtralExperts / 2 + 2 * kMixtralExperts / 32);
  EXPECT_EQ(bytes.dense, (attention + table) / 64 * 66 + 2 * table + kMixtralSmall);
  EXPECT_EQ(bytes.scales, 2 * kMixtralExperts / 32 + 2 * (attention + table) / 64);
}

TEST(WeightBytes, AttentionMayBeOfATypeOfItsOwn) {
  const ModelConfig config = BuiltIn("mixtral-8x7b");
  const auto bytes = [&](std::string_view type, std::optional<WeightType> attention) {
    return CountWeightBytes(config, Scheme(type, config, attention));
  };
  EXPECT_EQ(bytes("int4", WeightType::kInt8).total, bytes("int4", std::nullopt).total);
  EXPECT_EQ(bytes("int4", WeightType::kBf16).experts(), bytes("int4", std::nullopt).experts());
  EXPECT_EQ(bytes("int4", WeightType::kBf16).dense, bytes("bf16", std::nullopt).dense);
  for (const char* checkpoint : {"stored", "mxfp4", "fp8"})
    EXPECT_EQ(bytes(checkpoint, WeightType::kF32).total, bytes(checkpoint, std::nullopt).total) << checkpoint;
}

// What the engine holds for the same type, by the function that its own checks and its benchmark's figures are from.
TEST(WeightBytes, AreTheEnginesForEveryModelAndType) {
  for (const PublishedModel& model : PublishedModels()) {
    const ModelConfig config = BuiltIn(std::string(model.name));
    if (!config.servable) continue;
    for (const WeightType type :
         {WeightType::kF32, WeightType::kBf16, WeightType::kF16, WeightType::kInt8, WeightType::kInt4}) {
      const WeightBytes bytes = CountWeightBytes(config, Scheme(Name(type), config));
      EXPECT_EQ(bytes.dense + bytes.tied_head_copy, DenseBytes(config, type)) << model.name << " " << Name(type);
      for (const int layer : config.sparse_layers())
        EXPECT_EQ(bytes.expert_each[static_cast<std::size_t>(layer)], ExpertBytes(config, layer, type))
            << model.name << " " << Name(type);
    }
  }
}

TEST(WeightBytes, RaggedBlocksAndOddRowsAreRoundedUp) {
  const BlockFormat format{.bits = 4, .group = 32, .scale_bytes = 2};
  EXPECT_EQ(format.ValueBytes(3, 33), 3u * 17);
  EXPECT_EQ(format.ScaleBytes(3, 33), 3u * 2 * 2);
  const BlockFormat blocks{.bits = 8, .group = 128, .block_rows = 128, .scale_bytes = 4};
  EXPECT_EQ(blocks.ScaleBytes(576, 7168), 5u * 56 * 4);
}

TEST(WeightScheme, SaysWhatIsHeldInWhat) {
  const ModelConfig config = BuiltIn("gpt-oss-20b");
  EXPECT_EQ(Describe(Scheme("int4", config)),
            "experts and other MLPs int4, attention and head int8, embedding bf16; gates, norms and biases f32");
  EXPECT_EQ(Describe(Scheme("int8", config, WeightType::kF32)),
            "experts and other MLPs int8, attention and head f32, embedding f32; gates, norms and biases f32");
  EXPECT_EQ(Describe(Scheme("stored", config)),
            "routed experts in MXFP4 blocks, other matrices bf16; gates, norms and biases f32");
}

TEST(WeightBytes, Mxfp4IsForExperts) {
  EXPECT_EQ(BytesAs("mxfp4", "mixtral-8x7b").total,
            kMixtralExperts / 2 + kMixtralExperts / 32 + 2 * (kMixtralMatrices - kMixtralExperts) + kMixtralSmall);
  // gpt-oss-20b: 24 layers of 32 experts of 3 · 2880 · 2880 in blocks of 32.
  EXPECT_EQ(BytesAs("stored", "gpt-oss-20b").scales, std::uint64_t{24} * 32 * 3 * 2880 * 2880 / 32);
}

TEST(WeightBytes, DeepSeekV3IsStoredInFp8Blocks) {
  const WeightBytes bytes = BytesAs("stored", "deepseek-v3");
  EXPECT_EQ(bytes.scales, 4u * 40'838'232);  // the published 41,540,496 less the prediction layer's 702,264
  EXPECT_EQ(bytes.by_part[static_cast<std::size_t>(ModelPart::kHead)], 2u * 129280 * 7168);
  EXPECT_EQ(bytes.expert_each[0], 0u);
  EXPECT_EQ(bytes.expert_each[3], 44'040'192u + 3 * 16 * 56 * 4);
}

TEST(WeightBytes, GatesStayF32) {
  // Qwen1.5-MoE: norms and biases, routers of 60 experts, and the gate of the shared expert, in 24 layers of 2048.
  const std::uint64_t small = 49 * 2048 + 24 * 3 * 2048 + 24 * 61 * 2048;
  EXPECT_EQ(BytesAs("bf16", "qwen1.5-moe-a2.7b").total, 2 * std::uint64_t{14'315'784'192} + 2 * small);
}

TEST(WeightBytes, ATiedTableIsCountedOnceAndItsCopyApart) {
  const WeightBytes bytes = BytesAs("bf16", "llama-3.2-1b");
  EXPECT_EQ(bytes.tied_head_copy, 2u * 128256 * 2048);
  EXPECT_EQ(bytes.total, 2u * (1'235'814'400 - 33 * 2048) + 4 * 33 * 2048);
  EXPECT_EQ(BytesAs("bf16", "llama-3-8b").tied_head_copy, 0u);
  const WeightBytes int8 = BytesAs("int8", "llama-3.2-1b");
  EXPECT_EQ(int8.by_part[static_cast<std::size_t>(ModelPart::kEmbedding)], 2u * 128256 * 2048) << "rows to look up";
  EXPECT_EQ(int8.tied_head_copy, 128256u * 2048 / 64 * 66) << "panels to multiply";
}

TEST(WeightBytes, AnUnknownTypeListsThoseThatThereAre) {
  const Result<WeightScheme> scheme = MakeWeightScheme("int3", BuiltIn("gpt2"), {});
  EXPECT_EQ(scheme.status().message(),
            "weight type \"int3\" is unknown (stored, f32, bf16, f16, int8, int4, mxfp4, fp8)");
}

TEST(KvStorage, ElementsOfAToken) {
  EXPECT_EQ(KvElementsPerToken(BuiltIn("mixtral-8x7b")), 32u * 2 * 8 * 128);
  EXPECT_EQ(KvElementsPerToken(BuiltIn("deepseek-v3")), 61u * 576);  // the latent and one rotated key
  EXPECT_EQ(KvElementsPerToken(BuiltIn("gpt-oss-120b")), 36u * 2 * 8 * 64);
  EXPECT_EQ(KvElementsPerLateToken(BuiltIn("gpt-oss-120b")), 18u * 2 * 8 * 64);
  EXPECT_EQ(KvElementsPerToken(BuiltIn("switch-base-8")), 12u * 2 * 12 * 64);
  EXPECT_EQ(KvElementsPerLateToken(BuiltIn("llama-4-scout")), 12u * 2 * 8 * 128);  // every fourth layer sees all
}

TEST(KvStorage, AWindowKeepsItselfAndAChunk) {
  const KvShape shape{
      .context = 131072, .batch = 2, .prefill_chunk = 512, .step_tokens = 512, .page_tokens = 32, .element_bytes = 2};
  const Result<KvBytes> bytes = CountKvBytes(BuiltIn("gpt-oss-120b"), shape);
  ASSERT_TRUE(bytes.ok());
  ASSERT_EQ(bytes->uses.size(), 2u);
  EXPECT_EQ(bytes->uses[0].positions, 2u * 131072);
  EXPECT_EQ(bytes->uses[1].positions, 2u * (20 + 1) * 32);  // 127 + 512 positions take 20 pages, 21 if they straddle
  EXPECT_EQ(bytes->uses[1].bytes, 2u * 672 * 18 * 1024 * 2);
  EXPECT_EQ(bytes->total, bytes->uses[0].bytes + bytes->uses[1].bytes);
}

TEST(KvStorage, AWindowInPagesOfOneKeepsItselfAndOne) {
  const Result<KvBytes> bytes = CountKvBytes(BuiltIn("gpt-oss-120b"), {.context = 1000});
  ASSERT_TRUE(bytes.ok());
  EXPECT_EQ(bytes->uses[1].positions, 128u + 1);
}

TEST(KvStorage, AShortContextFillsNoWindow) {
  const Result<KvBytes> bytes =
      CountKvBytes(BuiltIn("gpt-oss-120b"), {.context = 100, .prefill_chunk = 512, .page_tokens = 32});
  ASSERT_TRUE(bytes.ok());
  EXPECT_EQ(bytes->uses[1].positions, 128u);
}

TEST(KvStorage, AnEncoderDecoderKeepsBothSides) {
  const Result<KvBytes> bytes =
      CountKvBytes(BuiltIn("switch-base-8"),
                   {.context = 64, .batch = 3, .encoder_tokens = 96, .step_tokens = 512, .page_tokens = 32});
  ASSERT_TRUE(bytes.ok());
  ASSERT_EQ(bytes->uses.size(), 3u);
  EXPECT_EQ(bytes->uses[0].bytes, 3u * 64 * 12 * 1536 * 4);
  EXPECT_EQ(bytes->uses[1].bytes, 3u * 96 * 12 * 1536 * 4);     // cross attention
  EXPECT_EQ(bytes->uses[2].bytes, (512u + 3 * 32) * 1536 * 4);  // the encoder's layers share
}

// What the engine would allocate for the same limits.
TEST(KvStorage, AgreesWithTheEngineForEveryModel) {
  for (const PublishedModel& model : PublishedModels()) {
    const ModelConfig config = BuiltIn(std::string(model.name));
    if (!config.servable) continue;
    for (const std::uint64_t context : {32u, 4096u, 65536u}) {
      const KvShape shape{.context = context,
                          .batch = 5,
                          .encoder_tokens = context,
                          .prefill_chunk = 256,
                          .step_tokens = 512,
                          .page_tokens = kPageTokens};
      const KvPlan plan =
          PlanKv(config, {.tokens = 5 * context, .max_sequences = 5, .max_step_tokens = 512, .max_chunk = 256});
      EXPECT_EQ(CountKvBytes(config, shape)->total, plan.bytes) << model.name << " " << context;
    }
  }
}

TEST(KvStorage, MoreThan63BitsIsAnError) {
  const Result<KvBytes> bytes =
      CountKvBytes(BuiltIn("mixtral-8x7b"), {.context = std::uint64_t{1} << 40, .batch = 1 << 20});
  ASSERT_FALSE(bytes.ok());
  EXPECT_THAT(bytes.status().message(), HasSubstr("1048576 sequences of 1099511627776 positions"));
}

TEST(Activations, OfMixtral) {
  const ModelConfig config = BuiltIn("mixtral-8x7b");
  const std::uint64_t row = 512 * 4;
  EXPECT_EQ(SumOf(RouterBuffers(config, {.max_step_tokens = 512})),
            row * (3 * 4096 + 6144 + 4096 + 0 + 8 + 128) + 64u * 4 * (4096 + 32000));
  EXPECT_EQ(SumOf(WorkerBuffers(config, {.max_step_tokens = 512})), 2 * row * (2 * 4096 + 2 * 14336));
}

TEST(Activations, OfDeepSeekV3HaveALatentAndSharedExperts) {
  const ModelConfig config = BuiltIn("deepseek-v3");
  const std::uint64_t row = 4;  // a step of one token
  EXPECT_EQ(SumOf(RouterBuffers(config, {.max_step_tokens = 1})),
            row * (3 * 7168 + (1536 + 576) + 128 * 128 + 128 * 192 + 2 * 18432 + 256 + 64) + 4u * (7168 + 129280));
}

TEST(Activations, ExchangeIsWhatTheTransportIsGiven) {
  const ModelConfig config = BuiltIn("olmoe-1b-7b");
  for (const ExchangeType type : {ExchangeType::kF32, ExchangeType::kBf16}) {
    const TransportLimits limits = ExpertExchange::Limits(
        {.max_tokens = 512, .hidden = 2048, .num_experts = 64, .experts_per_token = 8, .type = type});
    const Result<std::uint64_t> bytes = ExchangeBytes(config, {.max_step_tokens = 512, .exchange_type = type});
    EXPECT_EQ(*bytes, limits.max_request_bytes + limits.max_reply_bytes);
  }
  EXPECT_EQ(*ExchangeBytes(BuiltIn("llama-2-7b"), {}), 0u);
}

}  // namespace
}  // namespace moe
