// Llama 4: flat, and inside the configuration of a model that also sees images.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/config.h"
#include "model/tensor_specs.h"
#include "tests/model/published_config.h"

namespace moe {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

json Text(const json& changes = json::object(), const std::vector<std::string>& without = {}) {
  return GoldenWith("llama4_text", changes, without);
}

std::vector<int> RopeLayers(const json& config) {
  std::vector<int> rope;
  for (const LayerSpec& layer : MustRead(config).layers) rope.push_back(layer.attention.rope ? 1 : 0);
  return rope;
}

TEST(Llama4, ReadsTheGolden) {
  const ModelConfig config = MustRead(Text());
  EXPECT_EQ(config.model_type, "llama4_text");
  EXPECT_THAT(config.sparse_layers(), ElementsAre(1, 3));
  EXPECT_EQ(config.layers[0].dense_mlp.intermediate, 88);
  const MoeSpec& moe = config.layers[1].moe.value();
  EXPECT_EQ(moe.expert.intermediate, 40);
  EXPECT_EQ(moe.shared.value().intermediate, 40);
  EXPECT_FALSE(moe.shared_gate);
  EXPECT_EQ(moe.gate.scoring, GateSpec::Scoring::kSigmoid);
  EXPECT_TRUE(moe.gate.select_by_logits && moe.gate.scales_input);
  EXPECT_EQ(moe.gate.normalization, GateSpec::Normalization::kNone);
  EXPECT_EQ(moe.gate.experts_per_token, 1);

  const AttentionSpec& rope = config.layers[0].attention;
  EXPECT_TRUE(rope.rope);
  EXPECT_EQ(rope.chunk, 8);
  EXPECT_EQ(rope.qk_norm, QkNorm::kUnitAfterRope);
  EXPECT_FALSE(rope.temperature.has_value());
  const AttentionSpec& nope = config.layers[3].attention;
  EXPECT_FALSE(nope.rope);
  EXPECT_EQ(nope.chunk, 0);
  EXPECT_EQ(nope.qk_norm, QkNorm::kNone);
  ASSERT_TRUE(nope.temperature.has_value());
  EXPECT_EQ(nope.temperature->scale, 0.1);
  EXPECT_EQ(nope.temperature->floor_scale, 8);
  EXPECT_EQ(config.rope.pairing, RopePairing::kInterleaved);
  EXPECT_EQ(config.rope.width, 20);
  EXPECT_EQ(config.rope.scaling, RopeScaling::kLlama3);
  const ExpertLayout& layout = config.tensor_names.expert_layout;
  EXPECT_TRUE(layout.fused && layout.transposed && layout.bare_names);
  EXPECT_FALSE(layout.interleaved);
}

TEST(Llama4, ReadsTheHubsForm) {
  const ModelConfig config = ReadWith("llama-4-maverick");
  EXPECT_EQ(config.model_type, "llama4");
  EXPECT_EQ(config.architecture, "Llama4ForConditionalGeneration");
  EXPECT_EQ(config.num_layers(), 48);
  EXPECT_EQ(config.sparse_layers().size(), 24u);
  EXPECT_EQ(config.sparse_layers().front(), 1);
  EXPECT_EQ(config.stored_type, WeightType::kBf16);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(200001u, 200007u, 200008u));
  EXPECT_FALSE(config.layers[3].attention.rope);
  EXPECT_EQ(config.layers[3].attention.temperature.value().floor_scale, 8192);
  EXPECT_TRUE(config.layers[4].attention.rope);
  EXPECT_EQ(config.layers[4].attention.chunk, 8192);
  EXPECT_EQ(config.layers[4].attention.qk_norm, QkNorm::kNone);  // use_qk_norm false
  EXPECT_EQ(config.rope.scaling, RopeScaling::kNone);
}

TEST(Llama4, EveryTensorOfTheHubsFormHasThePrefix) {
  const ModelConfig config = ReadWith("llama-4-maverick");
  std::vector<TensorSpec> specs = OuterTensors(config);
  for (const int layer : {0, 1, 3}) {
    const auto add = [&](std::vector<TensorSpec> more) { specs.insert(specs.end(), more.begin(), more.end()); };
    add(LayerTensors(config, layer));
    if (config.layers[static_cast<std::size_t>(layer)].moe) add(ExpertTensors(config, layer, 5));
  }
  EXPECT_GT(specs.size(), 30u);
  for (const TensorSpec& spec : specs) EXPECT_TRUE(spec.name.starts_with("language_model.")) << spec.name;
  EXPECT_EQ(specs[0].name, "language_model.model.embed_tokens.weight");
  for (const char* name : {"vision_model.a.b", "multi_modal_projector.linear_1.weight"}) {
    EXPECT_TRUE(IsIgnorable(config, name)) << name;
    EXPECT_FALSE(IsIgnorable(MustRead(Text()), name)) << name;
  }
}

