#include "model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "core/text.h"
#include "model/parameter_count.h"
#include "model/tensor_specs.h"
#include "tests/model/model_files.h"
#include "tests/model/stored_values.h"

namespace moe {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<float> EmbeddingOf(const DenseWeights& weights) {
  std::vector<float> values;
  for (std::size_t at = 0; at < weights.embedding.size(); at += BytesPerWeight(weights.type)) {
    values.push_back(ReadElement(weights.embedding.data() + at, weights.type));
  }
  return values;
}

struct Opened {
  ModelConfig config;
  Checkpoint checkpoint;
};

Opened Open(const std::filesystem::path& folder) {
  Result<ModelConfig> config = ReadModelConfig(folder);
  Result<Checkpoint> checkpoint = Checkpoint::Open(folder);
  if (!config.ok()) throw std::runtime_error(config.status().message());
  if (!checkpoint.ok()) throw std::runtime_error(checkpoint.status().message());
  return {*std::move(config), *std::move(checkpoint)};
}

DenseWeights LoadDense(const Opened& model, WeightType type, int threads = 2) {
  ThreadPool pool(threads);
  Result<DenseWeights> weights = LoadDenseWeights(model.config, model.checkpoint, type, pool);
  if (!weights.ok()) throw std::runtime_error(weights.status().message());
  return *std::move(weights);
}

// Real checkpoints, every value.

class LoadedModel : public ::testing::TestWithParam<const char*> {};

TEST_P(LoadedModel, HasTheValuesOfItsFiles) {
  const std::filesystem::path folder = InRepository(GetParam());
  const Opened model = Open(folder);
  const DenseWeights weights = LoadDense(model, model.config.stored_type);
  EXPECT_EQ(weights.type, model.config.stored_type);
  EXPECT_EQ(EmbeddingOf(weights), StoredValues(folder, "model.embed_tokens.weight"));
  EXPECT_EQ(weights.final_norm, StoredValues(folder, "model.norm.weight"));
  EXPECT_EQ(Unpack(weights.head),
            StoredValues(folder, model.config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight"));
  ASSERT_EQ(weights.layers.size(), model.config.layers.size());
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    const LayerWeights& layer = weights.layers[i];
    const std::string prefix = Cat("model.layers.", i, ".");
    EXPECT_EQ(layer.attention_norm, StoredValues(folder, prefix + "input_layernorm.weight"));
    EXPECT_EQ(layer.ffn_norm, StoredValues(folder, prefix + "post_attention_layernorm.weight"));
    EXPECT_EQ(Unpack(layer.attention.qkv),
              StoredValues(folder, {prefix + "self_attn.q_proj.weight", prefix + "self_attn.k_proj.weight",
                                    prefix + "self_attn.v_proj.weight"}));
    EXPECT_EQ(Unpack(layer.attention.out), StoredValues(folder, prefix + "self_attn.o_proj.weight"));
    EXPECT_THAT(layer.attention.qkv_bias, IsEmpty());
    EXPECT_THAT(layer.attention.out_bias, IsEmpty());
    if (model.config.layers[i].moe.has_value()) {
      EXPECT_EQ(Unpack(layer.gate), StoredValues(folder, prefix + "block_sparse_moe.gate.weight"));
      EXPECT_EQ(layer.gate.type(), WeightType::kF32);
      EXPECT_TRUE(layer.dense_mlp.gate_up.empty());
    } else {
      EXPECT_TRUE(layer.gate.empty());
      EXPECT_EQ(Unpack(layer.dense_mlp.gate_up),
                StoredValues(folder, {prefix + "mlp.gate_proj.weight", prefix + "mlp.up_proj.weight"}));
      EXPECT_EQ(Unpack(layer.dense_mlp.down), StoredValues(folder, prefix + "mlp.down_proj.weight"));
    }
  }
}

TEST_P(LoadedModel, HasExpertsWithTheValuesOfItsFiles) {
  const std::filesystem::path folder = InRepository(GetParam());
  const Opened model = Open(folder);
  for (const int layer : model.config.sparse_layers()) {
    for (const int expert : {0, model.config.num_experts() - 1}) {
      const Result<MlpWeights> weights =
          LoadExpertWeights(model.config, model.checkpoint, layer, expert, model.config.stored_type);
      ASSERT_TRUE(weights.ok()) << weights.status().message();
      const std::string prefix = Cat("model.layers.", layer, ".block_sparse_moe.experts.", expert, ".");
      EXPECT_EQ(Unpack(weights->gate_up), StoredValues(folder, {prefix + "w1.weight", prefix + "w3.weight"}));
      EXPECT_EQ(Unpack(weights->down), StoredValues(folder, prefix + "w2.weight"));
      EXPECT_EQ(weights->parameters(), CountParameters(model.config).parameters_each[static_cast<std::size_t>(layer)]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, LoadedModel,
                         ::testing::Values("tests/goldens/mixtral", "tests/goldens/mixtral_bf16", "tests/goldens/llama",
                                           "tests/goldens/llama3_rope", "tests/goldens/mistral",
                                           "models/eight-languages-moe", "models/eight-languages-dense",
                                           "models/eight-languages-collapsed"),
                         [](const auto& test) {
                           std::string name = std::filesystem::path(test.param).filename().string();
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

TEST(LoadDenseWeights, CountsWhatItHolds) {
  const Opened model = Open(InRepository("models/eight-languages-moe"));
  const DenseWeights weights = LoadDense(model, WeightType::kBf16);
  const ParameterCount count = CountParameters(model.config);
  EXPECT_EQ(weights.parameters, count.dense());
  // Every row count is a multiple of 16 here, so that panels have no padding; gates and norms are held in fp32.
  const std::uint64_t in_f32 = count.part(ModelPart::kRouter) + count.part(ModelPart::kNorms);
  const std::uint64_t router_padding = 4 * 8 * 128 * 4;  // 8 experts fill half of a panel, in 4 layers
  EXPECT_EQ(weights.bytes, 2 * (count.dense() - in_f32) + 4 * in_f32 + router_padding);
}

TEST(LoadDenseWeights, LeavesExpertsAlone) {
  const Opened model = Open(InRepository("tests/goldens/mixtral"));
  (void)LoadDense(model, WeightType::kF32);
  EXPECT_EQ(model.checkpoint.mapped_bytes(), 4 * CountParameters(model.config).dense());
}

TEST(LoadDenseWeights, DoesNotDependOnThreads) {
  const Opened model = Open(InRepository("tests/goldens/llama"));
  const DenseWeights one = LoadDense(model, WeightType::kBf16, 1);
  const DenseWeights four = LoadDense(model, WeightType::kBf16, 4);
  EXPECT_EQ(one.embedding, four.embedding);
  for (std::size_t i = 0; i < one.layers.size(); ++i) {
    EXPECT_EQ(Unpack(one.layers[i].attention.qkv), Unpack(four.layers[i].attention.qkv));
    EXPECT_EQ(Unpack(one.layers[i].dense_mlp.gate_up), Unpack(four.layers[i].dense_mlp.gate_up));
  }
}

TEST(LoadExpertWeights, MapsThatExpertOnly) {
  const Opened model = Open(InRepository("models/eight-languages-moe"));
  // 3 matrices of 128 x 256 in bf16.
  ASSERT_TRUE(LoadExpertWeights(model.config, model.checkpoint, 3, 7, WeightType::kF32).ok());
  EXPECT_EQ(model.checkpoint.mapped_bytes(), 3u * 128 * 256 * 2);
  ASSERT_TRUE(LoadExpertWeights(model.config, model.checkpoint, 0, 2, WeightType::kF32).ok());
  EXPECT_EQ(model.checkpoint.mapped_bytes(), 2u * 3 * 128 * 256 * 2);
}

TEST(LoadExpertWeights, RunsOnSeveralThreads) {
  const Opened model = Open(InRepository("tests/goldens/mixtral"));
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
  const Opened sparse = Open(InRepository("tests/goldens/mixtral"));
  const Opened dense = Open(InRepository("tests/goldens/llama"));
  const auto error = [](const Opened& model, int layer, int expert) {
    return LoadExpertWeights(model.config, model.checkpoint, layer, expert, WeightType::kF32).status().message();
  };
  EXPECT_EQ(error(sparse, 0, 6), "expert 6 is not one of the 6 experts of layer 0");
  EXPECT_EQ(error(sparse, 0, -1), "expert -1 is not one of the 6 experts of layer 0");
  EXPECT_EQ(error(sparse, 3, 0), "layer 3 is not a sparse layer of the model");
  EXPECT_EQ(error(dense, 0, 0), "layer 0 is not a sparse layer of the model");
}

// Small models made here.

std::string F32Bytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

/// A checkpoint whose tensors may be changed before it is opened; values count up over all tensors from 1.
class SmallModel {
 public:
  explicit SmallModel(json config) : config_(std::move(config)) {
    folder_.Write("config.json", config_.dump());
    const ModelConfig read = *ReadModelConfig(folder_.path());
    Add(OuterTensors(read));
    for (int layer = 0; layer < read.num_layers(); ++layer) {
      Add(LayerTensors(read, layer));
      for (int expert = 0; expert < read.num_experts(); ++expert) Add(ExpertTensors(read, layer, expert));
    }
  }

  /// 1 layer, hidden 4, vocab 6, 2 heads of 2, 1 KV head, intermediate 3.
  static SmallModel Llama(const json& changes = json::object()) {
    json config = Sizes("llama");
    config.update(changes);
    return SmallModel(config);
  }
  static SmallModel Mixtral() {
    json config = Sizes("mixtral");
    config.update({{"num_local_experts", 3}, {"num_experts_per_tok", 2}});
    return SmallModel(config);
  }

  TestTensor& At(const std::string& name) {
    for (TestTensor& tensor : tensors) {
      if (tensor.name == name) return tensor;
    }
    throw std::runtime_error("no tensor " + name);
  }
  void Remove(const std::string& name) {
    std::erase_if(tensors, [&](const TestTensor& tensor) { return tensor.name == name; });
  }
  Opened Open() const {
    folder_.Write("model.safetensors", Safetensors(tensors));
    return moe::Open(folder_.path());
  }
  const std::filesystem::path& folder() const { return folder_.path(); }
  std::string CheckError() const {
    const Opened model = Open();
    const Status status = CheckTensors(model.config, model.checkpoint);
    return status.ok() ? "no error" : status.message();
  }

  std::vector<TestTensor> tensors;

 private:
  static json Sizes(const std::string& model_type) {
    return {{"model_type", model_type}, {"vocab_size", 6},
            {"hidden_size", 4},         {"intermediate_size", 3},
            {"num_hidden_layers", 1},   {"num_attention_heads", 2},
            {"num_key_value_heads", 1}, {"max_position_embeddings", 64},
            {"rms_norm_eps", 1e-5}};
  }
  void Add(const std::vector<TensorSpec>& specs) {
    for (const TensorSpec& spec : specs) {
      std::vector<float> values;
      for (std::uint64_t i = 0; i < spec.elements(); ++i) values.push_back(next_++);
      tensors.push_back({spec.name, "F32", spec.shape, F32Bytes(values)});
    }
  }

  json config_;
  TemporaryFolder folder_;
  float next_ = 1;
};

TEST(LoadDenseWeights, LoadsBiases) {
  const SmallModel files = SmallModel::Llama({{"attention_bias", true}, {"mlp_bias", true}});
  const DenseWeights weights = LoadDense(files.Open(), WeightType::kF32);
  const std::string attention = "model.layers.0.self_attn.";
  const std::string mlp = "model.layers.0.mlp.";
  const LayerWeights& layer = weights.layers[0];
  EXPECT_EQ(layer.attention.qkv_bias.size(), 8u);
  EXPECT_EQ(
      layer.attention.qkv_bias,
      StoredValues(files.folder(), {attention + "q_proj.bias", attention + "k_proj.bias", attention + "v_proj.bias"}));
  EXPECT_EQ(layer.attention.out_bias, StoredValues(files.folder(), attention + "o_proj.bias"));
  EXPECT_EQ(layer.dense_mlp.gate_up_bias, StoredValues(files.folder(), {mlp + "gate_proj.bias", mlp + "up_proj.bias"}));
  EXPECT_EQ(layer.dense_mlp.down_bias, StoredValues(files.folder(), mlp + "down_proj.bias"));
  EXPECT_EQ(layer.dense_mlp.parameters(), 3u * 3 * 4 + 2 * 3 + 4);
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
  const DenseWeights weights = LoadDense(Open(folder), WeightType::kF32);
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
  EXPECT_EQ(weights.layers[0].attention.qkv.type(), WeightType::kBf16);
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

// Tied tables that are stored twice.

TEST(RepeatedHead, IsAcceptedWhenItIsTheEmbedding) {
  SmallModel files = SmallModel::Llama({{"tie_word_embeddings", true}});
  TestTensor head = files.At("model.embed_tokens.weight");
  head.name = "lm_head.weight";
  files.tensors.push_back(head);
  EXPECT_EQ(files.CheckError(), "no error");
  EXPECT_EQ(LoadDense(files.Open(), WeightType::kF32).parameters, 6u * 4 + 4 * 4 * 2 + 2 * 2 * 4 + 3 * 3 * 4 + 3 * 4);
}

TEST(RepeatedHead, IsRefusedWhenItDiffers) {
  SmallModel files = SmallModel::Llama({{"tie_word_embeddings", true}});
  TestTensor head = files.At("model.embed_tokens.weight");
  head.name = "lm_head.weight";
  head.bytes.back() ^= 1;
  files.tensors.push_back(head);
  const Opened model = files.Open();
  ThreadPool pool(1);
  EXPECT_THAT(LoadDenseWeights(model.config, model.checkpoint, WeightType::kF32, pool).status().message(),
              AllOf(HasSubstr("tensor lm_head.weight differs"), HasSubstr("tie_word_embeddings")));
  files.tensors.back().shape = {4, 6};
  EXPECT_THAT(files.CheckError(), HasSubstr("tensor lm_head.weight has shape (4, 6)"));
}

// CheckTensors.

TEST(CheckTensors, AcceptsWhatTheConfigurationDescribes) {
  EXPECT_EQ(SmallModel::Llama().CheckError(), "no error");
  EXPECT_EQ(SmallModel::Mixtral().CheckError(), "no error");
  EXPECT_EQ(SmallModel::Llama({{"attention_bias", true}, {"mlp_bias", true}}).CheckError(), "no error");
}

TEST(CheckTensors, NamesAnyMissingTensor) {
  for (const bool sparse : {false, true}) {
    const SmallModel files = sparse ? SmallModel::Mixtral() : SmallModel::Llama({{"attention_bias", true}});
    for (const TestTensor& tensor : std::vector(files.tensors)) {
      SmallModel fewer = sparse ? SmallModel::Mixtral() : SmallModel::Llama({{"attention_bias", true}});
      fewer.Remove(tensor.name);
      EXPECT_EQ(fewer.CheckError(), "tensor " + tensor.name + " is missing");
    }
  }
}

TEST(CheckTensors, NamesBothShapes) {
  SmallModel files = SmallModel::Llama();
  files.At("model.layers.0.self_attn.k_proj.weight").shape = {4, 2};
  EXPECT_EQ(files.CheckError(),
            "model.safetensors: tensor model.layers.0.self_attn.k_proj.weight has shape (4, 2), but config.json "
            "describes (2, 4)");
}

TEST(CheckTensors, NamesAShapeOfAnotherRank) {
  SmallModel files = SmallModel::Llama();
  files.At("model.norm.weight").shape = {4, 1};
  EXPECT_THAT(files.CheckError(), HasSubstr("model.norm.weight has shape (4, 1), but config.json describes (4)"));
}

TEST(CheckTensors, NamesTypesThatCannotBeComputed) {
  for (const auto& [dtype, bytes] : {std::pair{"F8_E4M3", 1u}, {"U8", 1u}, {"F64", 8u}, {"I32", 4u}}) {
    SmallModel files = SmallModel::Llama();
    files.At("model.norm.weight").dtype = dtype;
    files.At("model.norm.weight").bytes.resize(4 * bytes);
    EXPECT_EQ(files.CheckError(),
              Cat("model.safetensors: tensor model.norm.weight has dtype ", dtype, ", not F32, BF16 or F16"));
  }
}

TEST(CheckTensors, NamesUnknownTensors) {
  for (const char* name :
       {"model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "score.weight", "odd\\nname"}) {
    SmallModel files = SmallModel::Llama();
    files.tensors.push_back({name, "F32", {1}, "1234"});
    EXPECT_THAT(files.CheckError(),
                AllOf(HasSubstr("model.safetensors: tensor "), HasSubstr("is unknown to model_type llama")))
        << name;
  }
}

TEST(CheckTensors, PassesOverStoredRotaryFrequencies) {
  SmallModel files = SmallModel::Mixtral();
  files.tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {1}, "1234"});
  EXPECT_EQ(files.CheckError(), "no error");
}

TEST(CheckTensors, ReadsNoData) {
  const Opened model = Open(InRepository("models/eight-languages-moe"));
  EXPECT_TRUE(CheckTensors(model.config, model.checkpoint).ok());
  EXPECT_EQ(model.checkpoint.mapped_bytes(), 0u);
}

TEST(TensorPatterns, MatchRunsOfCharacters) {
  EXPECT_TRUE(MatchesPattern("model.layers.0.self_attn.rotary_emb.inv_freq", "*.rotary_emb.inv_freq"));
  EXPECT_FALSE(MatchesPattern("model.layers.0.self_attn.rotary_emb.inv_freq.x", "*.rotary_emb.inv_freq"));
  EXPECT_TRUE(MatchesPattern("model.layers.61.mlp.up", "model.layers.61.*"));
  EXPECT_FALSE(MatchesPattern("model.layers.6.mlp.up", "model.layers.61.*"));
  EXPECT_TRUE(MatchesPattern("abcbcd", "a*bcd"));
  EXPECT_TRUE(MatchesPattern("abc", "*a*c*"));
  EXPECT_TRUE(MatchesPattern("", "*"));
  EXPECT_FALSE(MatchesPattern("", "a"));
  EXPECT_FALSE(MatchesPattern("ab", "a"));
}

}  // namespace
}  // namespace moe
