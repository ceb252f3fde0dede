// GLM-4-MoE: grouped-query attention of which a part of each head rotates, with biases on q, k and v only; the FFN is
// DeepSeek-V3's.
#include "model/families/decoder_common.h"
#include "model/families/deepseek_common.h"
#include "model/families/family.h"
#include "model/families/rope_settings.h"

namespace moe {
namespace {

void Parse(KeyReader& keys, ModelConfig& config) {
  ReadDecoderSizes(keys, config);
  AttentionSpec attention = ReadAttention(keys, config);
  attention.qkv_bias = keys.OptionalBool("attention_bias").value_or(false);
  if (keys.OptionalBool("use_qk_norm").value_or(false)) attention.qk_norm = QkNorm::kPerHead;
  config.rope = ReadRope(keys, config, attention.head_dim, {.partial = 0.5}).rope;
  ReadDeepseekLayers(keys, config, attention, ReadBiasedGate, 1);
}

}  // namespace

const Family& Glm4MoeFamily() {
  static const Family family = {.model_type = "glm4_moe", .architecture = "Glm4MoeForCausalLM", .parse = Parse};
  return family;
}

}  // namespace moe
