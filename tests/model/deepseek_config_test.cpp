// DeepSeek-V2, V3 and the parts of them that GLM-4-MoE has.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "model/config.h"
#include "tests/model/published_config.h"

namespace moe {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const char* const kV2 = "deepseek-v2";
const char* const kV3 = "deepseek-v3";

TEST(Deepseek, LatentAttention) {
  const ModelConfig config = ReadWith(kV3);
  const AttentionSpec& attention = config.layers[60].attention;
  EXPECT_EQ(attention.num_heads, 128);
  EXPECT_EQ(attention.num_kv_heads, 1);
  EXPECT_EQ(attention.head_dim, 192);
  ASSERT_TRUE(attention.latent.has_value());
  EXPECT_EQ(attention.latent->query_rank, 1536);
  EXPECT_EQ(attention.latent->kv_rank, 512);
  EXPECT_EQ(attention.latent->nope_dim, 128);
  EXPECT_EQ(attention.latent->rope_dim, 64);
  EXPECT_EQ(attention.latent->value_dim, 128);
  EXPECT_EQ(attention.latent->norm_eps, 1e-6f);
  EXPECT_FALSE(attention.qkv_bias || attention.out_bias);
  EXPECT_EQ(config.rope.width, 64);
  EXPECT_EQ(ReadWith(kV3, {{"rms_norm_eps", 1e-3}}).layers[0].attention.latent->norm_eps, 1e-6f);
}

TEST(Deepseek, ScoresAreScaledByMscaleSquared) {
  // (nope + rope)^-1/2 (0.1 m ln 40 + 1)², m = 1 in V3 and 0.707 in V2.
  EXPECT_FLOAT_EQ(ReadWith(kV3).layers[0].attention.scale, 0.1352337788608801f);
  EXPECT_FLOAT_EQ(ReadWith(kV2).layers[0].attention.scale, 0.11472138679292612f);
  json config = Published(kV3);
  config["rope_scaling"]["mscale_all_dim"] = 0;
  EXPECT_FLOAT_EQ(Read(config)->layers[0].attention.scale, static_cast<float>(1 / std::sqrt(192.0)));
  EXPECT_NEAR(Read(config)->rope.magnitude, 1.3688879454113936, 1e-15);  // 0.1 ln 40 + 1
  config["rope_scaling"] = nullptr;
  EXPECT_FLOAT_EQ(Read(config)->layers[0].attention.scale, static_cast<float>(1 / std::sqrt(192.0)));
}

TEST(Deepseek, QueriesOfLowRankOrNot) {
  EXPECT_EQ(ReadWith("deepseek-v2-lite").layers[0].attention.latent->query_rank, 0);
  EXPECT_EQ(ErrorWithout(kV2, "q_lora_rank"), "config.json: key q_lora_rank is missing");
  EXPECT_THAT(ErrorWith(kV2, {{"q_lora_rank", 0}}), HasSubstr("q_lora_rank is 0, not a whole number from 1"));
}

TEST(Deepseek, KeysOfHeadsMeanNothing) {
  const ModelConfig config = ReadWith(kV3, {{"num_key_value_heads", 7}, {"head_dim", 64}, {"qk_head_dim", 192}});
  EXPECT_EQ(config.layers[0].attention.num_kv_heads, 1);
  EXPECT_EQ(config.layers[0].attention.head_dim, 192);
  EXPECT_THAT(config.warnings, IsEmpty());
  EXPECT_THAT(ErrorWith(kV3, {{"qk_head_dim", 128}}), HasSubstr("qk_head_dim is 128, not 192"));
}

TEST(Deepseek, AttentionBias) {
  for (const char* name : {kV2, kV3}) {
    const AttentionSpec attention = ReadWith(name, {{"attention_bias", true}}).layers[0].attention;
    EXPECT_TRUE(attention.qkv_bias && attention.out_bias) << name;
  }
}

TEST(Deepseek, PairsOfTheRotation) {
  EXPECT_EQ(ReadWith(kV3, {{"rope_interleave", true}}).rope.pairing, RopePairing::kInterleaved);
  EXPECT_EQ(ReadWith(kV3, {{"rope_interleave", nullptr}}).rope.pairing, RopePairing::kInterleaved);
  EXPECT_EQ(ReadWith(kV3, {{"rope_interleave", false}}).rope.pairing, RopePairing::kHalfSplit);
  EXPECT_EQ(ReadWith(kV2, {{"rope_interleave", true}}).rope.pairing, RopePairing::kInterleaved);
  EXPECT_THAT(ErrorWith(kV2, {{"rope_interleave", false}}), HasSubstr("rope_interleave is false, not absent or true"));
}

TEST(Deepseek, DenseLayersGoFirst) {
  EXPECT_EQ(ReadWith(kV3).sparse_layers().front(), 3);
  EXPECT_EQ(ReadWith(kV3).layers[2].dense_mlp.intermediate, 18432);
  EXPECT_EQ(ReadWith(kV3, {{"first_k_dense_replace", 0}}).sparse_layers().front(), 0);
  EXPECT_EQ(ReadWithout(kV3, {"first_k_dense_replace"}).sparse_layers().front(), 3);
  EXPECT_EQ(ReadWithout(kV2, {"first_k_dense_replace"}).sparse_layers().front(), 0);
  for (const int first : {61, 100}) {
    const ModelConfig dense = ReadWith(kV3, {{"first_k_dense_replace", first}});
    EXPECT_THAT(dense.sparse_layers(), IsEmpty());
    EXPECT_EQ(dense.num_experts(), 0);
  }
}

TEST(Deepseek, WithoutRoutedExpertsAllLayersAreDense) {
  const ModelConfig config = ReadWith(kV2, {{"n_routed_experts", nullptr}, {"topk_method", nullptr}});
  EXPECT_THAT(config.sparse_layers(), IsEmpty());
  EXPECT_THAT(config.warnings, IsEmpty());
  EXPECT_EQ(ErrorWithout(kV2, "n_routed_experts"), "config.json: key n_routed_experts is missing");
}

TEST(Deepseek, SharedExpertsAreOneWideMlp) {
  EXPECT_EQ(ReadWith(kV2).layers[5].moe->shared.value().intermediate, 2 * 1536);
  EXPECT_FALSE(ReadWith(kV2).layers[5].moe->shared_gate);
  EXPECT_FALSE(ReadWith(kV2, {{"n_shared_experts", nullptr}}).layers[5].moe->shared.has_value());
  EXPECT_FALSE(ReadWith(kV3, {{"n_shared_experts", 0}}).layers[5].moe->shared.has_value());
  EXPECT_EQ(ErrorWithout(kV3, "n_shared_experts"), "config.json: key n_shared_experts is missing");
  EXPECT_THAT(ErrorWith(kV3, {{"n_shared_experts", 300}}), HasSubstr("n_shared_experts is 300, not at most 256"));
}

TEST(DeepseekV2, Gate) {
  const GateSpec gate = ReadWith(kV2).layers[1].moe->gate;
  EXPECT_EQ(gate.num_experts, 160);
  EXPECT_EQ(gate.experts_per_token, 6);
  EXPECT_EQ(gate.scoring, GateSpec::Scoring::kSoftmax);
  EXPECT_EQ(gate.normalization, GateSpec::Normalization::kNone);
  EXPECT_EQ(gate.groups, 8);
  EXPECT_EQ(gate.top_groups, 3);
  EXPECT_EQ(gate.group_score, GateSpec::GroupScore::kMax);
  EXPECT_EQ(gate.scale, 16);
  EXPECT_FALSE(gate.correction_bias);
}

TEST(DeepseekV2, GreedyHasNoGroups) {
  const GateSpec gate = ReadWith(kV2, {{"topk_method", "greedy"}}).layers[1].moe->gate;
  EXPECT_EQ(gate.groups, 1);
  EXPECT_EQ(gate.top_groups, 1);
  EXPECT_EQ(ErrorWith(kV2, {{"topk_method", "greedy"}, {"n_group", nullptr}, {"topk_group", nullptr}}), "no error");
  EXPECT_EQ(ErrorWith(kV2, {{"n_group", nullptr}}), "config.json: key n_group is null");
  EXPECT_EQ(ErrorWithout("deepseek-v2-lite", "n_group"), "config.json: key n_group is missing");
  EXPECT_EQ(ErrorWithout("deepseek-v2-lite", "topk_group"), "config.json: key topk_group is missing");
}

TEST(DeepseekV2, RefusesWhatItDoesNotCompute) {
  EXPECT_EQ(ErrorWithout(kV2, "topk_method"), "config.json: key topk_method is missing");
  EXPECT_EQ(ErrorWithout(kV2, "routed_scaling_factor"), "config.json: key routed_scaling_factor is missing");
  EXPECT_EQ(ErrorWith(kV2, {{"topk_method", "noaux_tc"}}),
            "config.json: topk_method \"noaux_tc\" is unknown (greedy, group_limited_greedy)");
  EXPECT_EQ(ErrorWith(kV2, {{"scoring_func", "sigmoid"}}),
            "config.json: scoring_func \"sigmoid\" is unknown (softmax)");
  EXPECT_THAT(ErrorWith(kV2, {{"norm_topk_prob", true}}), HasSubstr("norm_topk_prob is true, not false"));
  EXPECT_THAT(ErrorWith(kV2, {{"moe_layer_freq", 2}}), HasSubstr("moe_layer_freq is 2, not absent or 1"));
  EXPECT_THAT(ErrorWith(kV2, {{"moe_layer_freq", {1, 0}}}), HasSubstr("moe_layer_freq is [1, 0]"));
  EXPECT_THAT(ErrorWith(kV2, {{"mlp_bias", true}}), HasSubstr("mlp_bias is true"));
}

TEST(DeepseekV3, Gate) {
  const GateSpec gate = ReadWith(kV3).layers[3].moe->gate;
  EXPECT_EQ(gate.num_experts, 256);
  EXPECT_EQ(gate.experts_per_token, 8);
  EXPECT_EQ(gate.scoring, GateSpec::Scoring::kSigmoid);
  EXPECT_FALSE(gate.select_by_logits);
  EXPECT_TRUE(gate.correction_bias);
  EXPECT_EQ(gate.groups, 8);
  EXPECT_EQ(gate.top_groups, 4);
  EXPECT_EQ(gate.group_score, GateSpec::GroupScore::kSumOfTwo);
  EXPECT_EQ(gate.normalization, GateSpec::Normalization::kSum);
  EXPECT_EQ(gate.normalization_eps, 1e-20f);
  EXPECT_EQ(gate.scale, 2.5f);
}

TEST(DeepseekV3, NormalisationIsOnUnlessSaid) {
  EXPECT_EQ(ReadWithout(kV3, {"norm_topk_prob"}).layers[3].moe->gate.normalization, GateSpec::Normalization::kSum);
  const GateSpec plain = ReadWith(kV3, {{"norm_topk_prob", false}}).layers[3].moe->gate;
  EXPECT_EQ(plain.normalization, GateSpec::Normalization::kNone);
  EXPECT_EQ(plain.scale, 2.5f);
}

TEST(DeepseekV3, SelectionKeysMayBeAbsentAndAreChecked) {
  EXPECT_THAT(ReadWithout(kV3, {"scoring_func", "topk_method", "moe_layer_freq"}).warnings, IsEmpty());
  EXPECT_EQ(ErrorWith(kV3, {{"scoring_func", "tanh"}}), "config.json: scoring_func \"tanh\" is unknown (sigmoid)");
  EXPECT_EQ(ErrorWith(kV3, {{"scoring_func", "softmax"}}),
            "config.json: scoring_func \"softmax\" is unknown (sigmoid)");
  EXPECT_EQ(ErrorWith(kV3, {{"topk_method", "greedy"}}), "config.json: topk_method \"greedy\" is unknown (noaux_tc)");
}

TEST(DeepseekV3, GroupsMustFit) {
  EXPECT_EQ(ErrorWith(kV3, {{"n_group", 7}}), "config.json: n_group is 7, not a divisor of n_routed_experts, 256");
  EXPECT_EQ(ErrorWith(kV3, {{"topk_group", 9}}), "config.json: topk_group is 9, not at most n_group, 8");
  EXPECT_THAT(ErrorWith(kV3, {{"n_group", 64}, {"topk_group", 1}}),
              HasSubstr("topk_group is 1, not enough for num_experts_per_tok, 8, in groups of 4"));
  EXPECT_THAT(ErrorWith(kV3, {{"n_group", 256}, {"topk_group", 8}}), HasSubstr("at least 2 of 256 experts"));
  EXPECT_EQ(ErrorWith(kV3, {{"n_group", 128}, {"topk_group", 4}}), "no error");
  EXPECT_EQ(ErrorWith(kV3, {{"n_group", 1}, {"topk_group", 1}}), "no error");
  EXPECT_EQ(ErrorWithout(kV3, "n_group"), "config.json: key n_group is missing");
  EXPECT_EQ(ErrorWithout(kV3, "routed_scaling_factor"), "config.json: key routed_scaling_factor is missing");
}

TEST(DeepseekV3, PredictionLayersAreExtra) {
  const ModelConfig config = ReadWith(kV3, {{"num_nextn_predict_layers", 2}});
  EXPECT_EQ(config.num_layers(), 61);
  EXPECT_EQ(config.prediction_layers, 2);
  EXPECT_EQ(config.tensor_names.prediction_prefix, "model.layers.");
  EXPECT_EQ(ReadWithout(kV3, {"num_nextn_predict_layers"}).prediction_layers, 0);
  EXPECT_THAT(ErrorWith("qwen3-30b-a3b", {{"num_nextn_predict_layers", 1}}),
              HasSubstr("num_nextn_predict_layers is 1, not absent or 0"));
}

// quantization_config.

json Fp8() {
  return {
      {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {128, 128}}};
}

TEST(StoredEncodings, Fp8Blocks) {
  EXPECT_EQ(ReadWith(kV3).encoding, StoredEncoding::kFp8Blocks);
  EXPECT_EQ(ReadWith(kV3).stored_type, WeightType::kBf16);
  EXPECT_EQ(ReadWithout(kV3, {"quantization_config"}).encoding, StoredEncoding::kPlain);
  for (const char* name : {"qwen3-30b-a3b", "mixtral-8x7b", "olmoe-1b-7b", "deepseek-v2"}) {
    const ModelConfig config = ReadWith(name, {{"quantization_config", Fp8()}});
    EXPECT_EQ(config.encoding, StoredEncoding::kFp8Blocks) << name;
    EXPECT_THAT(config.warnings, IsEmpty()) << name;
  }
}

TEST(StoredEncodings, Fp8InOtherBlocksIsRefused) {
  const auto error = [](const json& changes) {
    json settings = Fp8();
    settings.update(changes);
    return ErrorWith(kV3, {{"quantization_config", settings}});
  };
  EXPECT_EQ(error({{"modules_to_not_convert", {"lm_head"}}, {"scale_fmt", "ue8m0"}}), "no error");
  EXPECT_EQ(error({{"weight_block_size", {64, 128}}}),
            "config.json: quantization_config.weight_block_size is [64, 128], not [128, 128]");
  EXPECT_EQ(error({{"weight_block_size", nullptr}}),
            "config.json: quantization_config.weight_block_size is null, not [128, 128]");
  EXPECT_THAT(error({{"fmt", "e5m2"}}), HasSubstr("quantization_config.fmt is \"e5m2\", not absent or \"e4m3\""));
  EXPECT_THAT(error({{"activation_scheme", "static"}}), HasSubstr("activation_scheme is \"static\""));
  EXPECT_EQ(error({{"quant_method", nullptr}}), "config.json: key quantization_config.quant_method is null");
}

TEST(StoredEncodings, UnknownMethodsAreNamed) {
  const auto error = [](const char* name, const char* method) {
    return ErrorWith(name, {{"quantization_config", {{"quant_method", method}, {"weight_block_size", {128, 128}}}}});
  };
  EXPECT_EQ(error(kV3, "gptq"), "config.json: quantization_config.quant_method \"gptq\" is unknown (fp8)");
  EXPECT_EQ(error(kV3, "mxfp4"), "config.json: quantization_config.quant_method \"mxfp4\" is unknown (fp8)");
  EXPECT_EQ(error("gpt-oss-20b", "fp8"), "config.json: quantization_config.quant_method \"fp8\" is unknown (mxfp4)");
  EXPECT_THAT(error("switch-base-8", "fp8"), HasSubstr("quantization_config is {\"quant_method\": \"fp8\""));
  EXPECT_THAT(ErrorWith(kV3, {{"quantization_config", "fp8"}}), HasSubstr("quantization_config is \"fp8\", not an"));
}

}  // namespace
}  // namespace moe
