#include "model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "core/text.h"
#include "model/parameter_count.h"
#include "tests/model/small_model.h"
#include "tests/model/stored_values.h"

namespace moe {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Real checkpoints.

TEST(LoadDenseWeights, CountsWhatItHolds) {
  const Opened model = OpenModel(InRepository("models/eight-languages-moe"));
  const DenseWeights weights = LoadDense(model, WeightType::kBf16);
  const ParameterCount count = CountParameters(model.config);
  EXPECT_EQ(weights.parameters, count.dense());
  // Every row count is a multiple of 16 here, so that panels have no padding; gates and norms are held in fp32.
  const std::uint64_t in_f32 = count.part(ModelPart::kRouter) + count.part(ModelPart::kNorms);
  const std::uint64_t router_padding = 4 * 8 * 128 * 4;  // 8 experts fill half of a panel, in 4 layers
  EXPECT_EQ(weights.bytes, 2 * (count.dense() - in_f32) + 4 * in_f32 + router_padding);
}

TEST(LoadDenseWeights, CountsATiedTableTwiceInBytes) {
  const Opened model = OpenModel(InRepository("tests/goldens/qwen3"));
  const DenseWeights weights = LoadDense(model, WeightType::kBf16);
  EXPECT_EQ(weights.parameters, CountParameters(model.config).total) << "once in parameters";
  EXPECT_EQ(weights.embedding.size(), std::size_t{2} * 236 * 80);
  EXPECT_EQ(weights.head.rows() * weights.head.cols(), std::size_t{236} * 80);
  EXPECT_GT(weights.bytes, 2 * (weights.parameters + 236 * 80));
}

TEST(LoadDenseWeights, LeavesExpertsAlone) {
  const Opened model = OpenModel(InRepository("tests/goldens/mixtral"));
  (void)LoadDense(model, WeightType::kF32);
  EXPECT_EQ(model.checkpoint.mapped_bytes(), 4 * CountParameters(model.config).dense());
}

TEST(LoadDenseWeights, DoesNotDependOnThreads) {
  const Opened model = OpenModel(InRepository("tests/goldens/llama"));
  const DenseWeights one = LoadDense(model, WeightType::kBf16, 1);
  const DenseWeights four = LoadDense(model, WeightType::kBf16, 4);
  EXPECT_EQ(one.embedding, four.embedding);
  for (std::size_t i = 0; i < one.layers.size(); ++i) {
    EXPECT_EQ(Unpack(one.layers[i].attention.projection), Unpack(four.layers[i].attention.projection));
    EXPECT_EQ(Unpack(one.layers[i].mlp.up), Unpack(four.layers[i].mlp.up));
  }
}

TEST(LoadExpertWeights, MapsThatExpertOnly) {
  const Opened model = OpenModel(InRepository("models/eight-languages-moe"));
  // 3 matrices of 128 x 256 in bf16.
  ASSERT_TRUE(LoadExpertWeights(model.config, model.checkpoint, 3, 7, WeightType::kF32).ok());
  EXPECT_EQ(model.checkpoint.mapped_bytes(), 3u * 128 * 256 * 2);
  ASSERT_TRUE(LoadExpertWeights(model.config, model.checkpoint, 0, 2, WeightType::kF32).ok());
  EXPECT_EQ(model.checkpoint.mapped_bytes(), 2u * 3 * 128 * 256 * 2);
}

TEST(LoadExpertWeights, RunsOnSeveralThreads) {
  const Opened model = OpenModel(InRepository("tests/goldens/mixtral"));
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int expert = 0; expert < 4; ++expert) {
    threads.emplace_back([&, expert] {
      for (const int layer : model.config.sparse_layers()) {
        EXPECT_TRUE(LoadExpertWeights(model.config, model.checkpoint, layer, expert, WeightType::kBf16).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(model.checkpoint.mapped_bytes(), 4u * 3 * 3 * 44 * 56 * 4);
}

TEST(LoadExpertWeights, RefusesWhatTheModelDoesNotHave) {
  const Opened sparse = OpenModel(InRepository("tests/goldens/mixtral"));
  const Opened dense = OpenModel(InRepository("tests/goldens/llama"));
  const auto error = [](const Opened& model, int layer, int expert) {
    return LoadExpertWeights(model.config, model.checkpoint, layer, expert, WeightType::kF32).status().message();
  };
  EXPECT_EQ(error(sparse, 0, 6), "expert 6 is not one of the 6 experts of layer 0");
  EXPECT_EQ(error(sparse, 0, -1), "expert -1 is not one of the 6 experts of layer 0");
  EXPECT_EQ(error(sparse, 3, 0), "layer 3 is not a sparse layer of the model");
  EXPECT_EQ(error(dense, 0, 0), "layer 0 is not a sparse layer of the model");
}

// Small models made here.

TEST(LoadDenseWeights, LoadsBiases) {
  const SmallModel files = SmallModel::Llama({{"attention_bias", true}, {"mlp_bias", true}});
  const DenseWeights weights = LoadDense(files.Open(), WeightType::kF32);
  const std::string attention = "model.layers.0.self_attn.";
  const std::string mlp = "model.layers.0.mlp.";
  const LayerWeights& layer = weights.layers[0];
  EXPECT_EQ(layer.attention.projection_bias.size(), 8u);
  EXPECT_EQ(
      layer.attention.projection_bias,
      StoredValues(files.folder(), {attention + "q_proj.bias", attention + "k_proj.bias", attention + "v_proj.bias"}));
  EXPECT_EQ(layer.attention.out_bias, StoredValues(files.folder(), attention + "o_proj.bias"));
  EXPECT_EQ(layer.mlp.gate_bias, StoredValues(files.folder(), mlp + "gate_proj.bias"));
  EXPECT_EQ(layer.mlp.up_bias, StoredValues(files.folder(), mlp + "up_proj.bias"));
  EXPECT_EQ(layer.mlp.down_bias, StoredValues(files.folder(), mlp + "down_proj.bias"));
  EXPECT_EQ(layer.mlp.parameters(), 3u * 3 * 4 + 2 * 3 + 4);
}

TEST(LoadDenseWeights, NarrowsToNearestEvenAndWidensExactly) {
  SmallModel files = SmallModel::Llama({{"tie_word_embeddings", true}});
  // bf16 keeps 8 bits: 257 is halfway between 256 and 258, 259 between 258 and 260; f16 keeps 11.
  const std::vector<float> values = {257, 259, -257, 2049, 2051, 1.00390625f, 1.001f, 0.1f};
  std::vector<float> table(24, 1.0f);
  std::ranges::copy(values, table.begin());
  files.At("model.embed_tokens.weight").bytes = F32Bytes(table);
  const Opened model = files.Open();
  const auto first = [](std::vector<float> all) { return std::vector<float>(all.begin(), all.begin() + 8); };

  const std::vector<float> bf16 = {256, 260, -256, 2048, 2048, 1.0f, 1.0f, 0.10009765625f};
  EXPECT_EQ(first(EmbeddingOf(LoadDense(model, WeightType::kBf16))), bf16);
  EXPECT_EQ(first(Unpack(LoadDense(model, WeightType::kBf16).head)), bf16);
  const std::vector<float> f16 = {257, 259, -257, 2048, 2052, 1.00390625f, 1.0009765625f, 0.0999755859375f};
  EXPECT_EQ(first(EmbeddingOf(LoadDense(model, WeightType::kF16))), f16);
  EXPECT_EQ(first(Unpack(LoadDense(model, WeightType::kF16).head)), f16);
  EXPECT_EQ(EmbeddingOf(LoadDense(model, WeightType::kF32)), table);
}

TEST(LoadDenseWeights, WidensStoredHalves) {
  const std::filesystem::path folder = InRepository("tests/goldens/llama");  // F16
  const DenseWeights weights = LoadDense(OpenModel(folder), WeightType::kF32);
  EXPECT_EQ(EmbeddingOf(weights), StoredValues(folder, "model.embed_tokens.weight"));
  EXPECT_EQ(Unpack(weights.head), StoredValues(folder, "lm_head.weight"));
}

TEST(LoadDenseWeights, KeepsGatesAndNormsInFp32) {
  const SmallModel files = SmallModel::Mixtral();
  Opened model = files.Open();
  const DenseWeights weights = LoadDense(model, WeightType::kBf16);
  EXPECT_EQ(weights.layers[0].gate.type(), WeightType::kF32);
  EXPECT_EQ(Unpack(weights.layers[0].gate),
            StoredValues(files.folder(), "model.layers.0.block_sparse_moe.gate.weight"));
  EXPECT_EQ(weights.layers[0].ffn_norm, StoredValues(files.folder(), "model.layers.0.post_attention_layernorm.weight"));
  EXPECT_EQ(weights.layers[0].attention.projection.type(), WeightType::kBf16);
}

TEST(LoadDenseWeights, ChecksAllTensorsFirst) {
  SmallModel files = SmallModel::Mixtral();
  files.Remove("model.layers.0.block_sparse_moe.experts.2.w2.weight");
  const Opened model = files.Open();
  ThreadPool pool(1);
  const Status status = LoadDenseWeights(model.config, model.checkpoint, WeightType::kF32, pool).status();
  EXPECT_EQ(status.message(), "tensor model.layers.0.block_sparse_moe.experts.2.w2.weight is missing");
  EXPECT_EQ(model.checkpoint.mapped_bytes(), 0u);
}

TEST(LoadExpertWeights, ChecksItsTensors) {
  SmallModel files = SmallModel::Mixtral();
  files.Remove("model.layers.0.block_sparse_moe.experts.2.w2.weight");
  files.At("model.layers.0.block_sparse_moe.experts.1.w3.weight").shape = {4, 3};
  files.At("model.layers.0.block_sparse_moe.experts.0.w1.weight").dtype = "I32";
  const Opened model = files.Open();
  const auto error = [&](int expert) {
    return LoadExpertWeights(model.config, model.checkpoint, 0, expert, WeightType::kF32).status().message();
  };
  EXPECT_EQ(error(2), "tensor model.layers.0.block_sparse_moe.experts.2.w2.weight is missing");
  EXPECT_THAT(error(1), HasSubstr("experts.1.w3.weight has shape (4, 3), but config.json describes (3, 4)"));
  EXPECT_THAT(error(0), HasSubstr("experts.0.w1.weight has dtype I32, not F32, BF16 or F16"));
}

// Latent attention.

/// Values of a small model's tensor.
std::vector<float> Stored(const SmallModel& files, const std::string& name) {
  return StoredValues(files.folder(), name);
}

const std::string kSelf = "model.layers.0.self_attn.";

TEST(LoadDenseWeights, SplitsTheUpProjectionOfTheLatentByHeads) {
  const SmallModel files = SmallModel::Like("deepseek_v2", {{"num_hidden_layers", 1}});
  const Opened model = files.Open();
  const AttentionSpec& spec = model.config.layers[0].attention;
  const auto rank = static_cast<std::size_t>(spec.latent->kv_rank);
  const auto nope = static_cast<std::size_t>(spec.latent->nope_dim);
  const auto value = static_cast<std::size_t>(spec.latent->value_dim);
  const DenseWeights weights = LoadDense(model, WeightType::kF32);
  const AttentionWeights& attention = weights.layers[0].attention;
  const std::vector<float> kv_b = Stored(files, kSelf + "kv_b_proj.weight");  // (heads * (nope + value), rank)
  ASSERT_EQ(attention.key_up.size(), static_cast<std::size_t>(spec.num_heads));
  ASSERT_EQ(attention.value_up.size(), attention.key_up.size());
  for (std::size_t head = 0; head < attention.key_up.size(); ++head) {
    const auto at = [&](std::size_t row, std::size_t col) { return kv_b[(head * (nope + value) + row) * rank + col]; };
    std::vector<float> keys;
    for (std::size_t col = 0; col < rank; ++col)
      for (std::size_t row = 0; row < nope; ++row) keys.push_back(at(row, col));
    EXPECT_EQ(Unpack(attention.key_up[head]), keys) << "transposed";
    std::vector<float> values;
    for (std::size_t row = nope; row < nope + value; ++row)
      for (std::size_t col = 0; col < rank; ++col) values.push_back(at(row, col));
    EXPECT_EQ(Unpack(attention.value_up[head]), values);
  }
}

// Without a low rank of the queries, attention_bias is of kv_a_proj_with_mqa and o_proj alone.
TEST(LoadDenseWeights, FillsBiasesWithZerosWhereAPartHasNone) {
  const SmallModel files = SmallModel::Like("deepseek_v2", {{"num_hidden_layers", 1}, {"attention_bias", true}});
  ASSERT_FALSE(files.Has(kSelf + "q_proj.bias"));
  const Opened model = files.Open();
  const AttentionSpec& spec = model.config.layers[0].attention;
  const DenseWeights weights = LoadDense(model, WeightType::kF32);
  const AttentionWeights& attention = weights.layers[0].attention;
  const auto queries = static_cast<std::ptrdiff_t>(spec.num_heads * spec.head_dim);
  ASSERT_EQ(attention.projection_bias.size(), static_cast<std::size_t>(spec.projected_width()));
  const auto split = attention.projection_bias.begin() + queries;
  EXPECT_THAT(std::vector<float>(attention.projection_bias.begin(), split), Each(0.0f));
  EXPECT_EQ(std::vector<float>(split, attention.projection_bias.end()),
            Stored(files, kSelf + "kv_a_proj_with_mqa.bias"));
  EXPECT_EQ(attention.out_bias, Stored(files, kSelf + "o_proj.bias"));
  EXPECT_EQ(Unpack(attention.projection),
            StoredValues(files.folder(), {kSelf + "q_proj.weight", kSelf + "kv_a_proj_with_mqa.weight"}));
}

TEST(LoadDenseWeights, JoinsTheLowRanksOfQueriesAndKeys) {
  const SmallModel files =
      SmallModel::Like("deepseek_v2_grouped", {{"num_hidden_layers", 1}, {"attention_bias", true}});
  const DenseWeights weights = LoadDense(files.Open(), WeightType::kF32);
  const AttentionWeights& attention = weights.layers[0].attention;
  EXPECT_EQ(Unpack(attention.projection),
            StoredValues(files.folder(), {kSelf + "q_a_proj.weight", kSelf + "kv_a_proj_with_mqa.weight"}));
  EXPECT_EQ(attention.projection_bias,
            StoredValues(files.folder(), {kSelf + "q_a_proj.bias", kSelf + "kv_a_proj_with_mqa.bias"}));
  EXPECT_EQ(attention.query_down_norm, Stored(files, kSelf + "q_a_layernorm.weight"));
  EXPECT_EQ(Unpack(attention.query_up), Stored(files, kSelf + "q_b_proj.weight"));
  EXPECT_EQ(attention.kv_down_norm, Stored(files, kSelf + "kv_a_layernorm.weight"));
}

TEST(LoadDenseWeights, TiedHeadsAreTheEmbedding) {
  const SmallModel files = SmallModel::Llama({{"tie_word_embeddings", true}});
  ASSERT_FALSE(files.Has("lm_head.weight"));
  const DenseWeights weights = LoadDense(files.Open(), WeightType::kF32);
  EXPECT_EQ(EmbeddingOf(weights), Stored(files, "model.embed_tokens.weight"));
  EXPECT_EQ(Unpack(weights.head), EmbeddingOf(weights));
}

}  // namespace
}  // namespace moe
