// Every value of every golden checkpoint and bundled model, loaded, against an independent reading of its files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/text.h"
#include "model/parameter_count.h"
#include "model/tensor_check.h"
#include "model/weights.h"
#include "tests/model/golden_case.h"
#include "tests/model/small_model.h"
#include "tests/model/stored_values.h"

namespace moe {
namespace {

using ::testing::IsEmpty;

std::vector<std::string> Folders() {
  std::vector<std::string> folders;
  for (const std::string& name : GoldenNames()) folders.push_back("tests/goldens/" + name);
  for (const char* name : {"moe", "dense", "collapsed"})
    folders.push_back(std::string("models/eight-languages-") + name);
  return folders;
}

/// One expert of a layer: rows of gate, then of up; and of down.
struct StoredExpert {
  std::vector<float> gate_up;
  std::vector<float> down;
  std::vector<float> gate_up_bias;
  std::vector<float> down_bias;
};

class LoadedModel : public ::testing::TestWithParam<std::string> {
 protected:
  LoadedModel() : folder_(InRepository(GetParam())), model_(OpenModel(folder_)) {}

  std::vector<float> Values(const std::string& name) const { return StoredValues(folder_, name); }
  bool Has(const std::string& name) const { return HasStored(folder_, name); }
  /// Those of the names that there are, one after the other.
  std::vector<float> Joined(const std::vector<std::string>& names) const {
    std::vector<float> values;
    for (const std::string& name : names) {
      if (!Has(name)) continue;
      const std::vector<float> more = Values(name);
      values.insert(values.end(), more.begin(), more.end());
    }
    return values;
  }
  static std::vector<float> Joined(std::vector<float> first, const std::vector<float>& second) {
    first.insert(first.end(), second.begin(), second.end());
    return first;
  }
  void ExpectMatrix(const PackedMatrix& matrix, const std::vector<std::string>& names) const {
    EXPECT_EQ(matrix.empty() ? std::vector<float>() : Unpack(matrix), Joined(names)) << names.front();
  }
  void ExpectMlp(const MlpWeights& mlp, const std::string& gate, const std::string& up, const std::string& down) const {
    ExpectMatrix(mlp.gate, {gate + ".weight"});
    ExpectMatrix(mlp.up, {up + ".weight"});
    ExpectMatrix(mlp.down, {down + ".weight"});
    EXPECT_EQ(mlp.gate_bias, Joined({gate + ".bias"}));
    EXPECT_EQ(mlp.up_bias, Joined({up + ".bias"}));
    EXPECT_EQ(mlp.down_bias, Joined({down + ".bias"}));
  }

  void ExpectDecoderLayer(std::size_t index, const LayerWeights& layer) const;
  void ExpectSwitchLayer(std::size_t index, const LayerWeights& layer) const;
  StoredExpert Expert(std::size_t layer, std::size_t expert) const;

  /// Part `index` of `count` equal ones.
  static std::vector<float> Part(const std::vector<float>& values, std::size_t index, std::size_t count) {
    const auto size = static_cast<std::ptrdiff_t>(values.size() / count);
    const auto begin = values.begin() + static_cast<std::ptrdiff_t>(index) * size;
    return {begin, begin + size};
  }

