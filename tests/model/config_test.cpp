#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/model/model_files.h"
#include "tests/model/published_config.h"

namespace moe {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

// What the families read.

TEST(Config, ReadsMixtral) {
  const ModelConfig config = ReadWith("mixtral-8x7b");
  EXPECT_EQ(config.model_type, "mixtral");
  EXPECT_EQ(config.architecture, "MixtralForCausalLM");
  EXPECT_EQ(config.vocab_size, 32000);
  EXPECT_EQ(config.hidden, 4096);
  EXPECT_EQ(config.context_length, 32768);
  EXPECT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_FALSE(config.tied_embeddings);
  EXPECT_EQ(config.stored_type, WeightType::kBf16);
  EXPECT_EQ(config.num_layers(), 32);
  EXPECT_EQ(config.num_experts(), 8);
  EXPECT_EQ(config.experts_per_token(), 2);
  EXPECT_EQ(config.sparse_layers().size(), 32u);
  EXPECT_EQ(config.sparse_layers().back(), 31);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2u));
  EXPECT_THAT(config.warnings, IsEmpty());

  const LayerSpec& layer = config.layers.back();
  EXPECT_EQ(layer.attention.num_heads, 32);
  EXPECT_EQ(layer.attention.num_kv_heads, 8);
  EXPECT_EQ(layer.attention.head_dim, 128);
  EXPECT_EQ(layer.attention.scale, static_cast<float>(1 / std::sqrt(128.0)));
  EXPECT_EQ(layer.attention.window, 0);
  EXPECT_FALSE(layer.attention.qkv_bias);
  EXPECT_FALSE(layer.attention.out_bias);
  ASSERT_TRUE(layer.moe.has_value());
  EXPECT_EQ(layer.moe->expert.intermediate, 14336);
  EXPECT_FALSE(layer.moe->expert.bias);
  EXPECT_EQ(layer.moe->gate.normalization, GateSpec::Normalization::kSum);
  EXPECT_EQ(layer.moe->gate.normalization_eps, 0);
  EXPECT_EQ(layer.moe->gate.scoring, GateSpec::Scoring::kSoftmax);

  EXPECT_EQ(config.rope.width, 128);
  EXPECT_EQ(config.rope.theta, 1e6);
  EXPECT_EQ(config.rope.scaling, RopeScaling::kNone);
  EXPECT_EQ(config.rope.pairing, RopePairing::kHalfSplit);
}

TEST(Config, ReadsMistral) {
  const ModelConfig config = ReadWith("mistral-7b-v0.1");
  EXPECT_EQ(config.num_experts(), 0);
  EXPECT_EQ(config.experts_per_token(), 0);
  EXPECT_THAT(config.sparse_layers(), IsEmpty());
  EXPECT_EQ(config.layers.front().attention.window, 4096);
  EXPECT_EQ(config.layers.back().attention.window, 4096);
  EXPECT_EQ(config.layers.front().dense_mlp.intermediate, 14336);
  EXPECT_FALSE(config.layers.front().moe.has_value());
}

TEST(Config, ReadsLlamaBiases) {
  const ModelConfig none = ReadWith("llama-3.1-8b");
  EXPECT_FALSE(none.layers[0].attention.qkv_bias || none.layers[0].attention.out_bias || none.layers[0].dense_mlp.bias);
  const ModelConfig attention = ReadWith("llama-3.1-8b", {{"attention_bias", true}});
  EXPECT_TRUE(attention.layers[0].attention.qkv_bias);
  EXPECT_TRUE(attention.layers[0].attention.out_bias);
  EXPECT_FALSE(attention.layers[0].dense_mlp.bias);
  const ModelConfig mlp = ReadWith("llama-3.1-8b", {{"mlp_bias", true}});
  EXPECT_FALSE(mlp.layers[0].attention.qkv_bias);
  EXPECT_TRUE(mlp.layers[0].dense_mlp.bias);
}

TEST(Config, AllThreeFamiliesMayTieTheirEmbeddings) {
  for (const char* name : {"llama-3.1-8b", "mistral-7b-v0.1", "mixtral-8x7b"}) {
    EXPECT_FALSE(ReadWith(name).tied_embeddings) << name;
    EXPECT_TRUE(ReadWith(name, {{"tie_word_embeddings", true}}).tied_embeddings) << name;
    EXPECT_FALSE(ReadWithout(name, {"tie_word_embeddings"}).tied_embeddings) << name;
  }
}

TEST(Config, HeadDimIsReadOrHiddenOverHeads) {
  EXPECT_EQ(ReadWith("llama-3.2-3b", {{"head_dim", 64}}).layers[0].attention.head_dim, 64);
  EXPECT_EQ(ReadWith("llama-3.2-3b", {{"head_dim", nullptr}}).layers[0].attention.head_dim, 128);
  EXPECT_EQ(ReadWithout("llama-3.2-3b", {"head_dim"}).layers[0].attention.head_dim, 128);
}

