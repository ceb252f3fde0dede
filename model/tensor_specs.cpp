#include "model/tensor_specs.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace moe {
namespace {

void ReplaceAll(std::string& text, std::string_view what, int with) {
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what)) {
    text.replace(at, what.size(), std::to_string(with));
  }
}

using Shape = std::vector<std::int64_t>;

/// Collects the specs of one layer or expert.
class SpecList {
 public:
  SpecList(const ModelConfig& config, int layer, int expert)
      : projection_encoding_(config.encoding == StoredEncoding::kFp8Blocks ? config.encoding : StoredEncoding::kPlain),
        layer_(layer),
        expert_(expert) {}

  void Vector(TensorRole role, ModelPart part, const std::string& name, std::int64_t size, bool bias = false) {
    Add({.role = role, .part = part, .shape = {size}, .bias = bias, .name = Named(name), .stored_shape = {size}});
  }
  void Norm(TensorRole role, const std::string& name, std::int64_t size, bool bias = false) {
    Vector(role, ModelPart::kNorms, name + ".weight", size);
    if (bias) Vector(role, ModelPart::kNorms, name + ".bias", size, true);
  }
  /// NAME.weight and perhaps NAME.bias.
  void Matrix(TensorRole role, ModelPart part, const std::string& name, Shape shape, bool bias = false,
              StoredEncoding encoding = StoredEncoding::kPlain) {
    const std::int64_t outputs = shape.front();
    Add({.role = role,
         .part = part,
         .shape = shape,
         .name = Named(name + ".weight"),
         .stored_shape = shape,
         .encoding = encoding});
    if (bias) Vector(role, part, name + ".bias", outputs, true);
  }
  /// One of the matrices that checkpoints quantise.
  void Projection(TensorRole role, ModelPart part, const std::string& name, Shape shape, bool bias = false) {
    Matrix(role, part, name, std::move(shape), bias, projection_encoding_);
  }
  void Mlp(ModelPart part, const MlpSpec& mlp, std::int64_t hidden, const std::string& gate, const std::string& up,
           const std::string& down) {
    if (mlp.gated()) Projection(TensorRole::kMlpGate, part, gate, {mlp.intermediate, hidden}, mlp.bias);
    Projection(TensorRole::kMlpUp, part, up, {mlp.intermediate, hidden}, mlp.bias);
    Projection(TensorRole::kMlpDown, part, down, {hidden, mlp.intermediate}, mlp.bias);
  }
  void Add(TensorSpec spec) { specs_.push_back(std::move(spec)); }

  std::string Named(std::string name) const {
    ReplaceAll(name, "{layer}", layer_);
    ReplaceAll(name, "{expert}", expert_);
    return name;
  }
  std::vector<TensorSpec> Take() { return std::move(specs_); }

 private:
  StoredEncoding projection_encoding_;
  int layer_;
  int expert_;
  std::vector<TensorSpec> specs_;
};

const LayerSpec& LayerAt(const ModelConfig& config, int layer) {
  MOE_CHECK(layer >= 0 && layer < config.num_layers());
  return config.layers[static_cast<std::size_t>(layer)];
}

void AddLatentProjections(const AttentionSpec& attention, const TensorNames& names, std::int64_t hidden,
                          SpecList& specs) {
  const LatentSpec& latent = *attention.latent;
  const ModelPart part = ModelPart::kAttention;
  const std::int64_t heads = attention.num_heads;
  const std::int64_t queries = heads * attention.head_dim;
  if (latent.query_rank > 0) {
    specs.Projection(TensorRole::kQueryDown, part, names.query_down, {latent.query_rank, hidden}, attention.qkv_bias);
    specs.Norm(TensorRole::kQueryDownNorm, names.query_down_norm, latent.query_rank);
    specs.Projection(TensorRole::kQueryUp, part, names.query_up, {queries, latent.query_rank});
  } else {
    specs.Projection(TensorRole::kQuery, part, names.query, {queries, hidden});
  }
  specs.Projection(TensorRole::kKvDown, part, names.kv_down, {latent.kv_rank + latent.rope_dim, hidden},
                   attention.qkv_bias);
  specs.Norm(TensorRole::kKvDownNorm, names.kv_down_norm, latent.kv_rank);
  specs.Projection(TensorRole::kKvUp, part, names.kv_up,
                   {heads * (latent.nope_dim + latent.value_dim), latent.kv_rank});
}

