// OLMoE: q and k normalised over the whole projection, then q, k and v clamped by clip_qkv; every layer sparse, and
// intermediate_size is an expert's.
#include "model/families/decoder_common.h"
#include "model/families/family.h"
#include "model/families/rope_settings.h"

namespace moe {
namespace {

void Parse(KeyReader& keys, ModelConfig& config) {
  ReadDecoderSizes(keys, config);
  LayerSpec layer{.attention = ReadAttention(keys, config)};
  layer.attention.qk_norm = QkNorm::kWholeProjection;
  layer.attention.clip_qkv = static_cast<float>(keys.OptionalReal("clip_qkv", kPositiveReals).value_or(0));
  ReadAttentionBias(keys, layer.attention);
  layer.moe = MoeSpec{.gate = ReadSoftmaxGate(keys, "num_experts"),
                      .expert = {.intermediate = keys.Int("intermediate_size", kIntermediateSizes)}};
  if (!keys.OptionalBool("norm_topk_prob").value_or(false)) {
    layer.moe->gate.normalization = GateSpec::Normalization::kNone;
  }
  config.rope = ReadRope(keys, config, layer.attention.head_dim, {}).rope;
  config.layers = ReadLayers(keys, layer);
}

}  // namespace

const Family& OlmoeFamily() {
  static const Family family = {.model_type = "olmoe", .architecture = "OlmoeForCausalLM", .parse = Parse};
  return family;
}

}  // namespace moe
