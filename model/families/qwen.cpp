// Qwen2-MoE (which Qwen1.5-MoE is too), Qwen3-MoE and dense Qwen3.
#include <algorithm>
#include <array>

#include "model/families/decoder_common.h"
#include "model/families/family.h"
#include "model/families/rope_settings.h"

namespace moe {
namespace {

// A window counts only with use_sliding_window true, which is refused: versions of public code disagree on its layers.
constexpr std::array<std::string_view, 2> kHarmless = {"sliding_window", "max_window_layers"};

/// num_experts, which transformers 5 writes as num_local_experts for Qwen3-MoE.
std::string_view ExpertsKey(KeyReader& keys) {
  constexpr IntRange kCounts = {.min = 0, .max = kExpertCounts.max};
  const auto published = keys.OptionalInt("num_experts", kCounts);
  const auto newer = keys.OptionalInt("num_local_experts", kCounts);
  if (published.has_value() && newer.has_value() && *published != *newer) {
    keys.Refuse("num_local_experts", Cat(*published, ", as num_experts says"));
  }
  return newer.has_value() && !published.has_value() ? "num_local_experts" : "num_experts";
}

/// The routed experts, softmax over all; nothing when num_experts is 0.
std::optional<MoeSpec> ReadExperts(KeyReader& keys) {
  const std::string_view experts_key = ExpertsKey(keys);
  if (keys.Int(experts_key, {.min = 0, .max = kExpertCounts.max}) == 0) {
    keys.Ignore({"num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"});
    return std::nullopt;
  }
  MoeSpec moe{.gate = ReadSoftmaxGate(keys, experts_key),
              .expert = {.intermediate = keys.Int("moe_intermediate_size", kIntermediateSizes)}};
  const bool renormalize = keys.OptionalBool("norm_topk_prob").value_or(false);
  moe.gate.normalization = renormalize ? GateSpec::Normalization::kSum : GateSpec::Normalization::kNone;
  return moe;
}

/// Every decoder_sparse_step-th layer routes, but for those of mlp_only_layers.
void ReadSparseLayers(KeyReader& keys, ModelConfig& config) {
  const int step = keys.OptionalInt("decoder_sparse_step", kLayerCounts).value_or(1);
  const auto dense = keys.OptionalInts("mlp_only_layers", kLayerIndices).value_or(std::vector<int>{});
  ChooseSparseLayers(config.layers,
                     [&](int l) { return (l + 1) % step == 0 && std::ranges::find(dense, l) == dense.end(); });
}

void ParseQwen2Moe(KeyReader& keys, ModelConfig& config) {
  ReadDecoderSizes(keys, config);
  LayerSpec layer{.attention = ReadAttention(keys, config)};
  layer.attention.qkv_bias = keys.OptionalBool("qkv_bias").value_or(true);
  layer.dense_mlp.intermediate = keys.Int("intermediate_size", kIntermediateSizes);
  layer.moe = ReadExperts(keys);
  if (layer.moe.has_value()) {
    layer.moe->shared = MlpSpec{.intermediate = keys.Int("shared_expert_intermediate_size", kIntermediateSizes)};
    layer.moe->shared_gate = true;
  } else {
    keys.Ignore({"shared_expert_intermediate_size"});
  }
  config.rope = ReadRope(keys, config, layer.attention.head_dim, {}).rope;
  config.layers = ReadLayers(keys, layer);
  ReadSparseLayers(keys, config);
  config.tensor_names.shared_gate = "model.layers.{layer}.mlp.shared_expert.gate_proj";
  config.tensor_names.shared_up = "model.layers.{layer}.mlp.shared_expert.up_proj";
  config.tensor_names.shared_down = "model.layers.{layer}.mlp.shared_expert.down_proj";
}

void ParseQwen3Moe(KeyReader& keys, ModelConfig& config) {
  ReadDecoderSizes(keys, config);
  LayerSpec layer{.attention = ReadAttention(keys, config)};
  layer.attention.qk_norm = QkNorm::kPerHead;
  ReadAttentionBias(keys, layer.attention);
  layer.dense_mlp.intermediate = keys.Int("intermediate_size", kIntermediateSizes);
  layer.moe = ReadExperts(keys);
  config.rope = ReadRope(keys, config, layer.attention.head_dim, {}).rope;
  config.layers = ReadLayers(keys, layer);
  ReadSparseLayers(keys, config);
}

void ParseQwen3(KeyReader& keys, ModelConfig& config) {
  ReadDecoderSizes(keys, config);
  LayerSpec layer{.attention = ReadAttention(keys, config, 128)};
  layer.attention.qk_norm = QkNorm::kPerHead;
  ReadAttentionBias(keys, layer.attention);
  layer.dense_mlp.intermediate = keys.Int("intermediate_size", kIntermediateSizes);
  config.rope = ReadRope(keys, config, layer.attention.head_dim, {}).rope;
  config.layers = ReadLayers(keys, layer);
}

}  // namespace

const Family& Qwen2MoeFamily() {
  static const Family family = {
      .model_type = "qwen2_moe", .architecture = "Qwen2MoeForCausalLM", .parse = ParseQwen2Moe, .harmless = kHarmless};
  return family;
}

const Family& Qwen3MoeFamily() {
  static const std::vector<MathematicalKey> mathematical = {{"use_qk_norm", {"true"}}};
  static const Family family = {.model_type = "qwen3_moe",
                                .architecture = "Qwen3MoeForCausalLM",
                                .parse = ParseQwen3Moe,
                                .harmless = kHarmless,
                                .mathematical = mathematical};
  return family;
}

const Family& Qwen3Family() {
  static const std::vector<MathematicalKey> mathematical = {{"use_qk_norm", {"true"}}};
  static const Family family = {.model_type = "qwen3",
                                .architecture = "Qwen3ForCausalLM",
                                .parse = ParseQwen3,
                                .harmless = kHarmless,
                                .mathematical = mathematical};
  return family;
}

}  // namespace moe
