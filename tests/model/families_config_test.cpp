// Every golden's and every published configuration is read without a warning, with what its family means by it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "model/config.h"
#include "model/parameter_count.h"
#include "tests/model/model_files.h"
#include "tests/model/published_config.h"

namespace moe {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ModelConfig Golden(const std::string& name) {
  const Result<ModelConfig> config = ReadModelConfig(InRepository("tests/goldens/" + name));
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : ModelConfig{};
}

ModelConfig ReadFile(const std::string& name) {
  const Result<ModelConfig> config = ReadModelConfigFile(InRepository("models/published/" + name + ".json"));
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : ModelConfig{};
}

TEST(Families, ReadEveryPublishedConfigurationAndGoldenWithoutWarning) {
  int files = 0;
  const auto read = [&](const std::filesystem::path& file) {
    const Result<ModelConfig> config = ReadModelConfigFile(file);
    ASSERT_TRUE(config.ok()) << file << ": " << config.status().message();
    EXPECT_THAT(config->warnings, IsEmpty()) << file;
    EXPECT_EQ(config->architecture, json::parse(ReadBytes(file))["architectures"][0]) << file;
    ++files;
  };
  for (const std::filesystem::path& file : PublishedFiles()) read(file);
  EXPECT_GE(files, 35);
  for (const auto& entry : std::filesystem::directory_iterator(InRepository("tests/goldens"))) {
    if (entry.is_directory()) read(entry.path() / "config.json");
  }
  EXPECT_GE(files, 35 + 19);
}

/// A checkpoint that has exactly these tensors: what the goldens say they hold.
TEST(Families, CountWhatTheGoldensHold) {
  int cases = 0;
  for (const auto& entry : std::filesystem::directory_iterator(InRepository("tests/goldens"))) {
    if (!entry.is_directory()) continue;
    const json golden = json::parse(ReadBytes(entry.path() / "golden.json"));
    const ModelConfig config = Golden(entry.path().filename().string());
    EXPECT_EQ(CountParameters(config).total, golden["num_parameters"].get<std::uint64_t>()) << entry.path();
    ++cases;
  }
  EXPECT_GE(cases, 19);
}

struct Count {
  std::string name;
  std::uint64_t total;
  std::uint64_t active;
};

// Totals of public code's own models; see model/parameter_count.h for the definitions.
TEST(Families, CountTheOnesThatAreOnlyCounted) {
  const std::vector<Count> counts = {
      {"gpt2", 124439808, 124439808},
      {"gpt2-medium", 354823168, 354823168},
      {"gpt2-large", 774030080, 774030080},
      {"gpt2-xl", 1557611200, 1557611200},
      {"gemma-2b", 2506172416, 2506172416},
      {"gemma-3-270m", 268098176, 268098176},
      {"phi-3-mini-4k", 3821079552, 3821079552},
  };
  for (const Count& expected : counts) {
    const ModelConfig config = ReadFile(expected.name);
    EXPECT_FALSE(config.servable) << expected.name;
    EXPECT_EQ(CountParameters(config).total, expected.total) << expected.name;
    EXPECT_EQ(CountParameters(config).active, expected.active) << expected.name;
    EXPECT_THAT(ErrorWith(expected.name, json::object()), HasSubstr("can be counted (moe_plan) but not served"));
  }
}

TEST(Families, CountTheOnesThatRoute) {
  const std::vector<Count> counts = {
      {"qwen1.5-moe-a2.7b", 14315784192, 2689173504},  {"qwen2-57b-a14b", 57408658944, 14249270784},
      {"qwen3-30b-a3b", 30532122624, 3353032704},      {"qwen3-235b-a22b", 235093634560, 22190763520},
      {"olmoe-1b-7b", 6919161856, 1282017280},         {"deepseek-v2", 235741434880, 21375800320},
      {"deepseek-v2-lite", 15706484224, 2661150208},   {"deepseek-v3", 671026419200, 37552297472},
      {"gpt-oss-120b", 116829156672, 5711982912},      {"gpt-oss-20b", 20914757184, 4187440704},
      {"llama-4-maverick", 400711848960, 17184691200}, {"llama-4-scout", 107769861120, 17172894720},
      {"switch-base-8", 619339008, 222977280},         {"switch-c-2048", 1571308972448, 1728326048},
  };
  for (const Count& expected : counts) {
    const ParameterCount count = CountParameters(ReadFile(expected.name));
    EXPECT_EQ(count.total, expected.total) << expected.name;
    EXPECT_EQ(count.active, expected.active) << expected.name;
  }
}

TEST(Families, Qwen2Moe) {
  const ModelConfig config = Golden("qwen2_moe");
  EXPECT_EQ(config.model_type, "qwen2_moe");
  EXPECT_THAT(config.sparse_layers(), ElementsAre(1, 3));
  const LayerSpec& dense = config.layers[0];
  EXPECT_EQ(dense.dense_mlp.intermediate, 88);
  EXPECT_TRUE(dense.attention.qkv_bias);
  EXPECT_FALSE(dense.attention.out_bias);
  EXPECT_EQ(dense.attention.window, 0);  // use_sliding_window is false
  EXPECT_EQ(dense.attention.head_dim, 10);
  EXPECT_EQ(dense.attention.qk_norm, QkNorm::kNone);
  const MoeSpec& moe = config.layers[1].moe.value();
  EXPECT_EQ(moe.gate.num_experts, 10);
  EXPECT_EQ(moe.gate.experts_per_token, 4);
  EXPECT_EQ(moe.gate.scoring, GateSpec::Scoring::kSoftmax);
  EXPECT_EQ(moe.gate.normalization, GateSpec::Normalization::kNone);
  EXPECT_EQ(moe.expert.intermediate, 36);
  EXPECT_EQ(moe.shared.value().intermediate, 52);
  EXPECT_TRUE(moe.shared_gate);
  EXPECT_EQ(config.tensor_names.shared_up, "model.layers.{layer}.mlp.shared_expert.up_proj");
  EXPECT_EQ(config.rope.theta, 1e6);
}

TEST(Families, Qwen3) {
  const ModelConfig moe = Golden("qwen3_moe");
  EXPECT_THAT(moe.sparse_layers(), ElementsAre(0, 1, 2));
  EXPECT_EQ(moe.layers[0].attention.head_dim, 24);
  EXPECT_EQ(moe.layers[0].attention.qk_norm, QkNorm::kPerHead);
  EXPECT_FALSE(moe.layers[0].attention.qkv_bias);
  EXPECT_EQ(moe.layers[0].moe->gate.normalization, GateSpec::Normalization::kSum);
  EXPECT_FALSE(moe.layers[0].moe->shared.has_value());

  const ModelConfig newer = Golden("qwen3_moe_rope_parameters");
  EXPECT_THAT(newer.sparse_layers(), ElementsAre(0, 2));
  EXPECT_EQ(newer.layers[1].dense_mlp.intermediate, 70);
  EXPECT_EQ(newer.rope.scaling, RopeScaling::kYarn);
  EXPECT_EQ(newer.rope.theta, 1e6);
  EXPECT_EQ(newer.rope.original_max_positions, 512);
  EXPECT_NEAR(newer.rope.magnitude, 1.138629436111989, 1e-15);  // 0.1 ln 4 + 1
  EXPECT_EQ(newer.stored_type, WeightType::kF32);

  const ModelConfig dense = Golden("qwen3");
  EXPECT_EQ(dense.num_experts(), 0);
  EXPECT_EQ(dense.layers[2].dense_mlp.intermediate, 100);
  EXPECT_EQ(dense.layers[2].attention.qk_norm, QkNorm::kPerHead);
  EXPECT_TRUE(dense.tied_embeddings);
  EXPECT_EQ(dense.stored_type, WeightType::kBf16);
}

TEST(Families, Olmoe) {
  const ModelConfig config = Golden("olmoe");
  const LayerSpec& layer = config.layers[2];
  EXPECT_EQ(layer.attention.qk_norm, QkNorm::kWholeProjection);
  EXPECT_EQ(layer.attention.clip_qkv, 1.1f);
  EXPECT_EQ(layer.moe.value().expert.intermediate, 28);
  EXPECT_EQ(layer.moe->gate.num_experts, 12);
  EXPECT_EQ(layer.moe->gate.normalization, GateSpec::Normalization::kNone);
  EXPECT_EQ(ReadFile("olmoe-1b-7b").layers[0].attention.clip_qkv, 0);
}

TEST(Families, Granite) {
  const ModelConfig config = Golden("granitemoe");
  EXPECT_EQ(config.embedding_scale, 0.6f);
  EXPECT_EQ(config.residual_scale, 0.8f);
  EXPECT_EQ(config.logits_scale, static_cast<float>(1 / 1.5));
  EXPECT_TRUE(config.tied_embeddings);
  const LayerSpec& layer = config.layers[0];
  EXPECT_EQ(layer.attention.scale, 0.2f);
  EXPECT_EQ(layer.moe.value().gate.scoring, GateSpec::Scoring::kLogits);
  EXPECT_EQ(layer.moe->gate.normalization, GateSpec::Normalization::kSoftmax);
  EXPECT_FALSE(layer.moe->gate.bias);
  EXPECT_EQ(layer.moe->expert.activation, Activation::kSiluGated);
  const ExpertLayout& layout = config.tensor_names.expert_layout;
  EXPECT_TRUE(layout.fused);
  EXPECT_FALSE(layout.transposed || layout.interleaved || layout.bare_names);
  EXPECT_EQ(config.tensor_names.router, "model.layers.{layer}.block_sparse_moe.router.layer");
}

TEST(Families, GptOss) {
  const ModelConfig config = Golden("gpt_oss");
  EXPECT_EQ(config.encoding, StoredEncoding::kMxfp4);
  EXPECT_EQ(config.stored_type, WeightType::kBf16);
  EXPECT_EQ(config.layers[0].attention.window, 8);
  EXPECT_EQ(config.layers[1].attention.window, 0);
  EXPECT_EQ(config.layers[2].attention.window, 8);
  const LayerSpec& layer = config.layers[3];
  EXPECT_EQ(layer.attention.window, 0);
  EXPECT_TRUE(layer.attention.sinks && layer.attention.qkv_bias && layer.attention.out_bias);
  EXPECT_EQ(layer.attention.scale, 0.25f);
  const GateSpec& gate = layer.moe.value().gate;
  EXPECT_EQ(gate.num_experts, 6);
  EXPECT_EQ(gate.experts_per_token, 2);
  EXPECT_TRUE(gate.bias);
  EXPECT_EQ(gate.scoring, GateSpec::Scoring::kLogits);
  EXPECT_EQ(gate.normalization, GateSpec::Normalization::kSoftmax);
  EXPECT_EQ(layer.moe->expert.intermediate, 64);
  EXPECT_TRUE(layer.moe->expert.bias);
  EXPECT_EQ(layer.moe->expert.activation, Activation::kClampedSwiGlu);
  EXPECT_EQ(layer.moe->expert.limit, 7);
  const ExpertLayout& layout = config.tensor_names.expert_layout;
  EXPECT_TRUE(layout.fused && layout.transposed && layout.interleaved && layout.bare_names);
  EXPECT_EQ(config.rope.factor, 32);
  EXPECT_EQ(config.rope.original_max_positions, 256);
  EXPECT_FALSE(config.rope.truncate);
}

TEST(Families, Glm4Moe) {
  const ModelConfig config = Golden("glm4_moe");
  EXPECT_EQ(config.rope.width, 8);
  EXPECT_EQ(config.rope.pairing, RopePairing::kHalfSplit);
  EXPECT_EQ(config.prediction_layers, 1);
  EXPECT_EQ(config.tensor_names.prediction_prefix, "model.layers.");
  EXPECT_THAT(config.sparse_layers(), ElementsAre(1, 2));
  const LayerSpec& layer = config.layers[1];
  EXPECT_EQ(layer.attention.head_dim, 16);
  EXPECT_EQ(layer.attention.qk_norm, QkNorm::kPerHead);
  EXPECT_TRUE(layer.attention.qkv_bias);
  EXPECT_FALSE(layer.attention.out_bias);
  EXPECT_TRUE(layer.moe.value().gate.correction_bias);
  EXPECT_EQ(layer.moe->gate.scale, 1.5f);
  EXPECT_EQ(layer.moe->gate.groups, 1);
  EXPECT_EQ(layer.moe->shared.value().intermediate, 24);
  EXPECT_FALSE(layer.moe->shared_gate);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2u, 3u));
}

}  // namespace
}  // namespace moe
