#include "model/weights.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "model/parameter_count.h"
#include "model/stored_weight.h"
#include "model/tensor_check.h"
#include "model/tensor_specs.h"
#include "model/weight_cache.h"

namespace moe {
namespace {

using Roles = std::vector<TensorRole>;

/// Names of a cache's folders and files, so that a listing has them in order.
std::string ThreeDigits(int number) {
  const std::string digits = std::to_string(number);
  return std::string(3 - std::min<std::size_t>(3, digits.size()), '0') + digits;
}
std::string LayerFolder(int layer) { return "layer-" + ThreeDigits(layer) + "/"; }

/// The weights of one layer, expert or of the outside, where they are read from and what they become.
struct Source {
  const Checkpoint& checkpoint;
  const WeightForm& form;
  std::vector<TensorSpec> specs;
  std::string folder = {};  // of a cache: "layer-003/"

  const TensorSpec* Find(TensorRole role, bool bias = false) const {
    const auto it = std::ranges::find_if(specs, [&](const TensorSpec& s) { return s.role == role && s.bias == bias; });
    return it == specs.end() ? nullptr : &*it;
  }
};

/// A matrix to be loaded: the matrices of `roles` that the model has, one below the other.
struct Wanted {
  Roles roles;
  PackedMatrix* out = nullptr;
  std::optional<WeightType> type = {};  // absent: the one that these weights are held in