TEST(Config, WithoutKvHeadsEveryHeadHasItsOwn) {
  EXPECT_EQ(ReadWith("llama-3.1-8b", {{"num_key_value_heads", nullptr}}).layers[0].attention.num_kv_heads, 32);
  EXPECT_EQ(ReadWithout("llama-3.1-8b", {"num_key_value_heads"}).layers[0].attention.num_kv_heads, 32);
}

TEST(Config, MixtralHonoursASlidingWindow) {
  EXPECT_EQ(ReadWith("mixtral-8x7b", {{"sliding_window", 8}}).layers[31].attention.window, 8);
  EXPECT_EQ(ReadWithout("mixtral-8x7b", {"sliding_window"}).layers[0].attention.window, 0);
  EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"sliding_window", 0}}), HasSubstr("sliding_window is 0"));
}

TEST(Config, AContradictedSlidingWindowIsAnError) {
  EXPECT_THAT(ErrorWith("mistral-7b-v0.1", {{"use_sliding_window", false}}), HasSubstr("use_sliding_window is false"));
  EXPECT_EQ(ErrorWith("mistral-7b-v0.1", {{"use_sliding_window", true}}), "no error");
  EXPECT_EQ(ErrorWith("mixtral-8x7b", {{"use_sliding_window", false}}), "no error");
}

TEST(Config, RopeThetaDefaultsByFamily) {
  EXPECT_EQ(ReadWithout("mixtral-8x7b", {"rope_theta"}).rope.theta, 1e6);
  EXPECT_EQ(ReadWithout("mistral-7b-v0.1", {"rope_theta"}).rope.theta, 1e4);
  EXPECT_EQ(ReadWithout("llama-3.1-8b", {"rope_theta"}).rope.theta, 1e4);
}

TEST(Config, StoredTypeHasTwoKeysThatMustAgree) {
  EXPECT_EQ(ReadWith("mixtral-8x7b", {{"torch_dtype", "float16"}}).stored_type, WeightType::kF16);
  json config = Published("mixtral-8x7b");
  config.erase("torch_dtype");
  EXPECT_EQ(Read(config)->stored_type, WeightType::kF32);
  config["dtype"] = "bfloat16";
  EXPECT_EQ(Read(config)->stored_type, WeightType::kBf16);
  config["torch_dtype"] = "float32";
  EXPECT_THAT(Error(config), AllOf(HasSubstr("torch_dtype is \"float32\""), HasSubstr("bfloat16")));
  EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"torch_dtype", "int8"}}), HasSubstr("torch_dtype \"int8\" is unknown"));
}

TEST(Config, ArchitectureFallsBackToTheFamilys) {
  EXPECT_EQ(ReadWithout("mistral-7b-v0.1", {"architectures"}).architecture, "MistralForCausalLM");
  EXPECT_THAT(ErrorWith("mistral-7b-v0.1", {{"architectures", {7}}}), HasSubstr("architectures is [7]"));
}

TEST(Config, ReadsAFileOfAnotherName) {
  const Result<ModelConfig> config = ReadModelConfigFile(InRepository("models/published/mixtral-8x7b.json"));
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->num_experts(), 8);
  const TemporaryFolder folder;
  folder.Write("mine.json", "{}");
  EXPECT_EQ(ReadModelConfigFile(folder.path() / "mine.json").status().message(),
            "mine.json: key model_type is missing");
}

TEST(Config, ReadsTheBundledModelsWithoutWarning) {
  for (const char* name :
       {"models/eight-languages-moe", "models/eight-languages-dense", "models/eight-languages-collapsed"}) {
    const Result<ModelConfig> config = ReadModelConfig(InRepository(name));
    ASSERT_TRUE(config.ok()) << config.status().message();
    EXPECT_THAT(config->warnings, IsEmpty()) << name;
  }
}

// Stop tokens.

std::string EosError(const char* generation_config) {
  const TemporaryFolder folder;
  folder.Write("config.json", Published("llama-3.1-8b").dump());
  folder.Write("generation_config.json", generation_config);
  const Result<ModelConfig> config = ReadModelConfig(folder.path());
  if (!config.ok()) return config.status().message();
  std::string ids;
  for (const std::uint32_t id : config->eos_token_ids) ids += std::to_string(id) + " ";
  return ids;
}

