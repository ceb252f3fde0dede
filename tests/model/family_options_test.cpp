// The options of Qwen, OLMoE, gpt-oss, GLM-4-MoE and Granite-MoE that no golden has, and what they refuse.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "model/config.h"
#include "tests/model/published_config.h"

namespace moe {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr auto kSum = GateSpec::Normalization::kSum;
constexpr auto kNone = GateSpec::Normalization::kNone;

const char* const kQwen2 = "qwen2-57b-a14b";
const char* const kQwen3 = "qwen3-30b-a3b";

TEST(Qwen, SparseLayers) {
  EXPECT_THAT(MustRead(GoldenWith("qwen3_moe", {{"mlp_only_layers", {0, 2, 40}}})).sparse_layers(), ElementsAre(1));
  EXPECT_THAT(MustRead(GoldenWith("qwen3_moe", {{"decoder_sparse_step", 3}})).sparse_layers(), ElementsAre(2));
  EXPECT_THAT(MustRead(GoldenWith("qwen2_moe", {{"mlp_only_layers", {3}}})).sparse_layers(), ElementsAre(1));
  EXPECT_THAT(MustRead(GoldenWith("qwen2_moe", {}, {"decoder_sparse_step"})).sparse_layers(), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(MustRead(GoldenWith("qwen2_moe", {{"decoder_sparse_step", 9}})).sparse_layers(), IsEmpty());
  EXPECT_THAT(ErrorWith(kQwen3, {{"decoder_sparse_step", 0}}), HasSubstr("decoder_sparse_step is 0"));
  EXPECT_THAT(ErrorWith(kQwen3, {{"mlp_only_layers", {1, -1}}}),
              HasSubstr("mlp_only_layers is [1, -1], not a list of"));
  EXPECT_THAT(ErrorWith(kQwen3, {{"mlp_only_layers", 1}}), HasSubstr("mlp_only_layers is 1, not a list of"));
}

TEST(Qwen, WithoutExpertsEveryLayerIsDense) {
  for (const char* name : {kQwen2, kQwen3}) {
    const ModelConfig config = ReadWith(name, {{"num_experts", 0}});
    EXPECT_THAT(config.sparse_layers(), IsEmpty()) << name;
    EXPECT_THAT(config.warnings, IsEmpty()) << name;
    EXPECT_GT(config.layers[0].dense_mlp.intermediate, 0) << name;
    EXPECT_EQ(ErrorWithout(name, "num_experts"), "config.json: key num_experts is missing");
  }
}

TEST(Qwen, Normalisation) {
  for (const char* name : {kQwen2, kQwen3}) {
    EXPECT_EQ(ReadWith(name, {{"norm_topk_prob", true}}).layers[0].moe->gate.normalization, kSum) << name;
    EXPECT_EQ(ReadWith(name, {{"norm_topk_prob", false}}).layers[0].moe->gate.normalization, kNone) << name;
    EXPECT_EQ(ReadWithout(name, {"norm_topk_prob"}).layers[0].moe->gate.normalization, kNone) << name;
  }
}

TEST(Qwen, Biases) {
  EXPECT_FALSE(ReadWith(kQwen2, {{"qkv_bias", false}}).layers[0].attention.qkv_bias);
  EXPECT_TRUE(ReadWith(kQwen2, {{"qkv_bias", true}}).layers[0].attention.qkv_bias);
  EXPECT_THAT(ErrorWith(kQwen2, {{"attention_bias", true}}), HasSubstr("attention_bias is true"));
  EXPECT_THAT(ErrorWith(kQwen3, {{"qkv_bias", true}}), HasSubstr("qkv_bias is true"));
  const AttentionSpec biased = ReadWith(kQwen3, {{"attention_bias", true}}).layers[0].attention;
  EXPECT_TRUE(biased.qkv_bias && biased.out_bias);
  const AttentionSpec dense = MustRead(GoldenWith("qwen3", {{"attention_bias", true}})).layers[0].attention;
  EXPECT_TRUE(dense.qkv_bias && dense.out_bias);
}

TEST(Qwen, SizesOfExpertsAreRequired) {
  for (const char* key : {"num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size"}) {
    EXPECT_EQ(ErrorWithout(kQwen2, key), std::string("config.json: key ") + key + " is missing");
  }
  EXPECT_THAT(ErrorWith(kQwen3, {{"num_experts_per_tok", 129}}),
              HasSubstr("num_experts_per_tok is 129, not at most num_experts, 128"));
}

TEST(Qwen, HeadDimWhenAbsentOrNull) {
  EXPECT_EQ(MustRead(GoldenWith("qwen3", {}, {"head_dim"})).layers[0].attention.head_dim, 128);
  EXPECT_EQ(MustRead(GoldenWith("qwen3", {{"head_dim", nullptr}})).layers[0].attention.head_dim, 16);
  EXPECT_EQ(MustRead(GoldenWith("qwen3_moe", {}, {"head_dim"})).layers[0].attention.head_dim, 16);
  EXPECT_EQ(MustRead(GoldenWith("qwen2_moe", {{"head_dim", 8}})).layers[0].attention.head_dim, 8);
}

TEST(Qwen, WindowsAreRefusedOnlyWhenUsed) {
  for (const json& config : {GoldenWith("qwen3", {}), GoldenWith("qwen3_moe", {}), GoldenWith("qwen2_moe", {})}) {
    json changed = config;
    changed["sliding_window"] = 4;
    EXPECT_EQ(MustRead(changed).layers[0].attention.window, 0);
    EXPECT_THAT(MustRead(changed).warnings, IsEmpty());
    changed["use_sliding_window"] = true;
    EXPECT_THAT(Error(changed), HasSubstr("use_sliding_window is true, not absent or false"));
  }
}

TEST(Qwen, LayerTypesMayOnlyBeFull) {
  json config = GoldenWith("qwen3_moe", {});
  config["layer_types"] = {"full_attention", "full_attention", "full_attention"};
  EXPECT_EQ(Error(config), "no error");
  config["layer_types"][1] = "sliding_attention";
  EXPECT_EQ(Error(config), "config.json: layer_types[1] \"sliding_attention\" is unknown (full_attention)");
  config["layer_types"] = {"full_attention"};
  EXPECT_THAT(Error(config), HasSubstr("layer_types is [\"full_attention\"], not a list of num_hidden_layers, 3"));
}

TEST(Olmoe, Options) {
  const char* const name = "olmoe-1b-7b";
  EXPECT_EQ(ReadWith(name, {{"clip_qkv", 8}}).layers[0].attention.clip_qkv, 8);
  EXPECT_EQ(ReadWithout(name, {"clip_qkv"}).layers[0].attention.clip_qkv, 0);
  EXPECT_THAT(ErrorWith(name, {{"clip_qkv", -1}}), HasSubstr("clip_qkv is -1"));
  EXPECT_EQ(ReadWith(name, {{"norm_topk_prob", true}}).layers[0].moe->gate.normalization, kSum);
  EXPECT_EQ(ReadWithout(name, {"norm_topk_prob"}).layers[0].moe->gate.normalization, kNone);
  const AttentionSpec biased = ReadWith(name, {{"attention_bias", true}}).layers[0].attention;
  EXPECT_TRUE(biased.qkv_bias && biased.out_bias);
  EXPECT_THAT(ErrorWith(name, {{"sliding_window", 4096}}), HasSubstr("sliding_window is 4096"));
}

const char* const kOss = "gpt-oss-20b";

TEST(GptOss, Windows) {
  const ModelConfig absent = ReadWithout(kOss, {"layer_types"});
  EXPECT_EQ(absent.layers[0].attention.window, 128);
  EXPECT_EQ(absent.layers[1].attention.window, 0);
  json config = GoldenWith("gpt_oss", {});
  config["layer_types"] = {"full_attention", "full_attention", "sliding_attention", "full_attention"};
  EXPECT_EQ(MustRead(config).layers[0].attention.window, 0);
  EXPECT_EQ(MustRead(config).layers[2].attention.window, 8);
  config["layer_types"][3] = "chunked_attention";
  EXPECT_EQ(Error(config),
            "config.json: layer_types[3] \"chunked_attention\" is unknown (full_attention, sliding_attention)");
  EXPECT_EQ(ErrorWithout(kOss, "sliding_window"), "config.json: key sliding_window is missing");
  config["layer_types"] = {"full_attention", "full_attention", "full_attention", "full_attention"};
  config["sliding_window"] = nullptr;
  EXPECT_EQ(Error(config), "no error");
}

TEST(GptOss, ExpertsPerTokenStandTwice) {
  EXPECT_EQ(ErrorWith(kOss, {{"experts_per_token", 3}}),
            "config.json: experts_per_token is 3, not 4, as num_experts_per_tok says");
  EXPECT_EQ(ReadWithout(kOss, {"experts_per_token"}).experts_per_token(), 4);
  EXPECT_EQ(ReadWithout(kOss, {"num_experts_per_tok"}).experts_per_token(), 4);
  json config = Published(kOss);
  config.erase("experts_per_token");
  config.erase("num_experts_per_tok");
  EXPECT_EQ(Error(config), "config.json: key num_experts_per_tok is missing");
  config["experts_per_token"] = 33;
  EXPECT_EQ(Error(config), "config.json: experts_per_token is 33, not at most num_local_experts, 32");
}

TEST(GptOss, Defaults) {
  const ModelConfig config = ReadWithout(kOss, {"head_dim", "swiglu_limit", "attention_bias", "rope_theta"});
  EXPECT_EQ(config.layers[0].attention.head_dim, 64);
  EXPECT_EQ(config.layers[0].moe->expert.limit, 7);
  EXPECT_TRUE(config.layers[0].attention.qkv_bias && config.layers[0].attention.out_bias);
  EXPECT_EQ(config.rope.theta, 150000);
  EXPECT_EQ(MustRead(GoldenWith("gpt_oss", {{"head_dim", nullptr}})).layers[0].attention.head_dim, 16);
}

TEST(GptOss, Options) {
  const ModelConfig config = ReadWith(kOss, {{"swiglu_limit", 3.5}, {"attention_bias", false}});
  EXPECT_EQ(config.layers[0].moe->expert.limit, 3.5f);
  EXPECT_FALSE(config.layers[0].attention.qkv_bias || config.layers[0].attention.out_bias);
  EXPECT_THAT(ErrorWith(kOss, {{"swiglu_alpha", 1.5}}), HasSubstr("swiglu_alpha is 1.5, not absent or 1.702"));
  EXPECT_THAT(ErrorWith(kOss, {{"hidden_act", "gelu"}}), HasSubstr("hidden_act \"gelu\" is unknown (silu)"));
}

TEST(GptOss, StoredPlainOrInMxfp4) {
  const ModelConfig plain = ReadWithout(kOss, {"quantization_config", "torch_dtype"});
  EXPECT_EQ(plain.encoding, StoredEncoding::kPlain);
  EXPECT_EQ(plain.stored_type, WeightType::kBf16);
  EXPECT_EQ(ReadWith(kOss, {{"dtype", "float32"}}).stored_type, WeightType::kF32);
  const ModelConfig mx = ReadWith(
      kOss, {{"quantization_config", {{"quant_method", "mxfp4"}, {"dequantize", false}, {"anything", "else"}}}});
  EXPECT_EQ(mx.encoding, StoredEncoding::kMxfp4);
  EXPECT_THAT(mx.warnings, IsEmpty());
}

TEST(GptOss, WithoutRopeSettingsYarnAsPublished) {
  const RopeSpec absent = ReadWithout(kOss, {"rope_scaling"}).rope;
  const RopeSpec published = ReadWith(kOss).rope;
  EXPECT_EQ(absent.Frequencies(), published.Frequencies());
  EXPECT_EQ(absent.magnitude, published.magnitude);
  EXPECT_EQ(ErrorWith(kOss, {{"rope_scaling", nullptr}}),
            "config.json: rope_scaling is null, not an object ({\"rope_type\": \"default\"} is no scaling)");
  EXPECT_EQ(ReadWith(kOss, {{"rope_scaling", {{"rope_type", "default"}}}}).rope.scaling, RopeScaling::kNone);
}

TEST(Glm4Moe, RotatedPartOfTheHead) {
  EXPECT_EQ(MustRead(GoldenWith("glm4_moe", {}, {"partial_rotary_factor"})).rope.width, 8);
  EXPECT_EQ(MustRead(GoldenWith("glm4_moe", {{"partial_rotary_factor", 1.0}})).rope.width, 16);
  EXPECT_EQ(MustRead(GoldenWith("glm4_moe", {{"partial_rotary_factor", 0.26}})).rope.width, 4);  // 16 * 0.26 = 4.16
  EXPECT_EQ(Error(GoldenWith("glm4_moe", {{"partial_rotary_factor", 0.2}})),
            "config.json: partial_rotary_factor 0.2 rotates 3 of a head's 16 elements, not an even number from 2");
  EXPECT_THAT(Error(GoldenWith("glm4_moe", {{"partial_rotary_factor", 0.05}})), HasSubstr("rotates 0 of"));
  EXPECT_THAT(Error(GoldenWith("glm4_moe", {{"partial_rotary_factor", 1.5}})),
              HasSubstr("partial_rotary_factor is 1.5, not a number from"));
  json inside = GoldenWith("glm4_moe", {}, {"partial_rotary_factor", "rope_theta", "rope_scaling"});
  inside["rope_parameters"] = {{"rope_theta", 1e6}, {"partial_rotary_factor", 0.25}, {"rope_type", "default"}};
  EXPECT_EQ(MustRead(inside).rope.width, 4);
  EXPECT_THAT(MustRead(inside).warnings, IsEmpty());
  inside["partial_rotary_factor"] = 0.5;
  EXPECT_EQ(Error(inside), "config.json: partial_rotary_factor is 0.5, not 0.25, as rope_parameters says");
  // Half of an odd head may be even.
  EXPECT_EQ(MustRead(GoldenWith("glm4_moe", {{"head_dim", 13}})).rope.width, 6);
}

TEST(Glm4Moe, Options) {
  const ModelConfig plain = MustRead(GoldenWith("glm4_moe", {}, {"attention_bias", "use_qk_norm", "norm_topk_prob"}));
  EXPECT_FALSE(plain.layers[0].attention.qkv_bias);
  EXPECT_EQ(plain.layers[0].attention.qk_norm, QkNorm::kNone);
  EXPECT_EQ(plain.layers[1].moe->gate.normalization, kSum);
  EXPECT_THAT(MustRead(GoldenWith("glm4_moe", {}, {"first_k_dense_replace"})).sparse_layers(), ElementsAre(1, 2));
  EXPECT_EQ(MustRead(GoldenWith("glm4_moe", {{"norm_topk_prob", false}})).layers[1].moe->gate.normalization, kNone);
  const GateSpec grouped = MustRead(GoldenWith("glm4_moe", {{"n_group", 5}, {"topk_group", 2}})).layers[1].moe->gate;
  EXPECT_EQ(grouped.groups, 5);
  EXPECT_EQ(grouped.top_groups, 2);
}

TEST(Granite, Multipliers) {
  const json neutral = GoldenWith("granitemoe", {}, {"embedding_multiplier", "residual_multiplier", "logits_scaling"});
  const ModelConfig config = MustRead(neutral);
  EXPECT_EQ(config.embedding_scale, 1);
  EXPECT_EQ(config.residual_scale, 1);
  EXPECT_EQ(config.logits_scale, 1);
  EXPECT_EQ(MustRead(GoldenWith("granitemoe", {{"logits_scaling", 8}})).logits_scale, 0.125f);
  EXPECT_EQ(Error(GoldenWith("granitemoe", {}, {"attention_multiplier"})),
            "config.json: key attention_multiplier is missing");
  EXPECT_THAT(Error(GoldenWith("granitemoe", {{"logits_scaling", 0}})), HasSubstr("logits_scaling is 0"));
}

TEST(Granite, Options) {
  const AttentionSpec biased = MustRead(GoldenWith("granitemoe", {{"attention_bias", true}})).layers[0].attention;
  EXPECT_TRUE(biased.qkv_bias && biased.out_bias);
  EXPECT_FALSE(MustRead(GoldenWith("granitemoe", {}, {"tie_word_embeddings"})).tied_embeddings);
  EXPECT_THAT(Error(GoldenWith("granitemoe", {{"shared_intermediate_size", 64}})),
              HasSubstr("shared_intermediate_size is 64, not absent or 0"));
  EXPECT_THAT(Error(GoldenWith("granitemoe", {{"position_embedding_type", "nope"}})),
              HasSubstr("position_embedding_type is \"nope\""));
}

TEST(CountedFamilies, Options) {
  json config = Published("gpt2");
  config["n_inner"] = 100;
  config["tie_word_embeddings"] = false;
  const Result<ModelConfig> gpt2 = ParseModelConfig(config.dump(), "mine");
  ASSERT_TRUE(gpt2.ok()) << gpt2.status().message();
  EXPECT_EQ(gpt2->layers[0].dense_mlp.intermediate, 100);
  EXPECT_FALSE(gpt2->tied_embeddings);
  config["n_head"] = 7;
  EXPECT_EQ(ParseModelConfig(config.dump(), "mine").status().message(),
            "mine: n_head is 7, not a divisor of n_embd, 768");
}

}  // namespace
}  // namespace moe