  const std::filesystem::path folder_;
  const Opened model_;
};

INSTANTIATE_TEST_SUITE_P(All, LoadedModel, ::testing::ValuesIn(Folders()), [](const auto& test) {
  std::string name = std::filesystem::path(test.param).filename().string();
  for (char& c : name) c = c == '-' ? '_' : c;
  return name;
});

/// A layer of all families but Switch: those of the names that a family does not have are not in its files.
void LoadedModel::ExpectDecoderLayer(std::size_t index, const LayerWeights& layer) const {
  const std::string prefix = Cat("model.layers.", index, ".");
  const std::string self = prefix + "self_attn.";
  EXPECT_EQ(layer.attention_norm, Values(prefix + "input_layernorm.weight"));
  EXPECT_EQ(layer.ffn_norm, Values(prefix + "post_attention_layernorm.weight"));
  const AttentionWeights& attention = layer.attention;
  ExpectMatrix(attention.projection, {self + "q_a_proj.weight", self + "q_proj.weight", self + "k_proj.weight",
                                      self + "v_proj.weight", self + "kv_a_proj_with_mqa.weight"});
  EXPECT_EQ(attention.projection_bias, Joined({self + "q_proj.bias", self + "k_proj.bias", self + "v_proj.bias"}));
  ExpectMatrix(attention.out, {self + "o_proj.weight"});
  EXPECT_EQ(attention.out_bias, Joined({self + "o_proj.bias"}));
  EXPECT_EQ(attention.query_norm, Joined({self + "q_norm.weight"}));
  EXPECT_EQ(attention.key_norm, Joined({self + "k_norm.weight"}));
  EXPECT_EQ(attention.sinks, Joined({self + "sinks"}));
  EXPECT_EQ(attention.query_down_norm, Joined({self + "q_a_layernorm.weight"}));
  ExpectMatrix(attention.query_up, {self + "q_b_proj.weight"});
  EXPECT_EQ(attention.kv_down_norm, Joined({self + "kv_a_layernorm.weight"}));
  EXPECT_EQ(attention.key_up.empty(), !Has(self + "kv_b_proj.weight"));

  ExpectMatrix(layer.gate,
               {prefix + "block_sparse_moe.gate.weight", prefix + "block_sparse_moe.router.layer.weight",
                prefix + "mlp.gate.weight", prefix + "mlp.router.weight", prefix + "feed_forward.router.weight"});
  EXPECT_EQ(layer.gate_bias, Joined({prefix + "mlp.router.bias"}));
  EXPECT_EQ(layer.correction_bias, Joined({prefix + "mlp.gate.e_score_correction_bias"}));
  ExpectMatrix(layer.shared_gate, {prefix + "mlp.shared_expert_gate.weight"});
  for (const char* mlp :
       {"mlp", "feed_forward", "mlp.shared_expert", "mlp.shared_experts", "feed_forward.shared_expert"}) {
    const std::string name = prefix + mlp;
    if (Has(name + ".up_proj.weight"))
      ExpectMlp(layer.mlp, name + ".gate_proj", name + ".up_proj", name + ".down_proj");
  }
  EXPECT_FALSE(layer.cross.has_value());
}

/// Blocks of the encoder, then of the decoder.
void LoadedModel::ExpectSwitchLayer(std::size_t index, const LayerWeights& layer) const {
  const auto encoders = static_cast<std::size_t>(model_.config.encoder_layers);
  const bool decoder = index >= encoders;
  const std::string block =
      decoder ? Cat("decoder.block.", index - encoders, ".layer.") : Cat("encoder.block.", index, ".layer.");
  EXPECT_EQ(layer.attention_norm, Values(block + "0.layer_norm.weight"));
  const std::string self = block + "0.SelfAttention.";
  ExpectMatrix(layer.attention.projection, {self + "q.weight", self + "k.weight", self + "v.weight"});
  ExpectMatrix(layer.attention.out, {self + "o.weight"});
  ASSERT_EQ(layer.cross.has_value(), decoder);
  if (decoder) {
    const std::string cross = block + "1.EncDecAttention.";
    EXPECT_EQ(layer.cross->norm, Values(block + "1.layer_norm.weight"));
    ExpectMatrix(layer.cross->query, {cross + "q.weight"});
    ExpectMatrix(layer.cross->key_value, {cross + "k.weight", cross + "v.weight"});
    ExpectMatrix(layer.cross->out, {cross + "o.weight"});
  }
  const std::string ffn = block + (decoder ? "2." : "1.");
  EXPECT_EQ(layer.ffn_norm, Values(ffn + "layer_norm.weight"));
  ExpectMatrix(layer.gate, {ffn + "mlp.router.classifier.weight"});
  EXPECT_TRUE(layer.mlp.gate.empty());
  ExpectMatrix(layer.mlp.up, {ffn + "mlp.wi.weight"});
  ExpectMatrix(layer.mlp.down, {ffn + "mlp.wo.weight"});
}

TEST_P(LoadedModel, HasTheValuesOfItsFiles) {
  const bool switches = model_.config.has_encoder();
  const WeightType type = CheckTensors(model_.config, model_.checkpoint)->exact_type;
  const DenseWeights weights = LoadDense(model_, type);
  EXPECT_EQ(weights.embedding_type, type);
  const std::string table = switches ? "shared.weight" : "model.embed_tokens.weight";
  EXPECT_EQ(EmbeddingOf(weights), Values(table));
  ExpectMatrix(weights.head, {model_.config.tied_embeddings ? table : "lm_head.weight"});
  EXPECT_EQ(weights.final_norm, Values(switches ? "decoder.final_layer_norm.weight" : "model.norm.weight"));
  EXPECT_EQ(weights.encoder_norm, Joined({"encoder.final_layer_norm.weight"}));
  const std::string bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight";
  EXPECT_EQ(weights.encoder_relative_bias, Joined({"encoder." + bias}));
  EXPECT_EQ(weights.relative_bias, Joined({"decoder." + bias}));
  ASSERT_EQ(weights.layers.size(), model_.config.layers.size());
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    switches ? ExpectSwitchLayer(i, weights.layers[i]) : ExpectDecoderLayer(i, weights.layers[i]);
    const auto& moe = model_.config.layers[i].moe;
    EXPECT_EQ(weights.layers[i].gate.empty(), !moe.has_value());
    EXPECT_EQ(weights.layers[i].mlp.up.empty(), moe.has_value() && !moe->shared.has_value());
    if (!moe) continue;
    EXPECT_EQ(weights.layers[i].gate.type(), WeightType::kF32) << "whatever the others are";
  }
}

/// The expert's share of the layer's tensors, in any of the published layouts.
StoredExpert LoadedModel::Expert(std::size_t layer, std::size_t expert) const {
  const LayerSpec& spec = model_.config.layers[layer];
  const auto experts = static_cast<std::size_t>(spec.moe->gate.num_experts);
  const auto inner = static_cast<std::size_t>(spec.moe->expert.intermediate);
  const auto hidden = static_cast<std::size_t>(model_.config.hidden);
  const std::string prefix = Cat("model.layers.", layer, ".");
  const auto transposed = [](const std::vector<float>& values, std::size_t rows) {
    const std::size_t cols = values.size() / rows;
    std::vector<float> out;
    for (std::size_t col = 0; col < cols; ++col)
      for (std::size_t row = 0; row < rows; ++row) out.push_back(values[row * cols + col]);
    return out;
  };
  // Even rows, then odd ones.
  const auto parted = [](const std::vector<float>& values, std::size_t row_size) {
    std::vector<float> out;
    for (const std::size_t parity : {0u, 1u})
      for (std::size_t at = parity * row_size; at < values.size(); at += 2 * row_size)
        out.insert(out.end(), values.begin() + static_cast<std::ptrdiff_t>(at),
                   values.begin() + static_cast<std::ptrdiff_t>(at + row_size));
    return out;
  };
  if (model_.config.model_type == "granitemoe") {
    return {.gate_up = Part(Values(prefix + "block_sparse_moe.input_linear.weight"), expert, experts),
            .down = Part(Values(prefix + "block_sparse_moe.output_linear.weight"), expert, experts)};
  }
  if (model_.config.model_type == "llama4_text") {
    const std::string name = prefix + "feed_forward.experts.";
    return {.gate_up = transposed(Part(Values(name + "gate_up_proj"), expert, experts), hidden),
            .down = transposed(Part(Values(name + "down_proj"), expert, experts), inner)};
  }
  if (model_.config.model_type == "gpt_oss") {
    const std::string name = prefix + "mlp.experts.";
    return {.gate_up = parted(Part(StoredMxfp4(folder_, name + "gate_up_proj"), expert, experts), hidden),
            .down = Part(StoredMxfp4(folder_, name + "down_proj"), expert, experts),
            .gate_up_bias = parted(Part(Values(name + "gate_up_proj_bias"), expert, experts), 1),
            .down_bias = Part(Values(name + "down_proj_bias"), expert, experts)};
  }
  if (model_.config.has_encoder()) {
    const auto encoders = static_cast<std::size_t>(model_.config.encoder_layers);
    const std::string ffn = layer < encoders ? Cat("encoder.block.", layer, ".layer.1.")
                                             : Cat("decoder.block.", layer - encoders, ".layer.2.");
    const std::string name = Cat(ffn, "mlp.experts.expert_", expert, ".");
    return {.gate_up = Values(name + "wi.weight"), .down = Values(name + "wo.weight")};
  }
  if (Has(prefix + "block_sparse_moe.experts.0.w1.weight")) {
    const std::string name = Cat(prefix, "block_sparse_moe.experts.", expert, ".");
    return {.gate_up = Joined({name + "w1.weight", name + "w3.weight"}), .down = Values(name + "w2.weight")};
  }
  const std::string name = Cat(prefix, "mlp.experts.", expert, ".");
  return {.gate_up = Joined({name + "gate_proj.weight", name + "up_proj.weight"}),
          .down = Values(name + "down_proj.weight")};
}

TEST_P(LoadedModel, HasExpertsWithTheValuesOfItsFiles) {
  const WeightType type = CheckTensors(model_.config, model_.checkpoint)->exact_type;
  for (const int layer : model_.config.sparse_layers()) {
    for (const int expert : {0, 1, model_.config.num_experts() - 1}) {
      const Result<MlpWeights> weights = LoadExpertWeights(model_.config, model_.checkpoint, layer, expert, type);
      ASSERT_TRUE(weights.ok()) << weights.status().message();
      const StoredExpert stored = Expert(static_cast<std::size_t>(layer), static_cast<std::size_t>(expert));
      EXPECT_EQ(Joined(Unpack(weights->gate), Unpack(weights->up)), stored.gate_up)
          << "layer " << layer << ", expert " << expert;
      EXPECT_EQ(Unpack(weights->down), stored.down);
      EXPECT_EQ(Joined(weights->gate_bias, weights->up_bias), stored.gate_up_bias);
      EXPECT_EQ(weights->down_bias, stored.down_bias);
      EXPECT_EQ(weights->parameters(), CountParameters(model_.config).parameters_each[static_cast<std::size_t>(layer)]);
    }
  }
}

}  // namespace
}  // namespace moe