TEST(Llama4, OuterAndInnerKeys) {
  const auto with = [](const json& outer, const json& inner) {
    json config = Published("llama-4-scout");
    config.update(outer);
    config["text_config"].update(inner);
    return config;
  };
  const char* const name = "config.json: ";
  EXPECT_EQ(MustRead(with({{"torch_dtype", "float16"}}, json::object())).stored_type, WeightType::kBf16);
  EXPECT_EQ(MustRead(with({{"torch_dtype", "float16"}}, {{"torch_dtype", nullptr}})).stored_type, WeightType::kF16);
  EXPECT_THAT(MustRead(with({{"eos_token_id", 7}}, {{"eos_token_id", nullptr}})).eos_token_ids, ElementsAre(7u));
  EXPECT_THAT(MustRead(with({{"eos_token_id", 7}}, {{"eos_token_id", 8}})).eos_token_ids, ElementsAre(8u));
  EXPECT_THAT(MustRead(with({{"vision_config", {{"hidden_size", 3}}}}, json::object())).warnings, IsEmpty());
  EXPECT_THAT(MustRead(with({{"frob", 1}}, {{"frob", 2}})).warnings,
              ElementsAre("config.json: key text_config.frob is unknown and ignored",
                          "config.json: key frob is unknown and ignored"));
  EXPECT_EQ(Error(with({{"tie_word_embeddings", true}}, json::object())),
            std::string(name) + "tie_word_embeddings is true, not false, as text_config says");
  EXPECT_THAT(Error(with({{"sliding_window", 5}}, json::object())), HasSubstr("config.json: sliding_window is 5"));
  EXPECT_THAT(Error(with(json::object(), {{"sliding_window", 5}})), HasSubstr("text_config.sliding_window is 5"));
  EXPECT_THAT(Error(with(json::object(), {{"hidden_size", 0}})),
              HasSubstr("config.json: text_config.hidden_size is 0,"));
  EXPECT_THAT(Error(with(json::object(), {{"rope_scaling", {{"rope_type", "frob"}}}})),
              HasSubstr("text_config.rope_scaling.rope_type \"frob\" is unknown"));
  EXPECT_EQ(Error(with(json::object(), {{"model_type", "llama"}})),
            std::string(name) + "text_config.model_type \"llama\" is unknown (llama4_text)");
  EXPECT_EQ(Error(with(json::object(), {{"model_type", nullptr}})), "no error");
  EXPECT_EQ(ErrorWithout("llama-4-scout", "text_config"), std::string(name) + "key text_config is missing");
  EXPECT_THAT(ErrorWith("llama-4-scout", {{"text_config", 3}}), HasSubstr("text_config is 3, not an object"));
  EXPECT_THAT(ErrorWith("llama-4-scout", {{"quantization_config", {{"quant_method", "compressed-tensors"}}}}),
              HasSubstr("quantization_config is {\"quant_method\": \"compressed-tensors\"}"));
}

TEST(Llama4, WhichLayersRotate) {
  EXPECT_THAT(RopeLayers(Text({{"no_rope_layers", {0, 1, 0, 1}}})), ElementsAre(0, 1, 0, 1));
  EXPECT_THAT(RopeLayers(Text({{"no_rope_layers", {0, 1, 0, 1, 1, 0}}})), ElementsAre(0, 1, 0, 1));
  for (const json& none : {json(nullptr), json::array()}) {
    EXPECT_THAT(RopeLayers(Text({{"no_rope_layers", none}})), ElementsAre(1, 1, 1, 0));
    EXPECT_THAT(RopeLayers(Text({{"no_rope_layers", none}, {"no_rope_layer_interval", 2}})), ElementsAre(1, 0, 1, 0));
  }
  EXPECT_THAT(RopeLayers(Text(json::object(), {"no_rope_layers"})), ElementsAre(1, 1, 1, 0));
  EXPECT_THAT(Error(Text({{"no_rope_layers", {1, 1}}})), HasSubstr("no_rope_layers is [1, 1], not a list of"));
  EXPECT_THAT(Error(Text({{"no_rope_layers", {1, 1, 1, 2}}})), HasSubstr("whole numbers from 0 to 1"));
  EXPECT_THAT(Error(Text({{"no_rope_layer_interval", 0}})), HasSubstr("no_rope_layer_interval is 0"));
}

