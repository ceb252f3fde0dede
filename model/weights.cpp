#include "model/weights.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "model/json.h"
#include "model/parameter_count.h"
#include "model/tensor_specs.h"

namespace moe {
namespace {

/// The stored types that the layers can be computed from; others (F8_E4M3, U8, …) need a family that knows their
/// scales.
std::optional<WeightType> StoredType(std::string_view dtype) {
  if (dtype == "F32") return WeightType::kF32;
  if (dtype == "BF16") return WeightType::kBf16;
  if (dtype == "F16") return WeightType::kF16;
  return std::nullopt;
}

/// That the tensor is there, and has the shape and a type that can be used.
Status CheckTensor(const Checkpoint& checkpoint, const TensorSpec& spec) {
  MOE_ASSIGN_OR_RETURN(const TensorInfo* info, checkpoint.Find(spec.name));
  const std::string& file = checkpoint.file_name(*info);
  if (info->shape != spec.shape) {
    return InvalidArgument(file, ": tensor ", spec.name, " has shape ", ShapeText(info->shape),
                           ", but config.json describes ", ShapeText(spec.shape));
  }
  if (!StoredType(info->dtype).has_value()) {
    return InvalidArgument(file, ": tensor ", spec.name, " has dtype ", info->dtype, ", not F32, BF16 or F16");
  }
  return Status::Ok();
}

/// A mapped tensor as the kernels take it: (outputs, inputs), or one row for a vector.
struct StoredTensor {
  MappedTensor mapping;
  WeightView view;
};

Result<StoredTensor> MapTensor(const Checkpoint& checkpoint, const TensorSpec& spec) {
  MOE_RETURN_IF_ERROR(CheckTensor(checkpoint, spec));
  MOE_ASSIGN_OR_RETURN(const TensorInfo* info, checkpoint.Find(spec.name));
  StoredTensor tensor;
  MOE_ASSIGN_OR_RETURN(tensor.mapping, checkpoint.Map(spec.name));
  tensor.view = {.type = *StoredType(info->dtype),
                 .data = tensor.mapping.data(),
                 .rows = spec.shape.size() == 1 ? 1 : static_cast<std::size_t>(spec.shape.front()),
                 .cols = static_cast<std::size_t>(spec.shape.back())};
  return tensor;
}

const TensorSpec* FindSpec(std::span<const TensorSpec> specs, TensorRole role, bool bias) {
  const auto it = std::ranges::find_if(specs, [&](const TensorSpec& s) { return s.role == role && s.bias == bias; });
  return it == specs.end() ? nullptr : &*it;
}

/// The matrices of `roles`, one below the other. Packed straight from the mappings, which end here.
Status LoadMatrix(const Checkpoint& checkpoint, std::span<const TensorSpec> specs,
                  std::initializer_list<TensorRole> roles, WeightType type, PackedMatrix& out) {
  std::vector<StoredTensor> tensors;
  std::vector<WeightView> views;
  for (const TensorRole role : roles) {
    const TensorSpec* spec = FindSpec(specs, role, false);
    MOE_CHECK(spec != nullptr);
    MOE_ASSIGN_OR_RETURN(StoredTensor tensor, MapTensor(checkpoint, *spec));
    views.push_back(tensor.view);
    tensors.push_back(std::move(tensor));
  }
  out = PackedMatrix::Pack(views, type);
  return Status::Ok();
}

/// The vectors of `roles` (norms, or the biases of these matrices), one after the other, in fp32; none: empty.
Status LoadVector(const Checkpoint& checkpoint, std::span<const TensorSpec> specs,
                  std::initializer_list<TensorRole> roles, bool bias, std::vector<float>& out) {
  for (const TensorRole role : roles) {
    const TensorSpec* spec = FindSpec(specs, role, bias);
    if (spec == nullptr) continue;
    MOE_ASSIGN_OR_RETURN(const StoredTensor tensor, MapTensor(checkpoint, *spec));
    for (std::size_t i = 0; i < tensor.view.cols; ++i) out.push_back(tensor.view.at(0, i));
  }
  return Status::Ok();
}

Status LoadMlp(const Checkpoint& checkpoint, std::span<const TensorSpec> specs, WeightType type, MlpWeights& out) {
  const std::initializer_list<TensorRole> gate_up = {TensorRole::kMlpGate, TensorRole::kMlpUp};
  MOE_RETURN_IF_ERROR(LoadMatrix(checkpoint, specs, gate_up, type, out.gate_up));
  MOE_RETURN_IF_ERROR(LoadMatrix(checkpoint, specs, {TensorRole::kMlpDown}, type, out.down));
  MOE_RETURN_IF_ERROR(LoadVector(checkpoint, specs, gate_up, true, out.gate_up_bias));
  return LoadVector(checkpoint, specs, {TensorRole::kMlpDown}, true, out.down_bias);
}

Status LoadAttention(const Checkpoint& checkpoint, std::span<const TensorSpec> specs, WeightType type,
                     AttentionWeights& out) {
  const std::initializer_list<TensorRole> qkv = {TensorRole::kQuery, TensorRole::kKey, TensorRole::kValue};
  MOE_RETURN_IF_ERROR(LoadMatrix(checkpoint, specs, qkv, type, out.qkv));
  MOE_RETURN_IF_ERROR(LoadMatrix(checkpoint, specs, {TensorRole::kAttentionOut}, type, out.out));
  MOE_RETURN_IF_ERROR(LoadVector(checkpoint, specs, qkv, true, out.qkv_bias));
  return LoadVector(checkpoint, specs, {TensorRole::kAttentionOut}, true, out.out_bias);
}

Status LoadNormsAndFfn(const ModelConfig& config, const Checkpoint& checkpoint, int index, WeightType type,
                       LayerWeights& out) {
  const std::vector<TensorSpec> specs = LayerTensors(config, index);
  MOE_RETURN_IF_ERROR(LoadVector(checkpoint, specs, {TensorRole::kAttentionNorm}, false, out.attention_norm));
  MOE_RETURN_IF_ERROR(LoadVector(checkpoint, specs, {TensorRole::kFfnNorm}, false, out.ffn_norm));
  if (!config.layers[static_cast<std::size_t>(index)].moe.has_value()) {
    return LoadMlp(checkpoint, specs, type, out.dense_mlp);
  }
  // The gate is fp32 whatever the weights are: a wrong route costs more than the few bytes.
  return LoadMatrix(checkpoint, specs, {TensorRole::kRouter}, WeightType::kF32, out.gate);
}

/// Row-major, converted to `type`.
std::vector<std::byte> ConvertRows(const WeightView& source, WeightType type) {
  const std::size_t element_bytes = BytesPerWeight(type);
  std::vector<std::byte> out(source.rows * source.cols * element_bytes);
  if (source.type == type) {
    std::memcpy(out.data(), source.data, out.size());
    return out;
  }
  std::byte* next = out.data();
  for (std::size_t row = 0; row < source.rows; ++row) {
    for (std::size_t col = 0; col < source.cols; ++col, next += element_bytes) {
      const float value = source.at(row, col);
      if (type == WeightType::kF32) {
        std::memcpy(next, &value, sizeof(value));
      } else {
        const std::uint16_t bits = type == WeightType::kBf16 ? F32ToBf16(value) : F32ToF16(value);
        std::memcpy(next, &bits, sizeof(bits));
      }
    }
  }
  return out;
}

std::string HeadName(const ModelConfig& config) { return config.tensor_names.head + ".weight"; }

/// Files of tied models sometimes store the table twice. The second is not used, so it must be the same: its form here,
/// its bytes when the embedding is loaded.
Status CheckRepeatedHeadForm(const ModelConfig& config, const Checkpoint& checkpoint) {
  MOE_ASSIGN_OR_RETURN(const TensorInfo* head, checkpoint.Find(HeadName(config)));
  MOE_ASSIGN_OR_RETURN(const TensorInfo* embedding, checkpoint.Find(config.tensor_names.embedding + ".weight"));
  if (head->shape == embedding->shape && head->dtype == embedding->dtype) return Status::Ok();
  return InvalidArgument(checkpoint.file_name(*head), ": tensor ", HeadName(config), " has shape ",
                         ShapeText(head->shape), " and dtype ", head->dtype, ", unlike the embedding that it repeats, ",
                         ShapeText(embedding->shape), " and ", embedding->dtype, " (tie_word_embeddings is true)");
}

Status CheckRepeatedHead(const ModelConfig& config, const Checkpoint& checkpoint, const WeightView& embedding) {
  const std::string name = HeadName(config);
  if (!config.tied_embeddings || !checkpoint.tensors().contains(name)) return Status::Ok();
  MOE_ASSIGN_OR_RETURN(const MappedTensor head, checkpoint.Map(name));
  if (std::memcmp(head.data(), embedding.data, head.bytes()) != 0) {
    return InvalidArgument("tensor ", name, " differs from the embedding, though tie_word_embeddings is true");
  }
  return Status::Ok();
}

Status LoadEmbedding(const ModelConfig& config, const Checkpoint& checkpoint, DenseWeights& out) {
  const std::vector<TensorSpec> specs = OuterTensors(config);
  MOE_ASSIGN_OR_RETURN(const StoredTensor embedding,
                       MapTensor(checkpoint, *FindSpec(specs, TensorRole::kEmbedding, false)));
  MOE_RETURN_IF_ERROR(CheckRepeatedHead(config, checkpoint, embedding.view));
  out.embedding = ConvertRows(embedding.view, out.type);
  return LoadVector(checkpoint, specs, {TensorRole::kFinalNorm}, false, out.final_norm);
}

Status LoadHead(const ModelConfig& config, const Checkpoint& checkpoint, DenseWeights& out) {
  const TensorRole role = config.tied_embeddings ? TensorRole::kEmbedding : TensorRole::kHead;
  return LoadMatrix(checkpoint, OuterTensors(config), {role}, out.type, out.head);
}

std::uint64_t FloatBytes(const std::vector<float>& values) { return values.size() * sizeof(float); }

std::uint64_t BytesHeld(const DenseWeights& weights) {
  std::uint64_t bytes = weights.embedding.size() + FloatBytes(weights.final_norm) + weights.head.bytes();
  for (const LayerWeights& layer : weights.layers) {
    bytes +=
        FloatBytes(layer.attention_norm) + FloatBytes(layer.ffn_norm) + layer.gate.bytes() + layer.dense_mlp.bytes();
    bytes += layer.attention.qkv.bytes() + layer.attention.out.bytes() + FloatBytes(layer.attention.qkv_bias) +
             FloatBytes(layer.attention.out_bias);
  }
  return bytes;
}

bool IsIgnorable(const ModelConfig& config, const std::string& name) {
  return std::ranges::any_of(config.tensor_names.ignorable,
                             [&](const std::string& pattern) { return MatchesPattern(name, pattern); });
}

/// A part of loading that touches nothing that another one touches.
using Job = std::function<Status()>;

Status RunJobs(const std::vector<Job>& jobs, ThreadPool& pool) {
  std::vector<Status> statuses(jobs.size());
  pool.ParallelFor(jobs.size(), [&](std::size_t i, int) { statuses[i] = jobs[i](); });
  const auto failed = std::ranges::find_if(statuses, [](const Status& status) { return !status.ok(); });
  return failed == statuses.end() ? Status::Ok() : *failed;
}

}  // namespace

std::uint64_t MlpWeights::parameters() const {
  return std::uint64_t{gate_up.rows()} * gate_up.cols() + std::uint64_t{down.rows()} * down.cols() +
         gate_up_bias.size() + down_bias.size();
}

std::uint64_t MlpWeights::bytes() const {
  return gate_up.bytes() + down.bytes() + FloatBytes(gate_up_bias) + FloatBytes(down_bias);
}

Status CheckTensors(const ModelConfig& config, const Checkpoint& checkpoint) {
  std::set<std::string, std::less<>> known;
  const auto check = [&](const std::vector<TensorSpec>& specs) -> Status {
    for (const TensorSpec& spec : specs) {
      MOE_RETURN_IF_ERROR(CheckTensor(checkpoint, spec));
      known.insert(spec.name);
    }
    return Status::Ok();
  };
  MOE_RETURN_IF_ERROR(check(OuterTensors(config)));
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    MOE_RETURN_IF_ERROR(check(LayerTensors(config, layer)));
    const auto& moe = config.layers[static_cast<std::size_t>(layer)].moe;
    for (int expert = 0; moe.has_value() && expert < moe->gate.num_experts; ++expert) {
      MOE_RETURN_IF_ERROR(check(ExpertTensors(config, layer, expert)));
    }
  }
  if (config.tied_embeddings && checkpoint.tensors().contains(HeadName(config))) {
    MOE_RETURN_IF_ERROR(CheckRepeatedHeadForm(config, checkpoint));
    known.insert(HeadName(config));
  }
  for (const auto& [name, info] : checkpoint.tensors()) {
    if (known.contains(name) || IsIgnorable(config, name)) continue;
    return InvalidArgument(checkpoint.file_name(info), ": tensor ", Printable(name), " is unknown to model_type ",
                           config.model_type, " with this config.json");
  }
  return Status::Ok();
}

