// Random small models of every family: what the accountant says of a configuration, what the loader holds of made-up
// weights, and what a published checkpoint of the same model holds must be the same, element for element.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "core/text.h"
#include "model/families/family.h"
#include "model/parameter_count.h"
#include "model/tensor_check.h"
#include "model/weight_bytes.h"
#include "tests/model/random_checkpoint.h"
#include "tests/model/random_config.h"
#include "tests/model/random_files.h"
#include "tests/model/stored_values.h"

namespace moe {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr int kModelsOfAFamily = 16;
constexpr WeightType kTypes[] = {WeightType::kF32, WeightType::kBf16, WeightType::kF16};

/// Elements that are really in memory, by part; a tied table once.
struct HeldCount {
  std::array<std::uint64_t, kNumModelParts> parts{};
  std::uint64_t padding_bytes = 0;  // of the last panels
  std::uint64_t expert_padding = 0;

  std::uint64_t& of(ModelPart part) { return parts[static_cast<std::size_t>(part)]; }
  void Add(ModelPart part, const PackedMatrix& matrix) {
    of(part) += matrix.rows() * matrix.cols();
    AddPadding(part, matrix);
  }
  void Add(ModelPart part, const std::vector<float>& vector) { of(part) += vector.size(); }
  void Add(ModelPart part, const MlpWeights& mlp) {
    for (const PackedMatrix* matrix : {&mlp.gate, &mlp.up, &mlp.down}) Add(part, *matrix);
    for (const std::vector<float>* bias : {&mlp.gate_bias, &mlp.up_bias, &mlp.down_bias}) Add(part, *bias);
  }
  void AddPadding(ModelPart part, const PackedMatrix& matrix) {
    const std::size_t rows = (matrix.rows() + 15) / 16 * 16 - matrix.rows();
    const std::uint64_t bytes = rows * matrix.cols() * BytesPerWeight(matrix.type());
    (part == ModelPart::kExperts ? expert_padding : padding_bytes) += bytes;
  }
};

void CountAttention(const AttentionWeights& w, HeldCount& held) {
  const ModelPart part = ModelPart::kAttention;
  held.Add(part, w.projection);
  held.Add(part, w.projection_bias);
  held.Add(ModelPart::kNorms, w.query_norm);
  held.Add(ModelPart::kNorms, w.key_norm);
  held.Add(part, w.sinks);
  held.Add(part, w.out);
  held.Add(part, w.out_bias);
  held.Add(ModelPart::kNorms, w.query_down_norm);
  held.Add(part, w.query_up);
  held.Add(ModelPart::kNorms, w.kv_down_norm);
  for (const PackedMatrix& matrix : w.key_up) held.Add(part, matrix);
  for (const PackedMatrix& matrix : w.value_up) held.Add(part, matrix);
}

void CountLayer(const LayerWeights& layer, bool sparse, HeldCount& held) {
  held.Add(ModelPart::kNorms, layer.attention_norm);
  held.Add(ModelPart::kNorms, layer.ffn_norm);
  CountAttention(layer.attention, held);
  if (layer.cross) {
    held.Add(ModelPart::kNorms, layer.cross->norm);
    held.Add(ModelPart::kAttention, layer.cross->query);
    held.Add(ModelPart::kAttention, layer.cross->key_value);
    held.Add(ModelPart::kAttention, layer.cross->out);
  }
  held.Add(ModelPart::kRouter, layer.gate);
  held.Add(ModelPart::kRouter, layer.gate_bias);
  held.Add(ModelPart::kRouter, layer.correction_bias);
  held.Add(sparse ? ModelPart::kSharedExperts : ModelPart::kDenseFfn, layer.mlp);
  held.Add(ModelPart::kSharedExperts, layer.shared_gate);
}

HeldCount CountHeld(const ModelConfig& config, const WholeModel& model) {
  HeldCount held;
  const DenseWeights& dense = model.dense;
  held.of(ModelPart::kEmbedding) += dense.embedding.size() / BytesPerWeight(dense.embedding_type);
  held.Add(ModelPart::kNorms, dense.encoder_norm);
  held.Add(ModelPart::kNorms, dense.final_norm);
  if (config.tied_embeddings) {
    held.AddPadding(ModelPart::kHead, dense.head);
  } else {
    held.Add(ModelPart::kHead, dense.head);
  }
  held.Add(ModelPart::kAttention, dense.encoder_relative_bias);
  held.Add(ModelPart::kAttention, dense.relative_bias);
  for (std::size_t l = 0; l < dense.layers.size(); ++l) {
    CountLayer(dense.layers[l], !model.experts[l].empty(), held);
    for (const MlpWeights& expert : model.experts[l]) held.Add(ModelPart::kExperts, expert);
  }
  return held;
}

/// Zeros in memory where the queries of latent attention have no bias and the keys beside them have one.
std::uint64_t FilledBiases(const ModelConfig& config) {
  std::uint64_t zeros = 0;
  for (const LayerSpec& layer : config.layers) {
    const AttentionSpec& attention = layer.attention;
    if (!attention.latent || attention.latent->query_rank > 0 || !attention.qkv_bias) continue;
    zeros += static_cast<std::uint64_t>(attention.num_heads) * static_cast<std::uint64_t>(attention.head_dim);
  }
  return zeros;
}

template <typename T>
void AppendRaw(std::span<const T> values, std::string& out) {
  out.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}
void AppendRaw(const std::vector<float>& values, std::string& out) { AppendRaw(std::span(values), out); }
void AppendRaw(const PackedMatrix& matrix, std::string& out) {
  if (!matrix.empty()) AppendRaw(std::span(matrix.panel(0), matrix.bytes()), out);
}
void AppendRaw(const MlpWeights& mlp, std::string& out) {
  for (const PackedMatrix* matrix : {&mlp.gate, &mlp.up, &mlp.down}) AppendRaw(*matrix, out);
  for (const std::vector<float>* bias : {&mlp.gate_bias, &mlp.up_bias, &mlp.down_bias}) AppendRaw(*bias, out);
}

/// Every byte that is held.
std::string RawBytes(const WholeModel& model) {
  std::string out;
  const DenseWeights& dense = model.dense;
  AppendRaw(std::span(dense.embedding), out);
  AppendRaw(dense.head, out);
  for (const auto* vector :
       {&dense.encoder_norm, &dense.final_norm, &dense.encoder_relative_bias, &dense.relative_bias}) {
    AppendRaw(*vector, out);
  }
  for (const LayerWeights& layer : dense.layers) {
    const AttentionWeights& w = layer.attention;
    for (const auto* matrix : {&w.projection, &w.out, &w.query_up, &layer.gate, &layer.shared_gate}) {
      AppendRaw(*matrix, out);
    }
    for (const auto* vector :
         {&layer.attention_norm, &layer.ffn_norm, &w.projection_bias, &w.query_norm, &w.key_norm, &w.sinks, &w.out_bias,
          &w.query_down_norm, &w.kv_down_norm, &layer.gate_bias, &layer.correction_bias}) {
      AppendRaw(*vector, out);
    }
    for (const PackedMatrix& matrix : w.key_up) AppendRaw(matrix, out);
    for (const PackedMatrix& matrix : w.value_up) AppendRaw(matrix, out);
    AppendRaw(layer.mlp, out);
    if (!layer.cross) continue;
    AppendRaw(layer.cross->norm, out);
    for (const auto* matrix : {&layer.cross->query, &layer.cross->key_value, &layer.cross->out}) {
      AppendRaw(*matrix, out);
    }
  }
  for (const auto& layer : model.experts) {
    for (const MlpWeights& expert : layer) AppendRaw(expert, out);
  }
  return out;
}

std::uint64_t Product(const std::vector<std::int64_t>& shape) {
  std::uint64_t product = 1;
  for (const std::int64_t dim : shape) product *= static_cast<std::uint64_t>(dim);
  return product;
}

Quantised MethodOf(const json& config) {
  const json& text = TextConfig(config);
  if (!text.contains("quantization_config")) return Quantised::kNever;
  return text["quantization_config"]["quant_method"] == "fp8" ? Quantised::kFp8 : Quantised::kMxfp4;
}

/// What holds all values of these exactly; blocks of U8 with their scales fit into BF16, FP8 times a scale needs F32.
WeightType ExactType(std::set<std::string> dtypes) {
  if (dtypes.erase("U8") > 0) dtypes.insert("BF16");
  if (dtypes.size() > 1) return WeightType::kF32;
  if (dtypes.contains("BF16")) return WeightType::kBf16;
  return dtypes.contains("F16") ? WeightType::kF16 : WeightType::kF32;
}

/// One random model of a family.
class FamilyModels : public ::testing::TestWithParam<std::string_view> {
 protected:
  /// Calls check(json, config, made-up weights in f32) for each.
  template <typename Check>
  void ForEachModel(Check&& check) {
    for (int i = 0; i < kModelsOfAFamily; ++i) {
      random_.seed(1000 + static_cast<std::uint64_t>(i));
      const json text = MakeRandomConfig(GetParam(), random_);
      SCOPED_TRACE(text.dump());
      const Result<ModelConfig> config = ParseModelConfig(text.dump(), "config.json");
      ASSERT_TRUE(config.ok()) << config.status().message();
      EXPECT_THAT(config->warnings, ::testing::IsEmpty());
      EXPECT_TRUE(config->servable);
      const Result<WholeModel> model = LoadWhole(*config, made_up_, WeightType::kF32, pool_);
      ASSERT_TRUE(model.ok()) << model.status().message();
      ASSERT_NO_FATAL_FAILURE(check(text, *config, *model));
      if (HasFailure()) return;
    }
  }

