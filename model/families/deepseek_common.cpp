#include "model/families/deepseek_common.h"

#include <array>
#include <cmath>

#include "model/families/decoder_common.h"
#include "model/families/rope_settings.h"

namespace moe {

AttentionSpec ReadLatentAttention(KeyReader& keys, ModelConfig& config, RopePairing pairing) {
  LatentSpec latent;
  latent.query_rank = keys.NullableInt("q_lora_rank", kRanks).value_or(0);
  latent.kv_rank = keys.Int("kv_lora_rank", kRanks);
  latent.nope_dim = keys.Int("qk_nope_head_dim", kHeadDims);
  latent.rope_dim = keys.Int("qk_rope_head_dim", kHeadDims);
  latent.value_dim = keys.Int("v_head_dim", kHeadDims);
  if (latent.rope_dim % 2 != 0) keys.Refuse("qk_rope_head_dim", "even, as rotary embedding needs");

  AttentionSpec attention;
  attention.num_heads = keys.Int("num_attention_heads", kHeadCounts);
  attention.num_kv_heads = 1;
  attention.head_dim = latent.nope_dim + latent.rope_dim;
  const RopeSettings rope = ReadRope(keys, config, latent.rope_dim, {.pairing = pairing});
  config.rope = rope.rope;
  attention.scale = static_cast<float>(rope.score_factor / std::sqrt(static_cast<double>(attention.head_dim)));
  const auto said = keys.OptionalInt("qk_head_dim", {.max = 2 * kHeadDims.max});
  if (said.has_value() && *said != attention.head_dim) {
    keys.Refuse("qk_head_dim", Cat(attention.head_dim, ", the sum of qk_nope_head_dim and qk_rope_head_dim"));
  }
  // Of the projections that make q's low rank, the latent and the output.
  attention.qkv_bias = keys.OptionalBool("attention_bias").value_or(false);
  attention.out_bias = attention.qkv_bias;
  attention.latent = latent;
  return attention;
}

void ReadGroups(KeyReader& keys, GateSpec& gate) {
  gate.groups = keys.Int("n_group", kExpertCounts);
  gate.top_groups = keys.Int("topk_group", kExpertCounts);
  if (gate.num_experts % gate.groups != 0) {
    keys.Refuse("n_group", Cat("a divisor of n_routed_experts, ", gate.num_experts));
  }
  if (gate.top_groups > gate.groups) keys.Refuse("topk_group", Cat("at most n_group, ", gate.groups));
  const int group_size = gate.num_experts / gate.groups;
  if (gate.top_groups * group_size < gate.experts_per_token) {
    keys.Refuse("topk_group",
                Cat("enough for num_experts_per_tok, ", gate.experts_per_token, ", in groups of ", group_size));
  }
}

GateSpec ReadBiasedGate(KeyReader& keys) {
  GateSpec gate = ReadSoftmaxGate(keys, "n_routed_experts");
  constexpr std::array<std::string_view, 1> kScoring = {"sigmoid"};
  constexpr std::array<std::string_view, 1> kMethods = {"noaux_tc"};
  (void)keys.OptionalChoice("scoring_func", kScoring);
  (void)keys.OptionalChoice("topk_method", kMethods);
  gate.scoring = GateSpec::Scoring::kSigmoid;
  gate.correction_bias = true;
  ReadGroups(keys, gate);
  gate.group_score = GateSpec::GroupScore::kSumOfTwo;
  if (gate.groups > 1 && gate.num_experts / gate.groups < 2) {
    keys.Refuse("n_group", Cat("one that leaves a group at least 2 of ", gate.num_experts, " experts"));
  }
  if (keys.OptionalBool("norm_topk_prob").value_or(true)) {
    gate.normalization = GateSpec::Normalization::kSum;
    gate.normalization_eps = 1e-20f;
  } else {
    gate.normalization = GateSpec::Normalization::kNone;
  }
  gate.scale = static_cast<float>(keys.Real("routed_scaling_factor", kPositiveReals));
  return gate;
}

namespace {

MoeSpec ReadExperts(KeyReader& keys, GateSpec (*read_gate)(KeyReader&)) {
  MoeSpec moe{.gate = read_gate(keys),
              .expert = {.intermediate = keys.Int("moe_intermediate_size", kIntermediateSizes)}};
  // One MLP, so many times as wide.
  const int shared = keys.NullableInt("n_shared_experts", {.min = 0, .max = kExpertCounts.max}).value_or(0);
  const std::int64_t width = std::int64_t{shared} * moe.expert.intermediate;
  if (width > kIntermediateSizes.max) {
    keys.Refuse("n_shared_experts", Cat("at most ", kIntermediateSizes.max / moe.expert.intermediate,
                                        " (moe_intermediate_size is ", moe.expert.intermediate, ")"));
  } else if (shared > 0) {
    moe.shared = MlpSpec{.intermediate = static_cast<int>(width)};
  }
  return moe;
}

}  // namespace

void ReadDeepseekLayers(KeyReader& keys, ModelConfig& config, const AttentionSpec& attention,
                        GateSpec (*read_gate)(KeyReader&), int default_first_sparse) {
  LayerSpec layer{.attention = attention};
  layer.dense_mlp.intermediate = keys.Int("intermediate_size", kIntermediateSizes);
  if (keys.NullableInt("n_routed_experts", kExpertCounts).has_value()) {
    layer.moe = ReadExperts(keys, read_gate);
  } else {
    keys.Ignore({"num_experts_per_tok", "moe_intermediate_size", "n_shared_experts", "n_group", "topk_group",
                 "topk_method", "scoring_func", "norm_topk_prob", "routed_scaling_factor"});
  }
  config.layers = ReadLayers(keys, layer);
  const int first_sparse = keys.OptionalInt("first_k_dense_replace", kLayerIndices).value_or(default_first_sparse);
  ChooseSparseLayers(config.layers, [&](int l) { return l >= first_sparse; });
  config.prediction_layers = keys.OptionalInt("num_nextn_predict_layers", kLayerIndices).value_or(0);
  config.tensor_names.prediction_prefix = "model.layers.";
}

}  // namespace moe