Result<DenseWeights> LoadDenseWeights(const ModelConfig& config, const Checkpoint& checkpoint, WeightType type,
                                      ThreadPool& pool) {
  MOE_RETURN_IF_ERROR(CheckTensors(config, checkpoint));
  DenseWeights weights;
  weights.type = type;
  weights.layers.resize(config.layers.size());
  std::vector<Job> jobs;
  jobs.push_back([&] { return LoadEmbedding(config, checkpoint, weights); });
  jobs.push_back([&] { return LoadHead(config, checkpoint, weights); });
  for (int i = 0; i < config.num_layers(); ++i) {
    LayerWeights* layer = &weights.layers[static_cast<std::size_t>(i)];
    jobs.push_back(
        [&, i, layer] { return LoadAttention(checkpoint, LayerTensors(config, i), type, layer->attention); });
    jobs.push_back([&, i, layer] { return LoadNormsAndFfn(config, checkpoint, i, type, *layer); });
  }
  MOE_RETURN_IF_ERROR(RunJobs(jobs, pool));
  weights.parameters = CountParameters(config).dense();
  weights.bytes = BytesHeld(weights);
  return weights;
}

Result<MlpWeights> LoadExpertWeights(const ModelConfig& config, const Checkpoint& checkpoint, int layer, int expert,
                                     WeightType type) {
  if (layer < 0 || layer >= config.num_layers() || !config.layers[static_cast<std::size_t>(layer)].moe.has_value()) {
    return InvalidArgument("layer ", layer, " is not a sparse layer of the model");
  }
  const int num_experts = config.layers[static_cast<std::size_t>(layer)].moe->gate.num_experts;
  if (expert < 0 || expert >= num_experts) {
    return InvalidArgument("expert ", expert, " is not one of the ", num_experts, " experts of layer ", layer);
  }
  MlpWeights weights;
  MOE_RETURN_IF_ERROR(LoadMlp(checkpoint, ExpertTensors(config, layer, expert), type, weights));
  return weights;
}

}  // namespace moe