TEST(StopTokens, ComeFromConfig) {
  EXPECT_THAT(ReadWith("llama-3.1-8b").eos_token_ids, ElementsAre(128001u));
  EXPECT_THAT(ReadWith("llama-3.1-8b", {{"eos_token_id", {128001, 128009}}}).eos_token_ids,
              ElementsAre(128001u, 128009u));
  EXPECT_THAT(ReadWith("llama-3.1-8b", {{"eos_token_id", nullptr}}).eos_token_ids, IsEmpty());
  EXPECT_THAT(ReadWithout("llama-3.1-8b", {"eos_token_id"}).eos_token_ids, IsEmpty());
}

TEST(StopTokens, GenerationConfigGoesFirst) {
  EXPECT_EQ(EosError(R"({"eos_token_id": [128001, 128008, 128009], "temperature": 0.6})"), "128001 128008 128009 ");
  EXPECT_EQ(EosError(R"({"eos_token_id": 5})"), "5 ");
  EXPECT_EQ(EosError(R"({"eos_token_id": null})"), "128001 ");
  EXPECT_EQ(EosError("{}"), "128001 ");
}

TEST(StopTokens, BadOnesAreNamedWithTheirFile) {
  EXPECT_THAT(EosError(R"({"eos_token_id": 128256})"),
              AllOf(StartsWith("generation_config.json: eos_token_id is 128256"), HasSubstr("from 0 to 128255")));
  EXPECT_THAT(EosError(R"({"eos_token_id": [3, "x"]})"), HasSubstr("eos_token_id is [3, \"x\"]"));
  EXPECT_THAT(EosError("{oops"), AllOf(StartsWith("generation_config.json"), HasSubstr("not JSON")));
  EXPECT_THAT(EosError("[]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(ErrorWith("llama-3.1-8b", {{"eos_token_id", -1}}), StartsWith("config.json: eos_token_id is -1"));
}

// Files and keys that are wrong.

TEST(BadConfig, MissingFolderAndFile) {
  EXPECT_EQ(ReadModelConfig("/tmp/no-such-model-folder").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ReadModelConfig("/tmp/no-such-model-folder").status().message(),
            "model folder /tmp/no-such-model-folder does not exist");
  const TemporaryFolder folder;
  EXPECT_THAT(ReadModelConfig(folder.path()).status().message(),
              AllOf(HasSubstr(folder.path().string()), HasSubstr("config.json")));
}

TEST(BadConfig, NotJson) {
  for (const char* text : {"{oops", "", "7", "[]", "\"mixtral\"", "{\"model_type\": NaN}"}) {
    const Result<ModelConfig> config = ReadText(text);
    ASSERT_FALSE(config.ok()) << text;
    EXPECT_THAT(config.status().message(), HasSubstr("config.json")) << text;
    EXPECT_EQ(config.status().code(), StatusCode::kInvalidArgument) << text;
  }
}

TEST(BadConfig, AnythingMissingIsNamed) {
  for (const char* key :
       {"model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_local_experts", "num_experts_per_tok", "vocab_size", "max_position_embeddings", "rms_norm_eps"}) {
    EXPECT_EQ(ErrorWithout("mixtral-8x7b", key), std::string("config.json: key ") + key + " is missing");
    EXPECT_THAT(ErrorWith("mixtral-8x7b", {{key, nullptr}}), AllOf(StartsWith("config.json"), HasSubstr(key))) << key;
  }
}

TEST(BadConfig, NumbersOfTheWrongKindOrSizeAreNamedWithTheirValue) {
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "num_key_value_heads", "head_dim", "num_local_experts", "num_experts_per_tok", "vocab_size",
                          "max_position_embeddings", "sliding_window"}) {
    for (const json& value : {json("128"), json(-4), json(0), json(2.5), json(true), json::array({1}),
                              json(std::int64_t{1} << 40), json(std::uint64_t{1} << 63), json(1e300)}) {
      EXPECT_THAT(
          ErrorWith("mixtral-8x7b", {{key, value}}),
          AllOf(StartsWith(std::string("config.json: ") + key + " is "), HasSubstr("not a whole number from 1 to ")))
          << value;
    }
  }
}

TEST(BadConfig, RealsOfTheWrongKindOrSizeAreNamed) {
  for (const char* key : {"rms_norm_eps", "rope_theta"}) {
    for (const json& value : {json("1e-5"), json(-1e-5), json(0), json(1e300), json(false)}) {
      EXPECT_THAT(ErrorWith("mixtral-8x7b", {{key, value}}),
                  AllOf(StartsWith(std::string("config.json: ") + key + " is "), HasSubstr("not a number from ")))
          << value;
    }
  }
}

TEST(BadConfig, FlagsMustBeFlags) {
  EXPECT_THAT(ErrorWith("llama-3.1-8b", {{"tie_word_embeddings", 1}}),
              HasSubstr("tie_word_embeddings is 1, not true or false"));
  EXPECT_THAT(ErrorWith("llama-3.1-8b", {{"attention_bias", "no"}}), HasSubstr("attention_bias is \"no\""));
}

