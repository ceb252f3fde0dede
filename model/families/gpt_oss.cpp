// gpt-oss: attention sinks, windows on every second layer, yarn, a gate that takes the softmax over the chosen logits,
// experts with biases and a clamped activation, in MXFP4 or plain.
#include <algorithm>
#include <array>
#include <cmath>

#include "model/families/decoder_common.h"
#include "model/families/family.h"
#include "model/families/rope_settings.h"

namespace moe {
namespace {

/// k stands in these files twice.
int ReadExpertsPerToken(KeyReader& keys) {
  const auto k = keys.OptionalInt("num_experts_per_tok", kExpertCounts);
  const auto again = keys.OptionalInt("experts_per_token", kExpertCounts);
  if (k.has_value() && again.has_value() && *k != *again) {
    keys.Refuse("experts_per_token", Cat(*k, ", as num_experts_per_tok says"));
  }
  if (k.has_value()) return *k;
  return again.has_value() ? *again : keys.Int("num_experts_per_tok", kExpertCounts);
}

MoeSpec ReadExperts(KeyReader& keys) {
  MoeSpec moe;
  moe.gate = {.num_experts = keys.Int("num_local_experts", kExpertCounts),
              .scoring = GateSpec::Scoring::kLogits,
              .bias = true,
              .normalization = GateSpec::Normalization::kSoftmax};
  SetExpertsPerToken(keys, moe.gate, ReadExpertsPerToken(keys),
                     keys.Has("num_experts_per_tok") ? "num_experts_per_tok" : "experts_per_token",
                     "num_local_experts");
  moe.expert = {.intermediate = keys.Int("intermediate_size", kIntermediateSizes),
                .bias = true,
                .activation = Activation::kClampedSwiGlu,
                .limit = static_cast<float>(keys.OptionalReal("swiglu_limit", kPositiveReals).value_or(7))};
  return moe;
}

/// Copies of `layer` with windows where layer_types says so; without it on the first layer and every second after it.
std::vector<LayerSpec> ReadWindowedLayers(KeyReader& keys, const LayerSpec& layer) {
  std::vector<LayerSpec> layers(static_cast<std::size_t>(keys.Int("num_hidden_layers", kLayerCounts)), layer);
  constexpr std::array<std::string_view, 2> kTypes = {"full_attention", "sliding_attention"};
  const auto types = ReadLayerTypes(keys, layers.size(), kTypes);
  const auto window = keys.OptionalInt("sliding_window", kContextLengths);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    if (types.has_value() ? (*types)[l] == 0 : l % 2 == 1) continue;
    if (!window.has_value()) keys.Missing("sliding_window");
    layers[l].attention.window = window.value_or(0);
  }
  return layers;
}

/// Where both keys of scaling are absent public code takes the published models' yarn. Null is yarn to some of its
/// versions and no scaling to others.
RopeSpec ReadScaledRope(KeyReader& keys, ModelConfig& config, int head_dim) {
  constexpr std::array<std::string_view, 2> kKeys = {"rope_scaling", "rope_parameters"};
  RopeSpec rope = ReadRope(keys, config, head_dim, {.theta = 150000}).rope;
  if (std::ranges::any_of(kKeys, [&](std::string_view key) { return keys.OptionalObject(key).has_value(); })) {
    return rope;
  }
  for (const std::string_view key : kKeys) {
    if (keys.Has(key)) keys.Refuse(key, "an object ({\"rope_type\": \"default\"} is no scaling)");
  }
  rope.scaling = RopeScaling::kYarn;
  rope.factor = 32;
  rope.original_max_positions = 4096;
  rope.truncate = false;
  rope.magnitude = 0.1 * std::log(rope.factor) + 1;
  return rope;
}

void Parse(KeyReader& keys, ModelConfig& config) {
  ReadDecoderSizes(keys, config);
  LayerSpec layer{.attention = ReadAttention(keys, config, 64)};
  ReadAttentionBias(keys, layer.attention, /*by_default=*/true);
  layer.attention.sinks = true;
  layer.moe = ReadExperts(keys);
  config.rope = ReadScaledRope(keys, config, layer.attention.head_dim);
  config.layers = ReadWindowedLayers(keys, layer);

  TensorNames& names = config.tensor_names;
  names.router = "model.layers.{layer}.mlp.router";
  names.expert_layout = {.fused = true, .transposed = true, .interleaved = true, .bare_names = true};
  names.expert_gate_up = "model.layers.{layer}.mlp.experts.gate_up_proj";
  names.expert_down = "model.layers.{layer}.mlp.experts.down_proj";
}

// The context before yarn; rope_scaling says it too, and counts.
constexpr std::array<std::string_view, 1> kHarmless = {"initial_context_length"};

}  // namespace

const Family& GptOssFamily() {
  static const std::vector<MathematicalKey> mathematical = {{"swiglu_alpha", {"1.702"}}, {"router_bias", {"true"}}};
  static const Family family = {.model_type = "gpt_oss",
                                .architecture = "GptOssForCausalLM",
                                .parse = Parse,
                                .harmless = kHarmless,
                                .mathematical = mathematical,
                                .absent_dtype = WeightType::kBf16,
                                .encoding = StoredEncoding::kMxfp4};
  return family;
}

}  // namespace moe
