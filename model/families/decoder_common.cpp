#include "model/families/decoder_common.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace moe {

void ReadSizes(KeyReader& keys, ModelConfig& config, bool tied_by_default) {
  config.vocab_size = keys.Int("vocab_size", kVocabSizes);
  config.hidden = keys.Int("hidden_size", kHiddenSizes);
  config.context_length = keys.Int("max_position_embeddings", kContextLengths);
  config.rms_norm_eps = static_cast<float>(keys.Real("rms_norm_eps", kEpsilons));
  config.tied_embeddings = keys.OptionalBool("tie_word_embeddings").value_or(tied_by_default);
}

void ReadDecoderSizes(KeyReader& keys, ModelConfig& config) {
  ReadSizes(keys, config);
  constexpr std::array<std::string_view, 1> kActivations = {"silu"};
  (void)keys.OptionalChoice("hidden_act", kActivations);
}

namespace {

/// hidden_size / num_attention_heads, when head_dim does not say.
int DefaultHeadDim(KeyReader& keys, const ModelConfig& config, int num_heads) {
  const int head_dim = config.hidden / num_heads;
  if (config.hidden % num_heads != 0) {
    keys.Refuse("num_attention_heads", Cat("a divisor of hidden_size, ", config.hidden, " (head_dim is not given)"));
  }
  if (head_dim > kHeadDims.max) {
    keys.Refuse("num_attention_heads",
                Cat("enough for hidden_size ", config.hidden, " (heads of at most ", kHeadDims.max, " elements)"));
  }
  return head_dim;
}

}  // namespace

AttentionSpec ReadAttention(KeyReader& keys, const ModelConfig& config, std::optional<int> absent_head_dim) {
  AttentionSpec attention;
  attention.num_heads = keys.Int("num_attention_heads", kHeadCounts);
  attention.num_kv_heads = keys.OptionalInt("num_key_value_heads", kHeadCounts).value_or(attention.num_heads);
  if (attention.num_heads % attention.num_kv_heads != 0) {
    keys.Refuse("num_key_value_heads", Cat("a divisor of num_attention_heads, ", attention.num_heads));
  }
  if (const auto head_dim = keys.OptionalInt("head_dim", kHeadDims)) {
    attention.head_dim = *head_dim;
  } else if (absent_head_dim.has_value() && !keys.Has("head_dim")) {
    attention.head_dim = *absent_head_dim;
  } else {
    attention.head_dim = DefaultHeadDim(keys, config, attention.num_heads);
  }
  attention.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(std::max(attention.head_dim, 1))));
  return attention;
}

void ReadAttentionBias(KeyReader& keys, AttentionSpec& attention, bool by_default) {
  attention.qkv_bias = keys.OptionalBool("attention_bias").value_or(by_default);
  attention.out_bias = attention.qkv_bias;
}

int ReadSlidingWindow(KeyReader& keys) {
  const auto window = keys.OptionalInt("sliding_window", kContextLengths);
  const auto used = keys.OptionalBool("use_sliding_window");
  // Published software for these families does not read use_sliding_window, so a contradiction has no right reading.
  if (window.has_value() && used == false)
    keys.Refuse("use_sliding_window", Cat("true, as sliding_window ", *window, " needs"));
  return window.value_or(0);
}

std::optional<std::vector<std::size_t>> ReadLayerTypes(KeyReader& keys, std::size_t num_layers,
                                                       std::span<const std::string_view> types) {
  auto chosen = keys.OptionalChoices("layer_types", types);
  if (chosen.has_value() && chosen->size() != num_layers) {
    keys.Refuse("layer_types", Cat("a list of num_hidden_layers, ", num_layers, ", names, but of ", chosen->size()));
    return std::nullopt;
  }
  return chosen;
}

std::vector<LayerSpec> ReadLayers(KeyReader& keys, const LayerSpec& layer) {
  const auto num_layers = static_cast<std::size_t>(keys.Int("num_hidden_layers", kLayerCounts));
  const std::array<std::string_view, 1> types = {layer.attention.window > 0 ? "sliding_attention" : "full_attention"};
  (void)ReadLayerTypes(keys, num_layers, types);
  return std::vector<LayerSpec>(num_layers, layer);
}

void SetExpertsPerToken(KeyReader& keys, GateSpec& gate, int k, std::string_view key, std::string_view experts_key) {
  gate.experts_per_token = k;
  if (k > gate.num_experts) keys.Refuse(key, Cat("at most ", experts_key, ", ", gate.num_experts));
}

GateSpec ReadSoftmaxGate(KeyReader& keys, std::string_view experts_key) {
  GateSpec gate;
  gate.num_experts = keys.Int(experts_key, kExpertCounts);
  constexpr std::string_view kKey = "num_experts_per_tok";
  SetExpertsPerToken(keys, gate, keys.Int(kKey, kExpertCounts), kKey, experts_key);
  return gate;
}

}  // namespace moe