  /// Without parts where the model has none of them.
  MatrixRecipe Recipe(const Source& source) const {
    MatrixRecipe recipe;
    for (const TensorRole role : roles) {
      if (const TensorSpec* spec = source.Find(role)) recipe.parts.push_back(*spec);
    }
    if (!recipe.parts.empty()) recipe.type = type.value_or(HeldType(recipe.parts.front(), source.form.types));
    return recipe;
  }
};

/// Packed straight from the mappings, which end here.
Status Pack(const Checkpoint& checkpoint, const MatrixRecipe& recipe, PackedMatrix& out) {
  std::vector<StoredMatrix> parts;
  std::vector<WeightView> views;
  for (const TensorSpec& spec : recipe.parts) {
    MOE_ASSIGN_OR_RETURN(StoredMatrix part, StoredMatrix::Map(checkpoint, spec));
    if (const auto view = part.plain()) views.push_back(*view);
    parts.push_back(std::move(part));
  }
  if (views.size() == parts.size()) {
    out = PackedMatrix::Pack(views, recipe.type);
    return Status::Ok();
  }
  const PackedShape shape = recipe.shape();
  out = PackedMatrix::Pack(shape.rows, shape.cols, recipe.type, [&](std::size_t first, MatrixView<float> block) {
    std::size_t done = 0;
    std::size_t begin = 0;  // of the part among all rows
    for (const StoredMatrix& part : parts) {
      const std::size_t at = first + done;
      const std::size_t end = begin + part.rows();
      if (at < end && done < block.rows()) {
        const std::size_t count = std::min(end - at, block.rows() - done);
        part.ReadRows(at - begin, block.Rows(done, count));
        done += count;
      }
      begin = end;
    }
  });
  return Status::Ok();
}

/// All matrices of one unit of a cache, which are held in one type: from there, or packed and kept there.
Status LoadMatrices(const Source& source, const std::string& unit, const std::vector<Wanted>& all) {
  std::vector<MatrixRecipe> recipes;
  std::vector<PackedMatrix*> outs;
  for (const Wanted& wanted : all) {
    MatrixRecipe recipe = wanted.Recipe(source);
    if (recipe.parts.empty()) continue;
    recipes.push_back(std::move(recipe));
    outs.push_back(wanted.out);
  }
  if (recipes.empty()) return Status::Ok();
  WeightCache* const cache = IsQuantized(recipes.front().type) ? source.form.cache : nullptr;
  if (cache != nullptr) {
    std::vector<PackedMatrix> kept = cache->Read(source.folder + unit, recipes);
    for (std::size_t i = 0; i < kept.size(); ++i) *outs[i] = std::move(kept[i]);
    if (!kept.empty()) return Status::Ok();
  }
  for (std::size_t i = 0; i < recipes.size(); ++i) MOE_RETURN_IF_ERROR(Pack(source.checkpoint, recipes[i], *outs[i]));
  if (cache != nullptr)
    cache->Write(source.folder + unit, recipes, std::vector<const PackedMatrix*>(outs.begin(), outs.end()));
  return Status::Ok();
}

/// One matrix that is never quantized, so that no cache has it.
Status LoadMatrix(const Source& source, TensorRole role, PackedMatrix& out) {
  const TensorSpec* const spec = source.Find(role);
  if (spec == nullptr) return Status::Ok();
  return Pack(source.checkpoint, {.parts = {*spec}, .type = HeldType(*spec, source.form.types)}, out);
}

/// The vectors of `roles`, one after the other; those that the model does not have take no room.
Status LoadVectors(const Source& source, const Roles& roles, std::vector<float>& out, bool bias = false) {
  for (const TensorRole role : roles) {
    const TensorSpec* spec = source.Find(role, bias);
    if (spec == nullptr) continue;
    MOE_ASSIGN_OR_RETURN(const std::vector<float> values, ReadVector(source.checkpoint, *spec));
    out.insert(out.end(), values.begin(), values.end());
  }
  return Status::Ok();
}

/// The biases of LoadMatrices' matrices: zeros for one that has none while another has; empty when none has.
Status LoadBiases(const Source& source, const Roles& roles, std::vector<float>& out) {
  if (std::ranges::none_of(roles, [&](TensorRole role) { return source.Find(role, true) != nullptr; })) {
    return Status::Ok();
  }
  for (const TensorRole role : roles) {
    const TensorSpec* matrix = source.Find(role);
    if (matrix == nullptr) continue;
    if (source.Find(role, true) != nullptr) {
      MOE_RETURN_IF_ERROR(LoadVectors(source, {role}, out, true));
    } else {
      out.resize(out.size() + static_cast<std::size_t>(matrix->shape[0]), 0.0f);
    }
  }
  return Status::Ok();
}

Status LoadMlp(const Source& source, const std::string& unit, MlpWeights& out) {
  MOE_RETURN_IF_ERROR(LoadMatrices(
      source, unit,
      {{{TensorRole::kMlpGate}, &out.gate}, {{TensorRole::kMlpUp}, &out.up}, {{TensorRole::kMlpDown}, &out.down}}));
  MOE_RETURN_IF_ERROR(LoadBiases(source, {TensorRole::kMlpGate}, out.gate_bias));
  MOE_RETURN_IF_ERROR(LoadBiases(source, {TensorRole::kMlpUp}, out.up_bias));
  return LoadBiases(source, {TensorRole::kMlpDown}, out.down_bias);
}

/// Splits kv_b_proj, per head nope_dim rows of keys, then value_dim of values. A score is q · (K c) = (Kᵀ q) · c, so
/// keys are packed transposed.
Status LoadLatentUp(const Source& source, const AttentionSpec& spec, AttentionWeights& out) {
  const TensorSpec& tensor = *source.Find(TensorRole::kKvUp);
  const WeightType type = HeldType(tensor, source.form.types);
  MOE_ASSIGN_OR_RETURN(const StoredMatrix up, StoredMatrix::Map(source.checkpoint, tensor));
  const auto nope = static_cast<std::size_t>(spec.latent->nope_dim);
  const auto value = static_cast<std::size_t>(spec.latent->value_dim);
  const std::size_t rank = up.cols();
  std::vector<float> keys(nope * rank);
  const MatrixView<float> key_rows(keys.data(), nope, rank);
  for (std::size_t head = 0; head < static_cast<std::size_t>(spec.num_heads); ++head) {
    const std::size_t first = head * (nope + value);
    up.ReadRows(first, key_rows);
    out.key_up.push_back(PackedMatrix::Pack(rank, nope, type, [&](std::size_t row, MatrixView<float> block) {
      for (std::size_t i = 0; i < block.rows(); ++i) {
        for (std::size_t j = 0; j < nope; ++j) block(i, j) = key_rows(j, row + i);
      }
    }));
    out.value_up.push_back(PackedMatrix::Pack(
        value, rank, type, [&](std::size_t row, MatrixView<float> block) { up.ReadRows(first + nope + row, block); }));
  }
  return Status::Ok();
}

Status LoadAttention(const Source& source, const AttentionSpec& spec, AttentionWeights& out) {
  // Of these, a layer has either its queries whole or their low rank, and either keys and values or their latent.
  const Roles first = {TensorRole::kQueryDown, TensorRole::kQuery, TensorRole::kKey, TensorRole::kValue,
                       TensorRole::kKvDown};
  MOE_RETURN_IF_ERROR(LoadMatrices(
      source, "attention",
      {{first, &out.projection}, {{TensorRole::kAttentionOut}, &out.out}, {{TensorRole::kQueryUp}, &out.query_up}}));
  MOE_RETURN_IF_ERROR(LoadBiases(source, first, out.projection_bias));
  MOE_RETURN_IF_ERROR(LoadVectors(source, {TensorRole::kQueryNorm}, out.query_norm));
  MOE_RETURN_IF_ERROR(LoadVectors(source, {TensorRole::kKeyNorm}, out.key_norm));
  MOE_RETURN_IF_ERROR(LoadVectors(source, {TensorRole::kSinks}, out.sinks));
  MOE_RETURN_IF_ERROR(LoadBiases(source, {TensorRole::kAttentionOut}, out.out_bias));
  if (!spec.latent) return Status::Ok();
  MOE_RETURN_IF_ERROR(LoadVectors(source, {TensorRole::kQueryDownNorm}, out.query_down_norm));
  MOE_RETURN_IF_ERROR(LoadVectors(source, {TensorRole::kKvDownNorm}, out.kv_down_norm));
  return LoadLatentUp(source, spec, out);
}

Status LoadCrossAttention(const Source& source, CrossAttentionWeights& out) {
  MOE_RETURN_IF_ERROR(LoadVectors(source, {TensorRole::kCrossNorm}, out.norm));
  return LoadMatrices(source, "cross",
                      {{{TensorRole::kCrossQuery}, &out.query},
                       {{TensorRole::kCrossKey, TensorRole::kCrossValue}, &out.key_value},
                       {{TensorRole::kCrossOut}, &out.out}});
}

Status LoadNormsAndFfn(const Source& source, const LayerSpec& spec, LayerWeights& out) {
  MOE_RETURN_IF_ERROR(LoadVectors(source, {TensorRole::kAttentionNorm}, out.attention_norm));
  MOE_RETURN_IF_ERROR(LoadVectors(source, {TensorRole::kFfnNorm}, out.ffn_norm));
  if (spec.cross_attention) MOE_RETURN_IF_ERROR(LoadCrossAttention(source, out.cross.emplace()));
  MOE_RETURN_IF_ERROR(LoadMatrix(source, TensorRole::kRouter, out.gate));
  MOE_RETURN_IF_ERROR(LoadBiases(source, {TensorRole::kRouter}, out.gate_bias));
  MOE_RETURN_IF_ERROR(LoadVectors(source, {TensorRole::kCorrectionBias}, out.correction_bias));
  MOE_RETURN_IF_ERROR(LoadMatrix(source, TensorRole::kSharedRouter, out.shared_gate));
  return LoadMlp(source, "mlp", out.mlp);
}

/// Row-major, converted to `type`.
std::vector<std::byte> ConvertRows(const StoredMatrix& source, WeightType type) {
  const std::size_t row_bytes = source.cols() * BytesPerWeight(type);
  std::vector<std::byte> out(source.rows() * row_bytes);
  if (const auto view = source.plain(); view && view->type == type) {
    std::memcpy(out.data(), view->data, out.size());
    return out;
  }
  std::vector<float> row(source.cols());
  for (std::size_t r = 0; r < source.rows(); ++r) {
    source.ReadRows(r, MatrixView<float>(row.data(), 1, row.size()));
    StoreRow(row, type, std::span(out).subspan(r * row_bytes, row_bytes));
  }
  return out;
}

/// Copies of the embedding must be the same, since they are not read.
Status CheckCopies(const ModelConfig& config, const Checkpoint& checkpoint, const WeightView& embedding) {
  for (const std::string& name : EmbeddingCopies(config, checkpoint)) {
    MOE_ASSIGN_OR_RETURN(const MappedTensor copy, checkpoint.Map(name));
    if (std::memcmp(copy.data(), embedding.data, copy.bytes()) != 0) {
      return InvalidArgument(
          "tensor ", name, " differs from the embedding",
          config.tied_embeddings ? ", though tie_word_embeddings is true" : ", which is used for both");
    }
  }
  return Status::Ok();
}

Status LoadEmbedding(const ModelConfig& config, const Source& source, DenseWeights& out) {
  const TensorSpec& spec = *source.Find(TensorRole::kEmbedding);
  MOE_ASSIGN_OR_RETURN(const StoredMatrix embedding, StoredMatrix::Map(source.checkpoint, spec));
  if (const auto view = embedding.plain()) {
    MOE_RETURN_IF_ERROR(CheckCopies(config, source.checkpoint, *view));
  }
  out.embedding_type = HeldType(spec, source.form.types);
  out.embedding = ConvertRows(embedding, out.embedding_type);
  MOE_RETURN_IF_ERROR(LoadVectors(source, {TensorRole::kEncoderNorm}, out.encoder_norm));
  return LoadVectors(source, {TensorRole::kFinalNorm}, out.final_norm);
}

/// The relative biases of a stack, which belong to its first layer.
Status LoadRelativeBias(const ModelConfig& config, const Checkpoint& checkpoint, int layer, std::vector<float>& out) {
  const std::vector<TensorSpec> specs = LayerTensors(config, layer);
  const auto spec = std::ranges::find(specs, TensorRole::kRelativeBias, &TensorSpec::role);
  if (spec == specs.end()) return Status::Ok();
  MOE_ASSIGN_OR_RETURN(const StoredMatrix table, StoredMatrix::Map(checkpoint, *spec));
  out.resize(table.rows() * table.cols());
  table.ReadRows(0, MatrixView<float>(out.data(), table.rows(), table.cols()));
  return Status::Ok();
}

std::uint64_t Bytes(const std::vector<float>& values) { return values.size() * sizeof(float); }
std::uint64_t Bytes(const std::vector<PackedMatrix>& matrices) {
  std::uint64_t bytes = 0;
  for (const PackedMatrix& matrix : matrices) bytes += matrix.bytes();
  return bytes;
}

std::uint64_t Bytes(const AttentionWeights& w) {
  return w.projection.bytes() + Bytes(w.projection_bias) + Bytes(w.query_norm) + Bytes(w.key_norm) + Bytes(w.sinks) +
         w.out.bytes() + Bytes(w.out_bias) + Bytes(w.query_down_norm) + w.query_up.bytes() + Bytes(w.kv_down_norm) +
         Bytes(w.key_up) + Bytes(w.value_up);
}

std::uint64_t Bytes(const LayerWeights& w) {
  std::uint64_t bytes = Bytes(w.attention_norm) + Bytes(w.ffn_norm) + Bytes(w.attention) + w.gate.bytes() +
                        Bytes(w.gate_bias) + Bytes(w.correction_bias) + w.mlp.bytes() + w.shared_gate.bytes();
  if (w.cross)
    bytes += Bytes(w.cross->norm) + w.cross->query.bytes() + w.cross->key_value.bytes() + w.cross->out.bytes();
  return bytes;
}

std::uint64_t BytesHeld(const DenseWeights& weights) {
  std::uint64_t bytes = weights.embedding.size() + Bytes(weights.encoder_norm) + Bytes(weights.final_norm) +
                        weights.head.bytes() + Bytes(weights.encoder_relative_bias) + Bytes(weights.relative_bias);
  for (const LayerWeights& layer : weights.layers) bytes += Bytes(layer);
  return bytes;
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
  std::uint64_t parameters = gate_bias.size() + up_bias.size() + down_bias.size();
  for (const PackedMatrix* matrix : {&gate, &up, &down}) parameters += std::uint64_t{matrix->rows()} * matrix->cols();
  return parameters;
}

std::uint64_t MlpWeights::bytes() const {
  return gate.bytes() + up.bytes() + down.bytes() + Bytes(gate_bias) + Bytes(up_bias) + Bytes(down_bias);
}

Result<DenseWeights> LoadDenseWeights(const ModelConfig& config, const Checkpoint& checkpoint, const WeightForm& form,
                                      ThreadPool& pool) {
  MOE_RETURN_IF_ERROR(CheckTensors(config, checkpoint).status());
  DenseWeights weights;
  weights.layers.resize(config.layers.size());
  const Source outer{checkpoint, form, OuterTensors(config)};
  std::vector<Job> jobs;
  jobs.push_back([&] { return LoadEmbedding(config, outer, weights); });
  jobs.push_back([&] {
    const TensorRole role = config.tied_embeddings ? TensorRole::kEmbedding : TensorRole::kHead;
    return LoadMatrices(outer, "head", {{{role}, &weights.head, form.types.attention}});
  });
  if (config.has_encoder()) {
    jobs.push_back([&] { return LoadRelativeBias(config, checkpoint, 0, weights.encoder_relative_bias); });
  }
  jobs.push_back([&] { return LoadRelativeBias(config, checkpoint, config.encoder_layers, weights.relative_bias); });
  for (int i = 0; i < config.num_layers(); ++i) {
    LayerWeights* layer = &weights.layers[static_cast<std::size_t>(i)];
    const LayerSpec* spec = &config.layers[static_cast<std::size_t>(i)];
    jobs.push_back([&, i, layer, spec] {
      return LoadAttention({checkpoint, form, LayerTensors(config, i), LayerFolder(i)}, spec->attention,
                           layer->attention);
    });
    jobs.push_back([&, i, layer, spec] {
      return LoadNormsAndFfn({checkpoint, form, LayerTensors(config, i), LayerFolder(i)}, *spec, *layer);
    });
  }
  MOE_RETURN_IF_ERROR(RunJobs(jobs, pool));
  weights.parameters = CountParameters(config).dense();
  weights.bytes = BytesHeld(weights);
  return weights;
}

Result<MlpWeights> LoadExpertWeights(const ModelConfig& config, const Checkpoint& checkpoint, int layer, int expert,
                                     const WeightForm& form) {
  if (layer < 0 || layer >= config.num_layers() || !config.layers[static_cast<std::size_t>(layer)].moe.has_value()) {
    return InvalidArgument("layer ", layer, " is not a sparse layer of the model");
  }
  const int num_experts = config.layers[static_cast<std::size_t>(layer)].moe->gate.num_experts;
  if (expert < 0 || expert >= num_experts) {
    return InvalidArgument("expert ", expert, " is not one of the ", num_experts, " experts of layer ", layer);
  }
  MlpWeights weights;
  const Source source{checkpoint, form, ExpertTensors(config, layer, expert), LayerFolder(layer)};
  MOE_RETURN_IF_ERROR(LoadMlp(source, "expert-" + ThreeDigits(expert), weights));
  return weights;
}

}  // namespace moe
