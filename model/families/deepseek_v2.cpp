// DeepSeek-V2 and V2-Lite: latent attention, softmax gate (greedy or in the best groups), weights scaled and never
// renormalised.
#include <array>

#include "model/families/decoder_common.h"
#include "model/families/deepseek_common.h"
#include "model/families/family.h"

namespace moe {
namespace {

GateSpec ReadGate(KeyReader& keys) {
  GateSpec gate = ReadSoftmaxGate(keys, "n_routed_experts");
  constexpr std::array<std::string_view, 1> kScoring = {"softmax"};
  (void)keys.OptionalChoice("scoring_func", kScoring);
  constexpr std::array<std::string_view, 2> kMethods = {"greedy", "group_limited_greedy"};
  if (keys.Choice("topk_method", kMethods) == 1) {
    ReadGroups(keys, gate);
    gate.group_score = GateSpec::GroupScore::kMax;
  } else {
    (void)keys.NullableInt("n_group", kExpertCounts);
    (void)keys.NullableInt("topk_group", kExpertCounts);
  }
  // Public code renormalises in place of scaling, or does not read the key.
  if (keys.OptionalBool("norm_topk_prob").value_or(false)) keys.Refuse("norm_topk_prob", "false");
  gate.normalization = GateSpec::Normalization::kNone;
  gate.scale = static_cast<float>(keys.Real("routed_scaling_factor", kPositiveReals));
  return gate;
}

void Parse(KeyReader& keys, ModelConfig& config) {
  ReadDecoderSizes(keys, config);
  const AttentionSpec attention = ReadLatentAttention(keys, config, RopePairing::kInterleaved);
  ReadDeepseekLayers(keys, config, attention, ReadGate, 0);
}

constexpr std::array<std::string_view, 2> kHarmless = {"num_key_value_heads", "head_dim"};

}  // namespace

const Family& DeepseekV2Family() {
  static const std::vector<MathematicalKey> mathematical = {{"rope_interleave", {"true"}}};
  static const Family family = {.model_type = "deepseek_v2",
                                .architecture = "DeepseekV2ForCausalLM",
                                .parse = Parse,
                                .harmless = kHarmless,
                                .mathematical = mathematical};
  return family;
}

}  // namespace moe
