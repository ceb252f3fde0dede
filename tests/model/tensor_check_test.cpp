#include "model/tensor_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "core/text.h"
#include "model/parameter_count.h"
#include "tests/model/golden_case.h"
#include "tests/model/small_model.h"

namespace moe {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// Tables that are stored twice.

/// What loading says.
std::string LoadError(const SmallModel& files) {
  const Opened model = files.Open();
  ThreadPool pool(1);
  const Status status = LoadDenseWeights(model.config, model.checkpoint, WeightType::kF32, pool).status();
  return status.ok() ? "no error" : status.message();
}

TEST(RepeatedHead, IsAcceptedWhenItIsTheEmbedding) {
  SmallModel files = SmallModel::Llama({{"tie_word_embeddings", true}});
  TestTensor head = files.At("model.embed_tokens.weight");
  head.name = "lm_head.weight";
  files.tensors.push_back(head);
  EXPECT_EQ(files.CheckError(), "no error");
  EXPECT_EQ(LoadDense(files.Open(), WeightType::kF32).parameters, 6u * 4 + 4 * 4 * 2 + 2 * 2 * 4 + 3 * 3 * 4 + 3 * 4);
}

TEST(RepeatedHead, IsRefusedWhenItDiffers) {
  SmallModel files = SmallModel::Llama({{"tie_word_embeddings", true}});
  TestTensor head = files.At("model.embed_tokens.weight");
  head.name = "lm_head.weight";
  head.bytes.back() ^= 1;
  files.tensors.push_back(head);
  EXPECT_THAT(LoadError(files), AllOf(HasSubstr("tensor lm_head.weight differs"), HasSubstr("tie_word_embeddings")));
  files.tensors.back().shape = {4, 6};
  EXPECT_THAT(files.CheckError(), HasSubstr("tensor lm_head.weight has shape (4, 6)"));
}

TEST(RepeatedTables, OfSwitchAreAcceptedWhenTheyAreTheEmbedding) {
  for (const bool tied : {true, false}) {
    SmallModel files = SmallModel::Like("switch_base", {{"tie_word_embeddings", tied}});
    TestTensor table = files.At("shared.weight");
    for (const char* name : {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}) {
      table.name = name;
      files.tensors.push_back(table);
    }
    EXPECT_EQ(files.CheckError(), "no error");
    EXPECT_EQ(LoadError(files), "no error");
    files.tensors.back().bytes.back() ^= 1;
    EXPECT_THAT(LoadError(files), HasSubstr("tensor decoder.embed_tokens.weight differs from the embedding"));
    files.tensors.back().dtype = "I32";
    EXPECT_THAT(files.CheckError(),
                AllOf(HasSubstr("tensor decoder.embed_tokens.weight has shape (203, 56) and dtype I32"),
                      HasSubstr("unlike the embedding that it repeats")));
  }
}

// CheckTensors.

TEST(CheckTensors, AcceptsWhatTheConfigurationDescribes) {
  EXPECT_EQ(SmallModel::Llama().CheckError(), "no error");
  EXPECT_EQ(SmallModel::Mixtral().CheckError(), "no error");
  EXPECT_EQ(SmallModel::Llama({{"attention_bias", true}, {"mlp_bias", true}}).CheckError(), "no error");
}

/// The goldens that are stored without blocks, in small models of F32 tensors.
std::vector<std::string> PlainGoldens() {
  std::vector<std::string> names = GoldenNames();
  std::erase_if(names, [](const std::string& name) { return name == "gpt_oss" || name == "deepseek_v3_fp8"; });
  return names;
}

class EveryFamily : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(CheckTensors, EveryFamily, ::testing::ValuesIn(PlainGoldens()),
                         [](const auto& test) { return test.param; });

TEST_P(EveryFamily, HasTheTensorsOfItsConfiguration) {
  SmallModel files = SmallModel::Like(GetParam());
  EXPECT_EQ(files.CheckError(), "no error");
  std::set<std::string> golden;
  const Opened published = OpenModel(InRepository("tests/goldens") / GetParam());
  for (const auto& [name, info] : published.checkpoint.tensors()) golden.insert(name);
  for (const TestTensor& tensor : files.tensors) EXPECT_TRUE(golden.erase(tensor.name)) << tensor.name;
  for (const std::string& name : golden) EXPECT_THAT(name, StartsWith("model.layers.3.")) << "of a prediction layer";
  EXPECT_EQ(golden.empty(), GetParam() != "deepseek_v3");
}

TEST_P(EveryFamily, NamesAnyMissingTensor) {
  SmallModel files = SmallModel::Like(GetParam());
  for (std::size_t i = 0; i < files.tensors.size(); ++i) {
    const TestTensor removed = files.tensors[i];
    files.tensors.erase(files.tensors.begin() + static_cast<std::ptrdiff_t>(i));
    EXPECT_EQ(files.CheckError(), "tensor " + removed.name + " is missing");
    files.tensors.insert(files.tensors.begin() + static_cast<std::ptrdiff_t>(i), removed);
  }
}

TEST_P(EveryFamily, NamesAnyTensorOfAnotherShape) {
  SmallModel files = SmallModel::Like(GetParam());
  for (TestTensor& tensor : files.tensors) {
    const std::vector<std::int64_t> right = tensor.shape;
    tensor.shape.push_back(1);
    EXPECT_EQ(files.CheckError(), Cat("model.safetensors: tensor ", tensor.name, " has shape ", ShapeText(tensor.shape),
                                      ", but config.json describes ", ShapeText(right)));
    tensor.shape = right;
  }
}

TEST_P(EveryFamily, HoldsAsManyWeightsAsAreCounted) {
  const SmallModel files = SmallModel::Like(GetParam());
  std::uint64_t weights = 0;
  for (const TestTensor& tensor : files.tensors) weights += tensor.bytes.size() / sizeof(float);
  EXPECT_EQ(CountParameters(files.Open().config).total, weights);
}

TEST(CheckTensors, AcceptsEveryGolden) {
  for (const std::string& name : GoldenNames()) {
    const Opened model = OpenModel(InRepository("tests/goldens") / name);
    const Result<CheckedTensors> checked = CheckTensors(model.config, model.checkpoint);
    ASSERT_TRUE(checked.ok()) << checked.status().message();
    // A scaled e4m3 value needs more bits than a half has; an MXFP4 value does not.
    const bool fp8 = model.config.encoding == StoredEncoding::kFp8Blocks;
    EXPECT_EQ(checked->exact_type, fp8 ? WeightType::kF32 : model.config.stored_type) << name;
  }
}

// Tensors that inference does not use.

TEST(IgnorableTensors, ArePredictionLayersOfFamiliesThatHaveThem) {
  for (const char* family : {"deepseek_v3", "glm4_moe"}) {
    SmallModel files = SmallModel::Like(family);  // 3 layers
    for (const char* name : {"model.layers.3.eh_proj.weight", "model.layers.3.mlp.experts.0.up_proj.weight_scale_inv",
                             "model.layers.10.shared_head.head.weight"}) {
      files.AddStray(name);
    }
    EXPECT_EQ(files.CheckError(), "no error");
    for (const char* name : {"model.layers.2.eh_proj.weight", "model.layers.0.enorm.weight", "model.layers.3",
                             "model.layers..x", "model.layers.x3.y", "model.layer.3.eh_proj.weight"}) {
      files.AddStray(name);
      EXPECT_EQ(files.CheckError(), Cat("model.safetensors: tensor ", name, " is unknown to model_type ", family,
                                        " with this config.json"));
      files.Remove(name);
    }
  }
  SmallModel llama = SmallModel::Llama();
  llama.AddStray("model.layers.1.eh_proj.weight");
  EXPECT_THAT(llama.CheckError(), HasSubstr("is unknown to model_type llama"));
}

TEST(IgnorableTensors, AreImagesOfLlama4) {
  const json text = json::parse(ReadBytes(InRepository("tests/goldens/llama4_text/config.json")));
  SmallModel files(json{{"model_type", "llama4"}, {"text_config", text}});
  EXPECT_TRUE(files.Has("language_model.model.embed_tokens.weight"));
  EXPECT_TRUE(files.Has("language_model.lm_head.weight"));
  files.AddStray("vision_model.layernorm_pre.weight");
  files.AddStray("multi_modal_projector.linear_1.weight");
  EXPECT_EQ(files.CheckError(), "no error");
  files.AddStray("model.norm.weight");
  EXPECT_THAT(files.CheckError(), HasSubstr("tensor model.norm.weight is unknown"));
}

// Single errors.

TEST(CheckTensors, NamesBothShapes) {
  SmallModel files = SmallModel::Llama();
  files.At("model.layers.0.self_attn.k_proj.weight").shape = {4, 2};
  EXPECT_EQ(files.CheckError(),
            "model.safetensors: tensor model.layers.0.self_attn.k_proj.weight has shape (4, 2), but config.json "
            "describes (2, 4)");
}

TEST(CheckTensors, NamesAShapeOfAnotherRank) {
  SmallModel files = SmallModel::Llama();
  files.At("model.norm.weight").shape = {4, 1};
  EXPECT_THAT(files.CheckError(), HasSubstr("model.norm.weight has shape (4, 1), but config.json describes (4)"));
}

TEST(CheckTensors, NamesTypesThatCannotBeComputed) {
  for (const auto& [dtype, bytes] : {std::pair{"F8_E4M3", 1u}, {"U8", 1u}, {"F64", 8u}, {"I32", 4u}}) {
    SmallModel files = SmallModel::Llama();
    files.At("model.norm.weight").dtype = dtype;
    files.At("model.norm.weight").bytes.resize(4 * bytes);
    EXPECT_EQ(files.CheckError(),
              Cat("model.safetensors: tensor model.norm.weight has dtype ", dtype, ", not F32, BF16 or F16"));
  }
}

TEST(CheckTensors, NamesUnknownTensors) {
  for (const char* name :
       {"model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "score.weight", "odd\\nname"}) {
    SmallModel files = SmallModel::Llama();
    files.tensors.push_back({name, "F32", {1}, "1234"});
    EXPECT_THAT(files.CheckError(),
                AllOf(HasSubstr("model.safetensors: tensor "), HasSubstr("is unknown to model_type llama")))
        << name;
  }
}

TEST(CheckTensors, PassesOverStoredRotaryFrequencies) {
  SmallModel files = SmallModel::Mixtral();
  files.tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {1}, "1234"});
  EXPECT_EQ(files.CheckError(), "no error");
}