  std::mt19937_64 random_;
  const Checkpoint made_up_ = Checkpoint::MadeUp("any");
  ThreadPool pool_{2};
};

TEST_P(FamilyModels, AccountantCountsWhatIsHeld) {
  ForEachModel([&](const json&, const ModelConfig& config, const WholeModel& model) {
    const ParameterCount count = CountParameters(config);
    HeldCount held = CountHeld(config, model);
    held.of(ModelPart::kAttention) -= FilledBiases(config);
    std::uint64_t total = 0;
    for (std::size_t part = 0; part < kNumModelParts; ++part) {
      EXPECT_EQ(count.by_part[part], held.parts[part]) << Name(static_cast<ModelPart>(part));
      total += held.parts[part];
    }
    EXPECT_EQ(count.total, total);
    EXPECT_EQ(model.dense.parameters, total - held.of(ModelPart::kExperts));
    ASSERT_EQ(count.parameters_each.size(), model.experts.size());
    for (std::size_t l = 0; l < model.experts.size(); ++l) {
      EXPECT_EQ(count.parameters_each[l], model.experts[l].empty() ? 0 : model.experts[l].front().parameters());
    }
  });
}

TEST_P(FamilyModels, AccountantCountsWhatIsPublished) {
  ForEachModel([&](const json& text, const ModelConfig& config, const WholeModel& model) {
    const json& inner = TextConfig(text);
    const ParameterCount count = CountParameters(config);
    std::array<std::uint64_t, kNumModelParts> parts{};
    std::uint64_t total = 0;
    for (const PublishedTensor& tensor : PublishedTensors(text, model)) {
      parts[static_cast<std::size_t>(tensor.part)] += Product(tensor.shape);
      total += Product(tensor.shape);
    }
    EXPECT_EQ(count.by_part, parts);
    EXPECT_EQ(count.total, total);
    // A token visits k of all experts, which are of one size, in every sparse layer; Switch's one.
    const std::uint64_t experts = parts[static_cast<std::size_t>(ModelPart::kExperts)];
    std::uint64_t active = total;
    if (experts > 0) {
      std::uint64_t of = 0;
      for (const char* key : {"num_local_experts", "num_experts", "n_routed_experts"}) of += inner.value(key, 0u);
      active -= experts / of * (of - inner.value("num_experts_per_tok", 1u));
    }
    EXPECT_EQ(count.active, active);
    const bool tied = count.part(ModelPart::kHead) == 0;
    EXPECT_EQ(count.active_without_embedding, tied ? active : active - parts[0]);
  });
}

TEST_P(FamilyModels, BytesHeldAreThoseForetoldAndPadding) {
  ForEachModel([&](const json&, const ModelConfig& config, const WholeModel&) {
    const WeightType type = kTypes[random_() % 3];
    const Result<WholeModel> model = LoadWhole(config, made_up_, type, pool_);
    ASSERT_TRUE(model.ok()) << model.status().message();
    const HeldCount held = CountHeld(config, *model);
    EXPECT_EQ(model->dense.bytes, DenseBytes(config, type) + held.padding_bytes + 4 * FilledBiases(config));
    std::uint64_t experts = 0;
    std::uint64_t foretold = 0;
    for (std::size_t l = 0; l < model->experts.size(); ++l) {
      for (const MlpWeights& expert : model->experts[l]) {
        experts += expert.bytes();
        foretold += ExpertBytes(config, static_cast<int>(l), type);
      }
    }
    EXPECT_EQ(experts, foretold + held.expert_padding);
  });
}

TEST_P(FamilyModels, MadeUpWeightsAreTheSameHoweverTheyAreLoaded) {
  ThreadPool one(1);
  ThreadPool three(3);
  const Checkpoint other = Checkpoint::MadeUp("another identity");
  ForEachModel([&](const json&, const ModelConfig& config, const WholeModel&) {
    const WeightType type = kTypes[random_() % 3];
    const Result<WholeModel> first = LoadWhole(config, made_up_, type, one);
    const Result<WholeModel> second = LoadWhole(config, other, type, three, /*backwards=*/true);
    ASSERT_TRUE(first.ok() && second.ok());
    const std::string bytes = RawBytes(*first);
    EXPECT_GT(bytes.size(), first->dense.bytes / 2);
    EXPECT_TRUE(bytes == RawBytes(*second));
  });
}

TEST_P(FamilyModels, PublishedCheckpointLoadsWithItsValues) {
  ForEachModel([&](const json& text, const ModelConfig& config, const WholeModel& model) {
    const Quantised method = MethodOf(text);
    const bool all = OneIn(random_, 2);
    std::vector<PublishedTensor> published = PublishedTensors(text, model);
    std::vector<TestTensor> files;
    std::uint64_t stored_elements = 0;
    std::set<std::string> dtypes;  // of large matrices
    const bool made_up = OneIn(random_, 2);
    for (PublishedTensor& tensor : published) {
      // Other numbers show what made-up ones cannot: two weights of one name and place would be equal.
      if (!made_up) {
        for (float& value : tensor.values) value = static_cast<float>(Uniform(random_, -32768, 32767)) / 8192;
      }
      // Blocks come for a whole model, FP8 tensor by tensor.
      const bool quantise = method == Quantised::kMxfp4 || all || OneIn(random_, 2);
      StoredTensor stored = Store(tensor, quantise ? method : Quantised::kNever, random_);
      for (TestTensor& file : stored.files) {
        stored_elements += Product(file.shape);
        files.push_back(std::move(file));
      }
      tensor.values = std::move(stored.values);
      const bool large = tensor.shape.size() > 1 && tensor.part != ModelPart::kRouter &&
                         !tensor.name.ends_with("_bias") && !tensor.name.ends_with("shared_expert_gate.weight") &&
                         !tensor.name.ends_with("relative_attention_bias.weight");
      if (large) dtypes.insert(files.back().dtype);
    }
    const TemporaryFolder folder;
    WriteCheckpoint(folder, std::move(files), random_);
    const Result<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
    const Result<CheckedTensors> checked = CheckTensors(config, *checkpoint);
    ASSERT_TRUE(checked.ok()) << checked.status().message();
    EXPECT_EQ(checked->exact_type, ExactType(dtypes));
    if (method != Quantised::kFp8 || all) {
      ModelConfig main = config;
      main.prediction_layers = 0;  // these files have none
      EXPECT_EQ(CountParameters(main).checkpoint.total(), stored_elements);
    }

    const Result<WholeModel> loaded = LoadWhole(config, *checkpoint, WeightType::kF32, pool_);
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    const std::vector<PublishedTensor> read = PublishedTensors(text, *loaded);
    ASSERT_EQ(read.size(), published.size());
    for (std::size_t i = 0; i < read.size(); ++i) {
      EXPECT_TRUE(read[i].values == published[i].values) << read[i].name;
    }
  });
}

std::string TensorError(const ModelConfig& config, const std::vector<TestTensor>& tensors) {
  const TemporaryFolder folder;
  WriteHeaders(folder, tensors);
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
  if (!checkpoint.ok()) return checkpoint.status().message();
  const Result<CheckedTensors> checked = CheckTensors(config, *checkpoint);
  return checked.ok() ? "no error" : checked.status().message();
}

TEST_P(FamilyModels, CheckpointWithOneWrongTensorIsRefusedByItsName) {
  ForEachModel([&](const json& text, const ModelConfig& config, const WholeModel& model) {
    std::vector<TestTensor> tensors;
    for (const PublishedTensor& tensor : PublishedTensors(text, model)) {
      for (TestTensor& file : Store(tensor, MethodOf(text), random_).files) tensors.push_back(std::move(file));
    }
    ASSERT_EQ(TensorError(config, tensors), "no error");
    for (int i = 0; i < 4; ++i) {
      const std::size_t which = random_() % tensors.size();
      const std::string name = tensors[which].name;

      std::vector<TestTensor> fewer = tensors;
      fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(which));
      EXPECT_EQ(TensorError(config, fewer), Cat("tensor ", name, " is missing"));

      std::vector<TestTensor> reshaped = tensors;
      std::vector<std::int64_t>& shape = reshaped[which].shape;
      const std::size_t dim = random_() % shape.size();
      switch (random_() % 4) {
        case 0: shape[dim] += 1; break;
        case 1: shape[dim] -= 1; break;
        case 2: shape.insert(shape.begin(), 1); break;
        default: shape.push_back(2); break;
      }
      EXPECT_THAT(TensorError(config, reshaped), HasSubstr(Cat("tensor ", name, " has shape ")));

      std::vector<TestTensor> retyped = tensors;
      retyped[which].dtype = retyped[which].dtype == "U8" || retyped[which].dtype == "F8_E4M3" ? "I8" : "F8_E5M2";
      EXPECT_THAT(TensorError(config, retyped), HasSubstr(Cat("tensor ", name, " has dtype ")));

      std::vector<TestTensor> more = tensors;
      more.push_back(tensors[which]);
      std::string& added = more.back().name;
      added.insert(random_() % (added.size() + 1), 1, static_cast<char>('a' + random_() % 26));
      EXPECT_THAT(TensorError(config, more), HasSubstr(Cat("tensor ", added, " is unknown to model_type ")));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(All, FamilyModels, ::testing::ValuesIn(RandomModelTypes()),
                         [](const auto& parameter) { return std::string(parameter.param); });

TEST(FamilyProperty, EveryServedFamilyIsThere) {
  std::vector<std::string_view> served;
  for (const Family* family : Families()) {
    if (family->servable) served.push_back(family->model_type);
  }
  EXPECT_THAT(RandomModelTypes(), ::testing::UnorderedElementsAreArray(served));
}

}  // namespace
}  // namespace moe
