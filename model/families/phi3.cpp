// Phi-3, counted only. Its files fuse q, k and v into qkv_proj and gate and up into gate_up_proj; they are named apart
// here, and the count is the same.
#include "model/families/decoder_common.h"
#include "model/families/family.h"
#include "model/families/known_keys.h"

namespace moe {
namespace {

void Parse(KeyReader& keys, ModelConfig& config) {
  ReadSizes(keys, config);
  LayerSpec layer{.attention = ReadAttention(keys, config)};
  layer.dense_mlp.intermediate = keys.Int("intermediate_size", kIntermediateSizes);
  config.layers.assign(static_cast<std::size_t>(keys.Int("num_hidden_layers", kLayerCounts)), layer);
}

}  // namespace

const Family& Phi3Family() {
  static const Family family = {.model_type = "phi3",
                                .architecture = "Phi3ForCausalLM",
                                .parse = Parse,
                                .harmless = HarmlessForCounting(),
                                .encoding = StoredEncoding::kPlain,
                                .servable = false};
  return family;
}

}  // namespace moe