TEST(CheckTensors, ReadsNoData) {
  const Opened model = OpenModel(InRepository("models/eight-languages-moe"));
  EXPECT_TRUE(CheckTensors(model.config, model.checkpoint).ok());
  EXPECT_EQ(model.checkpoint.mapped_bytes(), 0u);
}

TEST(TensorPatterns, MatchRunsOfCharacters) {
  EXPECT_TRUE(MatchesPattern("model.layers.0.self_attn.rotary_emb.inv_freq", "*.rotary_emb.inv_freq"));
  EXPECT_FALSE(MatchesPattern("model.layers.0.self_attn.rotary_emb.inv_freq.x", "*.rotary_emb.inv_freq"));
  EXPECT_TRUE(MatchesPattern("model.layers.61.mlp.up", "model.layers.61.*"));
  EXPECT_FALSE(MatchesPattern("model.layers.6.mlp.up", "model.layers.61.*"));
  EXPECT_TRUE(MatchesPattern("abcbcd", "a*bcd"));
  EXPECT_TRUE(MatchesPattern("abc", "*a*c*"));
  EXPECT_TRUE(MatchesPattern("", "*"));
  EXPECT_FALSE(MatchesPattern("", "a"));
  EXPECT_FALSE(MatchesPattern("ab", "a"));
}

}  // namespace
}  // namespace moe