void AddHeadProjections(const AttentionSpec& attention, const TensorNames& names, std::int64_t hidden,
                        SpecList& specs) {
  const ModelPart part = ModelPart::kAttention;
  const std::int64_t q_width = std::int64_t{attention.num_heads} * attention.head_dim;
  const std::int64_t kv_width = std::int64_t{attention.num_kv_heads} * attention.head_dim;
  specs.Projection(TensorRole::kQuery, part, names.query, {q_width, hidden}, attention.qkv_bias);
  specs.Projection(TensorRole::kKey, part, names.key, {kv_width, hidden}, attention.qkv_bias);
  specs.Projection(TensorRole::kValue, part, names.value, {kv_width, hidden}, attention.qkv_bias);
  const bool per_head = attention.qk_norm == QkNorm::kPerHead;
  if (per_head || attention.qk_norm == QkNorm::kWholeProjection) {
    specs.Norm(TensorRole::kQueryNorm, names.query_norm, per_head ? attention.head_dim : q_width);
    specs.Norm(TensorRole::kKeyNorm, names.key_norm, per_head ? attention.head_dim : kv_width);
  }
}

void AddAttention(const ModelConfig& config, int layer, SpecList& specs) {
  const TensorNames& names = config.names_of(layer);
  const AttentionSpec& attention = LayerAt(config, layer).attention;
  specs.Norm(TensorRole::kAttentionNorm, names.attention_norm, config.hidden, config.norm_bias);
  if (attention.latent) {
    AddLatentProjections(attention, names, config.hidden, specs);
  } else {
    AddHeadProjections(attention, names, config.hidden, specs);
  }
  specs.Projection(TensorRole::kAttentionOut, ModelPart::kAttention, names.attention_out,
                   {config.hidden, attention.heads_width()}, attention.out_bias);
  if (attention.sinks) specs.Vector(TensorRole::kSinks, ModelPart::kAttention, names.sinks, attention.num_heads);
  if (attention.relative_bias && config.index_in_stack(layer) == 0) {
    specs.Matrix(TensorRole::kRelativeBias, ModelPart::kAttention, names.relative_bias,
                 {attention.relative_bias->buckets, attention.num_heads});
  }
  if (config.post_norms) specs.Norm(TensorRole::kPostNorm, names.attention_post_norm, config.hidden, config.norm_bias);
}

void AddCrossAttention(const ModelConfig& config, const AttentionSpec& cross, SpecList& specs) {
  const TensorNames& names = config.tensor_names;
  const ModelPart part = ModelPart::kAttention;
  const std::int64_t hidden = config.hidden;
  const std::int64_t q_width = std::int64_t{cross.num_heads} * cross.head_dim;
  const std::int64_t kv_width = std::int64_t{cross.num_kv_heads} * cross.head_dim;
  specs.Norm(TensorRole::kCrossNorm, names.cross_norm, hidden);
  specs.Projection(TensorRole::kCrossQuery, part, names.cross_query, {q_width, hidden}, cross.qkv_bias);
  specs.Projection(TensorRole::kCrossKey, part, names.cross_key, {kv_width, hidden}, cross.qkv_bias);
  specs.Projection(TensorRole::kCrossValue, part, names.cross_value, {kv_width, hidden}, cross.qkv_bias);
  specs.Projection(TensorRole::kCrossOut, part, names.cross_out, {hidden, q_width}, cross.out_bias);
}

void AddSparseFfn(const ModelConfig& config, int layer, SpecList& specs) {
  const TensorNames& names = config.names_of(layer);
  const MoeSpec& moe = *LayerAt(config, layer).moe;
  specs.Matrix(TensorRole::kRouter, ModelPart::kRouter, names.router, {moe.gate.num_experts, config.hidden},
               moe.gate.bias);
  if (moe.gate.correction_bias) {
    specs.Vector(TensorRole::kCorrectionBias, ModelPart::kRouter, names.correction_bias, moe.gate.num_experts);
  }
  if (!moe.shared) return;
  const ModelPart part = ModelPart::kSharedExperts;
  specs.Mlp(part, *moe.shared, config.hidden, names.shared_gate, names.shared_up, names.shared_down);
  if (moe.shared_gate) specs.Matrix(TensorRole::kSharedRouter, part, names.shared_router, {1, config.hidden});
}

