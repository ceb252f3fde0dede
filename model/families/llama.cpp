// Llama 2, 3, 3.1, 3.2 (dense): biases by key, rope scaling, tied embeddings.
#include "model/families/decoder_common.h"
#include "model/families/family.h"
#include "model/families/rope_settings.h"

namespace moe {
namespace {

void Parse(KeyReader& keys, ModelConfig& config) {
  ReadDecoderSizes(keys, config);
  LayerSpec layer{.attention = ReadAttention(keys, config)};
  ReadAttentionBias(keys, layer.attention);
  layer.dense_mlp = {.intermediate = keys.Int("intermediate_size", kIntermediateSizes),
                     .bias = keys.OptionalBool("mlp_bias").value_or(false)};
  config.rope = ReadRope(keys, config, layer.attention.head_dim, {}).rope;
  config.layers = ReadLayers(keys, layer);
}

}  // namespace

const Family& LlamaFamily() {
  static const Family family = {.model_type = "llama", .architecture = "LlamaForCausalLM", .parse = Parse};
  return family;
}

}  // namespace moe