TEST(Llama4, WhichLayersRoute) {
  EXPECT_THAT(MustRead(Text({{"moe_layers", {0, 2}}})).sparse_layers(), ElementsAre(0, 2));
  EXPECT_THAT(MustRead(Text({{"moe_layers", json::array()}})).sparse_layers(), IsEmpty());
  EXPECT_THAT(MustRead(Text({{"moe_layers", nullptr}, {"interleave_moe_layer_step", 3}})).sparse_layers(),
              ElementsAre(2));
  EXPECT_THAT(MustRead(Text({{"interleave_moe_layer_step", 1}})).sparse_layers(), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Error(Text({{"interleave_moe_layer_step", 0}})), HasSubstr("interleave_moe_layer_step is 0"));
  EXPECT_EQ(Error(Text(json::object(), {"interleave_moe_layer_step"})),
            "config.json: key interleave_moe_layer_step is missing");
}

TEST(Llama4, Chunks) {
  EXPECT_EQ(MustRead(Text({{"attention_chunk_size", nullptr}})).layers[0].attention.chunk, 0);
  EXPECT_EQ(MustRead(Text(json::object(), {"attention_chunk_size"})).layers[0].attention.chunk, 8192);
  EXPECT_THAT(Error(Text({{"attention_chunk_size", 0}})), HasSubstr("attention_chunk_size is 0"));
  const json types = {"full_attention", "chunked_attention", "full_attention", "chunked_attention"};
  const ModelConfig listed = MustRead(Text({{"layer_types", types}}));
  EXPECT_EQ(listed.layers[0].attention.chunk, 0);
  EXPECT_TRUE(listed.layers[0].attention.rope);
  EXPECT_EQ(listed.layers[3].attention.chunk, 8);
  EXPECT_THAT(Error(Text({{"layer_types", {"sliding_attention", "a", "b", "c"}}})),
              HasSubstr("layer_types[0] \"sliding_attention\" is unknown (full_attention, chunked_attention)"));
}

TEST(Llama4, TemperatureIsOnUnlessFalse) {
  const auto tuned = [](const json& config) { return MustRead(config).layers[3].attention.temperature.has_value(); };
  for (const json& yes : {json(true), json(4), json(1.5)}) {
    EXPECT_TRUE(tuned(Text({{"attn_temperature_tuning", yes}}))) << yes;
  }
  for (const json& no : {json(false), json(0), json(nullptr)}) {
    EXPECT_FALSE(tuned(Text({{"attn_temperature_tuning", no}}))) << no;
  }
  EXPECT_TRUE(tuned(Text(json::object(), {"attn_temperature_tuning"})));
  EXPECT_THAT(Error(Text({{"attn_temperature_tuning", "yes"}})),
              HasSubstr("attn_temperature_tuning is \"yes\", not true, false or a number"));
  const QueryTemperature defaults =
      MustRead(Text(json::object(), {"attn_scale", "floor_scale"})).layers[3].attention.temperature.value();
  EXPECT_EQ(defaults.scale, 0.1);
  EXPECT_EQ(defaults.floor_scale, 8192);
}

TEST(Llama4, OtherOptions) {
  EXPECT_EQ(MustRead(Text({{"use_qk_norm", false}})).layers[0].attention.qk_norm, QkNorm::kNone);
  EXPECT_EQ(MustRead(Text(json::object(), {"use_qk_norm"})).layers[0].attention.qk_norm, QkNorm::kUnitAfterRope);
  EXPECT_EQ(MustRead(Text(json::object(), {"head_dim"})).layers[0].attention.head_dim, 128);
  EXPECT_EQ(MustRead(Text({{"head_dim", nullptr}})).layers[0].attention.head_dim, 16);
  EXPECT_EQ(MustRead(Text({{"num_experts_per_tok", 3}})).experts_per_token(), 3);
  const AttentionSpec biased = MustRead(Text({{"attention_bias", true}})).layers[0].attention;
  EXPECT_TRUE(biased.qkv_bias && biased.out_bias);
  EXPECT_EQ(Error(Text(json::object(), {"intermediate_size_mlp"})),
            "config.json: key intermediate_size_mlp is missing");
}

}  // namespace
}  // namespace moe