TEST(BadConfig, UnknownNamesAreNamedWithTheKnownOnes) {
  EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"model_type", "frob"}}),
              StartsWith("config.json: model_type \"frob\" is unknown (llama, mistral, mixtral, qwen2_moe, "));
  EXPECT_EQ(ErrorWith("mixtral-8x7b", {{"hidden_act", "tanhish"}}),
            "config.json: hidden_act \"tanhish\" is unknown (silu)");
  EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"model_type", 7}}), HasSubstr("model_type is 7"));
  EXPECT_EQ(ErrorWithout("mixtral-8x7b", "hidden_act"), "no error");
}

TEST(BadConfig, SizesThatDoNotFitOneAnotherAreNamed) {
  EXPECT_EQ(ErrorWith("mixtral-8x7b", {{"num_experts_per_tok", 9}}),
            "config.json: num_experts_per_tok is 9, not at most num_local_experts, 8");
  EXPECT_EQ(ErrorWith("mixtral-8x7b", {{"num_experts_per_tok", 8}}), "no error");
  EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"num_key_value_heads", 5}}),
              HasSubstr("num_key_value_heads is 5, not a divisor"));
  EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"head_dim", 31}}), HasSubstr("head_dim is 31, not even"));
  EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"num_attention_heads", 33}, {"num_key_value_heads", 33}}),
              HasSubstr("num_attention_heads is 33, not a divisor of hidden_size, 4096"));
  EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"hidden_size", 96}}), HasSubstr("num_attention_heads is 32"));
  EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"hidden_size", 1 << 17}, {"num_attention_heads", 8}}),
              HasSubstr("num_attention_heads is 8"));
}

TEST(BadConfig, KeysTwiceAreNamed) {
  EXPECT_EQ(ReadText(R"({"model_type": "llama", "model_type": "mixtral"})").status().message(),
            "config.json: key \"model_type\" is there twice");
}

// The three lists of keys.

TEST(ConfigKeys, UnknownOnesGetOneWarningEach) {
  const ModelConfig config = ReadWith("mixtral-8x7b", {{"frobnication", 3}, {"zeal", nullptr}});
  EXPECT_THAT(config.warnings, ElementsAre("config.json: key frobnication is unknown and ignored",
                                           "config.json: key zeal is unknown and ignored"));
}

TEST(ConfigKeys, HarmlessOnesPassInSilence) {
  EXPECT_THAT(
      ReadWith("llama-3.1-8b",
               {{"attention_dropout", 0.5}, {"use_cache", false}, {"transformers_version", "9"}, {"pad_token_id", -1}})
          .warnings,
      IsEmpty());
}

TEST(ConfigKeys, MathematicalOnesAreRefusedUnlessNeutral) {
  const std::vector<std::pair<json, json>> neutral_and_not = {
      {{{"pretraining_tp", 1}}, {{"pretraining_tp", 2}}},
      {{{"attn_temperature_tuning", 0}}, {{"attn_temperature_tuning", 4}}},
      {{{"rope_interleave", false}}, {{"rope_interleave", true}}},
      {{{"partial_rotary_factor", 1.0}}, {{"partial_rotary_factor", 0.5}}},
      {{{"sliding_window", nullptr}}, {{"sliding_window", 4096}}},
      {{{"is_encoder_decoder", false}}, {{"is_encoder_decoder", true}}},
      {{{"pruned_heads", json::object()}}, {{"pruned_heads", {{"0", {1}}}}}},
      {{{"logits_scaling", 1.0}}, {{"logits_scaling", 8}}},
  };
  for (const auto& [neutral, other] : neutral_and_not) {
    EXPECT_EQ(ErrorWith("llama-3.1-8b", neutral), "no error") << neutral;
    EXPECT_THAT(ReadWith("llama-3.1-8b", neutral).warnings, IsEmpty()) << neutral;
    const std::string& key = other.items().begin().key();
    EXPECT_THAT(ErrorWith("llama-3.1-8b", other),
                StartsWith("config.json: " + key + " is " + other[key].dump().substr(0, 3)));
  }
}

TEST(ConfigKeys, AKeyThatOnlyAnotherFamilyReadsIsMathematical) {
  EXPECT_THAT(ErrorWith("mistral-7b-v0.1", {{"attention_bias", true}}),
              StartsWith("config.json: attention_bias is true"));
  EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"mlp_bias", true}}), StartsWith("config.json: mlp_bias is true"));
  EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"norm_topk_prob", false}}),
              StartsWith("config.json: norm_topk_prob is false"));
  EXPECT_THAT(ErrorWith("mixtral-8x7b", {{"scoring_func", "sigmoid"}}),
              StartsWith("config.json: scoring_func is \"sigmoid\""));
}

}  // namespace
}  // namespace moe