/// One expert's share of tensors that hold all experts of a layer.
void AddFusedExpert(const ModelConfig& config, const TensorNames& names, const MoeSpec& moe, int expert,
                    SpecList& specs) {
  const ExpertLayout& layout = names.expert_layout;
  const std::int64_t experts = moe.gate.num_experts;
  const std::int64_t hidden = config.hidden;
  const std::int64_t inner = moe.expert.intermediate;
  const StoredEncoding encoding =
      config.encoding == StoredEncoding::kMxfp4 ? StoredEncoding::kMxfp4 : StoredEncoding::kPlain;
  // `outputs` of the stored tensor, of which the weight is every step-th from `first` on.
  const auto add = [&](TensorRole role, const std::string& name, Shape shape, std::int64_t outputs,
                       const TensorSlice& slice) {
    TensorSpec spec{.role = role,
                    .part = ModelPart::kExperts,
                    .shape = shape,
                    .name = specs.Named(layout.bare_names ? name : name + ".weight"),
                    .stored_shape = {experts, outputs, shape[1]},
                    .slice = slice,
                    .encoding = encoding};
    if (layout.transposed) spec.stored_shape = {experts, shape[1], outputs};
    specs.Add(std::move(spec));
    if (!moe.expert.bias) return;
    TensorSpec bias{.role = role,
                    .part = ModelPart::kExperts,
                    .shape = {shape[0]},
                    .bias = true,
                    .name = specs.Named(name + (layout.bare_names ? "_bias" : ".bias")),
                    .stored_shape = {experts, outputs},
                    .slice = slice};
    bias.slice.transposed = false;
    specs.Add(std::move(bias));
  };
  const std::int64_t step = layout.interleaved ? 2 : 1;
  const TensorSlice whole{.expert = expert, .transposed = layout.transposed};
  TensorSlice gate = whole;
  gate.step = step;
  TensorSlice up = gate;
  up.first = layout.interleaved ? 1 : inner;
  add(TensorRole::kMlpGate, names.expert_gate_up, {inner, hidden}, 2 * inner, gate);
  add(TensorRole::kMlpUp, names.expert_gate_up, {inner, hidden}, 2 * inner, up);
  add(TensorRole::kMlpDown, names.expert_down, {hidden, inner}, hidden, whole);
}

/// Whether `name` is PREFIX + a number of at least `first` + "." + anything.
bool IsNumberedFrom(std::string_view name, std::string_view prefix, int first) {
  if (!name.starts_with(prefix)) return false;
  name.remove_prefix(prefix.size());
  std::uint64_t number = 0;
  std::size_t digits = 0;
  constexpr std::size_t kMostDigits = 9;
  while (digits < name.size() && digits < kMostDigits && name[digits] >= '0' && name[digits] <= '9') {
    number = number * 10 + static_cast<std::uint64_t>(name[digits++] - '0');
  }
  return digits > 0 && digits < name.size() && name[digits] == '.' && number >= static_cast<std::uint64_t>(first);
}

constexpr std::int64_t kMxBytesPerBlock = kMxBlock / 2;

std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// (experts, outputs, blocks of inputs) of a fused tensor, whose blocks run along the inputs in any layout.
Shape MxBlocks(const TensorSpec& spec) {
  const Shape& stored = spec.stored_shape;
  const bool transposed = spec.slice.transposed;
  return {stored[0], stored[transposed ? 2 : 1], CeilDiv(stored[transposed ? 1 : 2], kMxBlock)};
}

}  // namespace

std::uint64_t TensorSpec::elements() const {
  std::uint64_t count = 1;
  for (const std::int64_t dim : shape) count *= static_cast<std::uint64_t>(dim);
  return count;
}

