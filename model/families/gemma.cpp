// Gemma and the text form of Gemma 3, counted only: gated GELU, tied embeddings; Gemma 3 has two more norms a layer and
// normalises q and k per head.
#include "model/families/decoder_common.h"
#include "model/families/family.h"
#include "model/families/known_keys.h"

namespace moe {
namespace {

void ParseGemma(KeyReader& keys, ModelConfig& config) {
  ReadSizes(keys, config, /*tied_by_default=*/true);
  LayerSpec layer{.attention = ReadAttention(keys, config, 256)};
  ReadAttentionBias(keys, layer.attention);
  layer.dense_mlp = {.intermediate = keys.Int("intermediate_size", kIntermediateSizes),
                     .activation = Activation::kGeluGated};
  config.layers.assign(static_cast<std::size_t>(keys.Int("num_hidden_layers", kLayerCounts)), layer);
}

void ParseGemma3(KeyReader& keys, ModelConfig& config) {
  ParseGemma(keys, config);
  for (LayerSpec& layer : config.layers) layer.attention.qk_norm = QkNorm::kPerHead;
  config.post_norms = true;
  config.tensor_names.attention_post_norm = "model.layers.{layer}.post_attention_layernorm";
  config.tensor_names.ffn_norm = "model.layers.{layer}.pre_feedforward_layernorm";
  config.tensor_names.ffn_post_norm = "model.layers.{layer}.post_feedforward_layernorm";
}

}  // namespace

const Family& GemmaFamily() {
  static const Family family = {.model_type = "gemma",
                                .architecture = "GemmaForCausalLM",
                                .parse = ParseGemma,
                                .harmless = HarmlessForCounting(),
                                .encoding = StoredEncoding::kPlain,
                                .servable = false};
  return family;
}

const Family& Gemma3TextFamily() {
  static const Family family = {.model_type = "gemma3_text",
                                .architecture = "Gemma3ForCausalLM",
                                .parse = ParseGemma3,
                                .harmless = HarmlessForCounting(),
                                .encoding = StoredEncoding::kPlain,
                                .servable = false};
  return family;
}

}  // namespace moe
