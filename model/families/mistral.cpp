// Mistral (dense): Llama without biases, with a sliding window on every layer when there is one.
#include "model/families/decoder_common.h"
#include "model/families/family.h"
#include "model/families/rope_settings.h"

namespace moe {
namespace {

void Parse(KeyReader& keys, ModelConfig& config) {
  ReadDecoderSizes(keys, config);
  LayerSpec layer{.attention = ReadAttention(keys, config)};
  layer.attention.window = ReadSlidingWindow(keys);
  layer.dense_mlp = {.intermediate = keys.Int("intermediate_size", kIntermediateSizes)};
  config.rope = ReadRope(keys, config, layer.attention.head_dim, {}).rope;
  config.layers = ReadLayers(keys, layer);
}

}  // namespace

const Family& MistralFamily() {
  static const Family family = {.model_type = "mistral", .architecture = "MistralForCausalLM", .parse = Parse};
  return family;
}

}  // namespace moe
