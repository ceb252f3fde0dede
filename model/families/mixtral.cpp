// Mixtral: Mistral's attention, every layer sparse. The gate takes the softmax over all experts, keeps the best k and
// always renormalises their weights; an expert is w2(silu(w1 x) * w3 x).
#include "model/families/decoder_common.h"
#include "model/families/family.h"
#include "model/families/rope_settings.h"

namespace moe {
namespace {

TensorNames Names() {
  TensorNames names;
  names.router = "model.layers.{layer}.block_sparse_moe.gate";
  names.expert_gate = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1";
  names.expert_up = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3";
  names.expert_down = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2";
  return names;
}

void Parse(KeyReader& keys, ModelConfig& config) {
  ReadDecoderSizes(keys, config);
  LayerSpec layer{.attention = ReadAttention(keys, config)};
  layer.attention.window = ReadSlidingWindow(keys);
  layer.moe = MoeSpec{.gate = ReadSoftmaxGate(keys, "num_local_experts"),
                      .expert = {.intermediate = keys.Int("intermediate_size", kIntermediateSizes)}};
  config.rope = ReadRope(keys, config, layer.attention.head_dim, {.theta = 1e6}).rope;
  config.layers = ReadLayers(keys, layer);
  config.tensor_names = Names();
}

}  // namespace

const Family& MixtralFamily() {
  static const Family family = {.model_type = "mixtral", .architecture = "MixtralForCausalLM", .parse = Parse};
  return family;
}

}  // namespace moe
