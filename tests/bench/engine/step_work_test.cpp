#include "bench/engine/step_work.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "bench/engine/engine_run.h"
#include "core/text.h"
#include "model/weight_bytes.h"
#include "test_folders.h"

namespace moe {
namespace {

// Two sparse layers with 2 query heads and 1 KV head of 4 elements.
ModelConfig SmallModel(const std::string& window) {
  return *ParseModelConfig(Cat(R"({"model_type": "mixtral", "torch_dtype": "bfloat16", "hidden_size": 8,
      "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
      "intermediate_size": 6, "vocab_size": 100, "num_local_experts": 4, "num_experts_per_tok": 2,
      "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
      "sliding_window": )",
                               window, "}"),
                           "test");
}

// By layer: q and out (8, 8), k and v (4, 8); gate (4, 8); two norms of 8; an expert's three matrices of 6 × 8.
constexpr double kAttention = 64 + 64 + 32 + 32;
constexpr double kGate = 32;
constexpr double kNorms = 16;
constexpr double kExpert = 3 * 6 * 8;
constexpr double kFinalNorm = 8;
constexpr double kPosition = 2 * 4 * sizeof(float);  // of a layer's cache: a key and a value

constexpr RowRange kDecode{.first = 5, .rows = 1};
constexpr RowRange kPrefill{.first = 0, .rows = 3};

TEST(WorkMeter, TouchesDenseWeightsOnceAndEachDistinctExpertOnce) {
  const ModelConfig config = SmallModel("3");
  const std::vector<std::uint64_t> tokens = {4, 0, 3, 1, 0, 0, 8, 0};
  const Work work = WorkMeter(config, WeightType::kBf16, KvType::kF32)
                        .Of({.ranges = {kDecode, kPrefill}, .logit_rows = 1, .expert_tokens = tokens});
  EXPECT_EQ(work.steps, 1u);
  EXPECT_EQ(work.rows, 4u);
  EXPECT_EQ(work.distinct_experts, 4u);
  const double dense = 2 * (2 * kAttention + 4 * kGate + 4 * kNorms) + 4 * kFinalNorm;  // gates and norms in f32
  const double embedding = 4 * 8 * 2;
  const double head = 100 * 8 * 2;
  EXPECT_EQ(work.weight_bytes, dense + embedding + head + 4 * 2 * kExpert);
}

TEST(WorkMeter, WeighsBytesByTheTypeThatWeightsAreHeldIn) {
  const ModelConfig config = SmallModel("3");
  const std::vector<std::uint64_t> tokens = {1, 1, 0, 0, 0, 0, 0, 0};
  const StepShape step{.ranges = {kDecode}, .logit_rows = 1, .expert_tokens = tokens};
  const double narrow = WorkMeter(config, WeightType::kBf16, KvType::kF32).Of(step).weight_bytes;
  const double wide = WorkMeter(config, WeightType::kF32, KvType::kF32).Of(step).weight_bytes;
  EXPECT_EQ(wide - narrow, 2 * (2 * kAttention + 8 + 100 * 8 + 2 * kExpert));
}

TEST(WorkMeter, ReadsTheCacheOnceASequenceAndNotBeyondTheWindow) {
  const std::vector<std::uint64_t> tokens(8);
  const StepShape step{.ranges = {kDecode, kPrefill}, .expert_tokens = tokens};
  const ModelConfig everything = SmallModel("null");
  EXPECT_EQ(WorkMeter(everything, WeightType::kBf16, KvType::kF32).Of(step).kv_bytes, 2 * (6 + 3) * kPosition);
  const ModelConfig window = SmallModel("3");
  const Work work = WorkMeter(window, WeightType::kBf16, KvType::kF32).Of(step);
  EXPECT_EQ(work.kv_bytes, 2 * (3 + 3) * kPosition);
  EXPECT_EQ(work.bytes(), work.weight_bytes + work.kv_bytes);
}

TEST(WorkMeter, WeighsTheCacheByItsOwnType) {
  const ModelConfig config = SmallModel("null");
  const std::vector<std::uint64_t> nobody(8, 0);
  const StepShape step{.ranges = {{.first = 5, .rows = 1}}, .expert_tokens = nobody};
  const Work wide = WorkMeter(config, WeightType::kBf16, KvType::kF32).Of(step);
  const Work narrow = WorkMeter(config, WeightType::kBf16, KvType::kBf16).Of(step);
  EXPECT_EQ(2 * narrow.kv_bytes, wide.kv_bytes);
  EXPECT_EQ(narrow.weight_bytes, wide.weight_bytes);
}

TEST(WorkMeter, CountsTheOperationsThatAreDone) {
  const std::vector<std::uint64_t> tokens = {4, 0, 3, 1, 0, 0, 8, 0};
  const StepShape step{.ranges = {kDecode, kPrefill}, .logit_rows = 1, .expert_tokens = tokens};
  const double dense = 2.0 * 4 * (2 * (kAttention + kGate + kNorms) + kFinalNorm);
  const double head = 2.0 * 100 * 8;
  const double experts = 2.0 * 16 * kExpert;
  // Scores and sum over values: two heads of 4 elements, (row, position) pairs seen.
  const double a_pair = 2.0 * 2 * (4 + 4);
  const ModelConfig everything = SmallModel("null");
  EXPECT_EQ(WorkMeter(everything, WeightType::kBf16, KvType::kF32).Of(step).operations.fp32,
            dense + head + experts + 2 * (6 + 1 + 2 + 3) * a_pair);
  const ModelConfig window = SmallModel("3");
  EXPECT_EQ(WorkMeter(window, WeightType::kBf16, KvType::kF32).Of(step).operations.fp32,
            dense + head + experts + 2 * (3 + 1 + 2 + 3) * a_pair);
}

TEST(WorkMeter, TellsIntegersFromFloats) {
  const std::vector<std::uint64_t> tokens = {4, 0, 3, 1, 0, 0, 8, 0};
  const StepShape step{.ranges = {kDecode, kPrefill}, .logit_rows = 1, .expert_tokens = tokens};
  const ModelConfig config = SmallModel("null");
  const double all = WorkMeter(config, WeightType::kF32, KvType::kF32).Of(step).operations.fp32;
  const double experts = 2.0 * 16 * kExpert;
  const Operations int8 = WorkMeter(config, WeightType::kInt8, KvType::kF32).Of(step).operations;
  EXPECT_EQ(int8.int8, experts + 2.0 * 4 * 2 * kAttention + 2.0 * 100 * 8);
  EXPECT_EQ(int8.total(), all) << "gates, norms, scores and sums over values stay fp32";
  WeightTypes narrow_experts = WeightType::kInt4;
  narrow_experts.attention = WeightType::kBf16;
  const Operations int4 = WorkMeter(config, narrow_experts, KvType::kF32).Of(step).operations;
  EXPECT_EQ(int4.int8, experts);
  EXPECT_EQ(int4.total(), all);
}

TEST(WorkMeter, LeavesTheHeadOutWhereNobodyWantsLogits) {
  const ModelConfig config = SmallModel("3");
  const WorkMeter meter(config, WeightType::kBf16, KvType::kF32);
  const std::vector<std::uint64_t> tokens(8);
  const StepShape without{.ranges = {{.first = 0, .rows = 2}}, .expert_tokens = tokens};
  StepShape with = without;
  with.logit_rows = 2;
  EXPECT_EQ(meter.Of(with).weight_bytes - meter.Of(without).weight_bytes, 100 * 8 * 2);
  EXPECT_EQ(meter.Of(with).operations.fp32 - meter.Of(without).operations.fp32, 2.0 * 2 * 100 * 8);
}

TEST(WorkMeter, TouchesOnlyTheStackThatRan) {
  const ModelConfig config = *ReadModelConfig(std::filesystem::path(MOE_SOURCE_DIR) / "tests/goldens/switch_base");
  const WorkMeter meter(config, WeightType::kF32, KvType::kF32);
  const std::vector<std::uint64_t> tokens(config.sparse_layers().size() *
                                          static_cast<std::size_t>(config.num_experts()));
  const Work encode = meter.Of({.ranges = {{.rows = 3, .encode = true}}, .expert_tokens = tokens});
  const Work decode = meter.Of({.ranges = {{.first = 4, .rows = 1, .source = 3}}, .expert_tokens = tokens});
  const double row = config.hidden * 4.0;
  const double tables = 2 * config.vocab_size * row;  // embedding and, tied, once more as the head
  const double dense = static_cast<double>(DenseBytes(config, WeightType::kF32));
  EXPECT_EQ(encode.weight_bytes + decode.weight_bytes, dense - tables + 4 * row);
  EXPECT_GT(encode.weight_bytes, 0.2 * dense - tables);
  // Every encoder row sees all of the source; a decoder row sees its own past and the source.
  const int width = config.layers.front().attention.num_heads * config.layers.front().attention.head_dim;
  const double position = 2.0 * width * 4;
  const int decoder_layers = config.num_layers() - config.encoder_layers;
  EXPECT_EQ(encode.kv_bytes, config.encoder_layers * 3 * position);
  EXPECT_EQ(decode.kv_bytes, decoder_layers * (5 + 3) * position);
}

TEST(AttentionOperations, OfALatentAreAsWideAsTheLatent) {
  const AttentionSpec latent{.num_heads = 3,
                             .num_kv_heads = 1,
                             .head_dim = 5,
                             .latent = LatentSpec{.kv_rank = 6, .nope_dim = 3, .rope_dim = 2, .value_dim = 4}};
  const RowRange range{.first = 4, .rows = 2};
  EXPECT_EQ(KvBytesRead(latent, KvType::kF32, range), 6 * (6 + 2) * 4);
  EXPECT_EQ(AttentionOperations(latent, range), 2.0 * (5 + 6) * 3 * ((6 + 2) + 6));
}

TEST(AttentionOperations, EndWithAChunkAndSeeAllWithoutACause) {
  const AttentionSpec chunked{.num_heads = 1, .num_kv_heads = 1, .head_dim = 1, .chunk = 4};
  EXPECT_EQ(KvBytesRead(chunked, KvType::kF32, {.first = 5, .rows = 2}), 3 * 2 * 4);
  EXPECT_EQ(AttentionOperations(chunked, {.first = 5, .rows = 2}), 2.0 * (2 + 3) * 2);
  const AttentionSpec both_ways{.num_heads = 1, .num_kv_heads = 1, .head_dim = 1, .causal = false};
  EXPECT_EQ(AttentionOperations(both_ways, {.first = 0, .rows = 3}), 2.0 * (3 * 3) * 2);
}

TEST(Work, AddsUp) {
  const Work one{.steps = 1,
                 .rows = 2,
                 .weight_bytes = 3,
                 .kv_bytes = 4,
                 .operations = {.fp32 = 5, .int8 = 7},
                 .distinct_experts = 6};
  Work sum = one;
  sum += one;
  EXPECT_EQ(sum.steps, 2u);
  EXPECT_EQ(sum.rows, 4u);
  EXPECT_EQ(sum.bytes(), 14);
  EXPECT_EQ(sum.operations.fp32, 10);
  EXPECT_EQ(sum.operations.int8, 14);
  EXPECT_EQ(sum.distinct_experts, 12u);
}

TEST(ShapeOf, SeesWhichChunksWentThroughTheHead) {
  const ModelConfig config = SmallModel("3");
  const auto sequence = [&](std::size_t prompt, std::size_t generated, std::size_t computed) {
    std::unique_ptr<Sequence> made =
        MakeSequence({.prompt = std::vector<std::uint32_t>(prompt), .max_new_tokens = 9}, config);
    made->tokens.resize(prompt + generated);
    made->computed = computed;
    return made;
  };
  const auto decoding = sequence(3, 2, 4);     // 4 known were computed, and a fifth came
  const auto prefilled = sequence(5, 1, 5);    // the last two of the prompt
  const auto one_is_left = sequence(7, 0, 6);  // of its prompt: nothing came
  const auto encoding = sequence(1, 0, 0);
  const std::vector<Chunk> chunks = {{.sequence = encoding.get(), .tokens = 8, .encode = true},
                                     {.sequence = decoding.get(), .tokens = 1},
                                     {.sequence = prefilled.get(), .tokens = 2},
                                     {.sequence = one_is_left.get(), .tokens = 4}};
  const StepShape shape = ShapeOf(chunks, {});
  EXPECT_EQ(shape.logit_rows, 2u);
  EXPECT_EQ(shape.rows(), 15u);
  ASSERT_EQ(shape.ranges.size(), 4u);
  EXPECT_TRUE(shape.ranges[0].encode);
  EXPECT_EQ(shape.ranges[0].first, 0u);
  EXPECT_EQ(shape.ranges[1].first, 3u);
  EXPECT_EQ(shape.ranges[2].first, 3u);
  EXPECT_EQ(shape.ranges[3].first, 2u);
}

}  // namespace
}  // namespace moe
