// Granite-MoE: Llama's attention, four multipliers, a gate that takes the softmax over the chosen logits, stacked
// experts (gate, then up, in the rows of one matrix an expert).
#include "model/families/decoder_common.h"
#include "model/families/family.h"
#include "model/families/rope_settings.h"

namespace moe {
namespace {

void Parse(KeyReader& keys, ModelConfig& config) {
  ReadDecoderSizes(keys, config);
  LayerSpec layer{.attention = ReadAttention(keys, config)};
  ReadAttentionBias(keys, layer.attention);
  // In place of head_dim^-1/2; there is no default that public code and the papers agree on.
  layer.attention.scale = static_cast<float>(keys.Real("attention_multiplier", kPositiveReals));
  layer.moe = MoeSpec{.gate = ReadSoftmaxGate(keys, "num_local_experts"),
                      .expert = {.intermediate = keys.Int("intermediate_size", kIntermediateSizes)}};
  layer.moe->gate.scoring = GateSpec::Scoring::kLogits;
  layer.moe->gate.normalization = GateSpec::Normalization::kSoftmax;
  config.embedding_scale = static_cast<float>(keys.OptionalReal("embedding_multiplier", kPositiveReals).value_or(1));
  config.residual_scale = static_cast<float>(keys.OptionalReal("residual_multiplier", kPositiveReals).value_or(1));
  config.logits_scale = static_cast<float>(1 / keys.OptionalReal("logits_scaling", kPositiveReals).value_or(1));
  config.rope = ReadRope(keys, config, layer.attention.head_dim, {}).rope;
  config.layers = ReadLayers(keys, layer);

  TensorNames& names = config.tensor_names;
  names.router = "model.layers.{layer}.block_sparse_moe.router.layer";
  names.expert_layout = {.fused = true};
  names.expert_gate_up = "model.layers.{layer}.block_sparse_moe.input_linear";
  names.expert_down = "model.layers.{layer}.block_sparse_moe.output_linear";
}

}  // namespace

const Family& GraniteMoeFamily() {
  static const Family family = {.model_type = "granitemoe",
                                .architecture = "GraniteMoeForCausalLM",
                                .parse = Parse,
                                .encoding = StoredEncoding::kPlain};
  return family;
}

}  // namespace moe