std::vector<TensorSpec> OuterTensors(const ModelConfig& config) {
  const TensorNames& names = config.tensor_names;
  SpecList specs(config, 0, 0);
  specs.Matrix(TensorRole::kEmbedding, ModelPart::kEmbedding, names.embedding, {config.vocab_size, config.hidden});
  if (config.learned_positions > 0) {
    specs.Matrix(TensorRole::kPositions, ModelPart::kEmbedding, names.positions,
                 {config.learned_positions, config.hidden});
  }
  if (config.has_encoder()) specs.Norm(TensorRole::kEncoderNorm, config.encoder_names.final_norm, config.hidden);
  specs.Norm(TensorRole::kFinalNorm, names.final_norm, config.hidden, config.norm_bias);
  if (!config.tied_embeddings) {
    specs.Matrix(TensorRole::kHead, ModelPart::kHead, names.head, {config.vocab_size, config.hidden});
  }
  return specs.Take();
}

std::vector<TensorSpec> LayerTensors(const ModelConfig& config, int layer) {
  const TensorNames& names = config.names_of(layer);
  const LayerSpec& spec = LayerAt(config, layer);
  SpecList specs(config, config.index_in_stack(layer), 0);
  AddAttention(config, layer, specs);
  if (spec.cross_attention) AddCrossAttention(config, *spec.cross_attention, specs);
  specs.Norm(TensorRole::kFfnNorm, names.ffn_norm, config.hidden, config.norm_bias);
  if (spec.moe) {
    AddSparseFfn(config, layer, specs);
  } else {
    specs.Mlp(ModelPart::kDenseFfn, spec.dense_mlp, config.hidden, names.mlp_gate, names.mlp_up, names.mlp_down);
  }
  if (config.post_norms) specs.Norm(TensorRole::kPostNorm, names.ffn_post_norm, config.hidden, config.norm_bias);
  return specs.Take();
}

std::vector<TensorSpec> ExpertTensors(const ModelConfig& config, int layer, int expert) {
  const TensorNames& names = config.names_of(layer);
  const LayerSpec& spec = LayerAt(config, layer);
  MOE_CHECK(spec.moe.has_value() && expert >= 0 && expert < spec.moe->gate.num_experts);
  SpecList specs(config, config.index_in_stack(layer), expert);
  if (names.expert_layout.fused) {
    AddFusedExpert(config, names, *spec.moe, expert, specs);
  } else {
    specs.Mlp(ModelPart::kExperts, spec.moe->expert, config.hidden, names.expert_gate, names.expert_up,
              names.expert_down);
  }
  return specs.Take();
}

bool HeldInWeightType(const TensorSpec& spec) {
  return spec.shape.size() == 2 && spec.role != TensorRole::kRouter && spec.role != TensorRole::kSharedRouter &&
         spec.role != TensorRole::kRelativeBias;
}

std::string BlocksName(const std::string& name) { return name + "_blocks"; }

std::string ScalesName(const std::string& name, StoredEncoding encoding) {
  return name + (encoding == StoredEncoding::kMxfp4 ? "_scales" : "_scale_inv");
}

std::vector<std::int64_t> BlocksShape(const TensorSpec& spec) {
  MOE_CHECK(spec.encoding == StoredEncoding::kMxfp4);
  Shape shape = MxBlocks(spec);
  shape.push_back(kMxBytesPerBlock);
  return shape;
}

std::vector<std::int64_t> ScalesShape(const TensorSpec& spec) {
  MOE_CHECK(spec.encoding != StoredEncoding::kPlain);
  if (spec.encoding == StoredEncoding::kMxfp4) return MxBlocks(spec);
  return {CeilDiv(spec.stored_shape[0], kFp8Block), CeilDiv(spec.stored_shape[1], kFp8Block)};
}

bool IsIgnorable(const ModelConfig& config, std::string_view name) {
  const TensorNames& names = config.tensor_names;
  if (!names.prediction_prefix.empty() && IsNumberedFrom(name, names.prediction_prefix, config.num_layers())) {
    return true;
  }
  return std::ranges::any_of(names.ignorable,
                             [&](const std::string& pattern) { return MatchesPattern(name, pattern); });
}

bool MatchesPattern(std::string_view name, std::string_view pattern) {
  // Greedy with one point to come back to: the latest * and where its run ends.
  std::size_t n = 0;
  std::size_t p = 0;
  std::size_t star = std::string_view::npos;
  std::size_t run_end = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      run_end = n;
    } else if (p < pattern.size() && pattern[p] == name[n]) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++run_end;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace moe
