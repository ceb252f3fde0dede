#include "model/parameter_count.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/model/model_files.h"

namespace moe {
namespace {

ParameterCount CountOf(const std::filesystem::path& config_file) {
  const Result<ModelConfig> config = ReadModelConfigFile(config_file);
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? CountParameters(*config) : ParameterCount{};
}

/// Figures that come from instantiating the published models in another implementation, not from ours.
struct Published {
  const char* name;
  std::uint64_t total;
  std::uint64_t active;
  std::uint64_t active_without_embedding;
};

class PublishedModel : public ::testing::TestWithParam<Published> {};

TEST_P(PublishedModel, HasItsExactParameterCount) {
  const ParameterCount count = CountOf(InRepository("tests/model/configs") / (std::string(GetParam().name) + ".json"));
  EXPECT_EQ(count.total, GetParam().total);
  EXPECT_EQ(count.active, GetParam().active);
  EXPECT_EQ(count.active_without_embedding, GetParam().active_without_embedding);
}

INSTANTIATE_TEST_SUITE_P(
    All, PublishedModel,
    ::testing::Values(Published{"mixtral-8x7b", 46'702'792'704, 12'879'925'248, 12'748'853'248},
                      Published{"mixtral-8x22b-v0.1", 140'620'634'112, 39'152'031'744, 38'955'423'744},
                      Published{"mixtral-8x22b-instruct-v0.1", 140'630'071'296, 39'161'468'928, 38'960'142'336},
                      Published{"llama-2-7b", 6'738'415'616, 6'738'415'616, 6'607'343'616},
                      Published{"llama-2-13b", 13'015'864'320, 13'015'864'320, 12'852'024'320},
                      Published{"llama-2-70b", 68'976'648'192, 68'976'648'192, 68'714'504'192},
                      Published{"llama-3-8b", 8'030'261'248, 8'030'261'248, 7'504'924'672},
                      Published{"llama-3-70b", 70'553'706'496, 70'553'706'496, 69'503'033'344},
                      Published{"llama-3.1-8b", 8'030'261'248, 8'030'261'248, 7'504'924'672},
                      Published{"llama-3.1-70b", 70'553'706'496, 70'553'706'496, 69'503'033'344},
                      Published{"llama-3.1-405b", 405'853'388'800, 405'853'388'800, 403'752'042'496},
                      Published{"llama-3.2-1b", 1'235'814'400, 1'235'814'400, 1'235'814'400},
                      Published{"llama-3.2-3b", 3'212'749'824, 3'212'749'824, 3'212'749'824},
                      Published{"mistral-7b-v0.1", 7'241'732'096, 7'241'732'096, 7'110'660'096}),
    [](const auto& test) {
      std::string name = test.param.name;
      for (char& c : name) {
        if (c == '-' || c == '.') c = '_';
      }
      return name;
    });

class CountedCase : public ::testing::TestWithParam<const char*> {};

TEST_P(CountedCase, AgreesWithItsGoldenFile) {
  const std::filesystem::path folder = InRepository(GetParam());
  const auto golden = nlohmann::json::parse(ReadBytes(folder / "golden.json"));
  EXPECT_EQ(CountOf(folder / "config.json").total, golden.at("num_parameters").get<std::uint64_t>());
}

INSTANTIATE_TEST_SUITE_P(All, CountedCase,
                         ::testing::Values("tests/goldens/mixtral", "tests/goldens/mixtral_bf16", "tests/goldens/llama",
                                           "tests/goldens/llama3_rope", "tests/goldens/mistral"),
                         [](const auto& test) { return std::filesystem::path(test.param).filename().string(); });

TEST(ParameterCount, SplitsMixtralIntoParts) {
  const ParameterCount count = CountOf(InRepository("tests/model/configs/mixtral-8x7b.json"));
  EXPECT_EQ(count.part(ModelPart::kEmbedding), 32000u * 4096);
  EXPECT_EQ(count.part(ModelPart::kHead), 32000u * 4096);
  EXPECT_EQ(count.part(ModelPart::kAttention), 32u * (2 * 4096 * 4096 + 2 * 4096 * 1024));
  EXPECT_EQ(count.part(ModelPart::kRouter), 32u * 8 * 4096);
  EXPECT_EQ(count.part(ModelPart::kExperts), 32u * 8 * std::uint64_t{3 * 4096 * 14336});
  EXPECT_EQ(count.part(ModelPart::kNorms), 65u * 4096);
  EXPECT_EQ(count.part(ModelPart::kDenseFfn), 0u);
  EXPECT_EQ(count.part(ModelPart::kSharedExperts), 0u);
  ASSERT_EQ(count.parameters_each.size(), 32u);
  EXPECT_EQ(count.parameters_each[31], 3u * 4096 * 14336);
  EXPECT_EQ(count.dense(), count.total - 32u * 8 * std::uint64_t{3 * 4096 * 14336});
}

TEST(ParameterCount, CountsATiedTableOnce) {
  const ParameterCount count = CountOf(InRepository("tests/model/configs/llama-3.2-1b.json"));
  EXPECT_EQ(count.part(ModelPart::kEmbedding), 128256u * 2048);
  EXPECT_EQ(count.part(ModelPart::kHead), 0u);
  EXPECT_EQ(count.part(ModelPart::kDenseFfn), 16u * 3 * 2048 * 8192);
  EXPECT_EQ(count.parameters_each.front(), 0u);
  EXPECT_EQ(count.dense(), count.total);
}

TEST(ParameterCount, CountsBiases) {
  Result<ModelConfig> config = ReadModelConfigFile(InRepository("tests/model/configs/llama-2-7b.json"));
  ASSERT_TRUE(config.ok());
  const std::uint64_t without = CountParameters(*config).total;
  for (LayerSpec& layer : config->layers) {
    layer.attention.qkv_bias = layer.attention.out_bias = layer.dense_mlp.bias = true;
  }
  EXPECT_EQ(CountParameters(*config).total, without + 32u * (4 * 4096 + 2 * 11008 + 4096));
}

TEST(ParameterCount, NamesItsPartsAsTheToolsPrintThem) {
  const char* names[] = {"embedding", "attention", "router", "experts", "shared_experts", "dense_ffn", "norms", "head"};
  for (std::size_t i = 0; i < kNumModelParts; ++i) EXPECT_EQ(Name(static_cast<ModelPart>(i)), names[i]);
}

TEST(ParameterCount, TheLargestConfigurationThatIsAcceptedDoesNotOverflow) {
  const TemporaryFolder folder;
  folder.Write("config.json", R"({"model_type": "mixtral", "vocab_size": 16777216, "hidden_size": 131072,
      "intermediate_size": 524288, "num_hidden_layers": 2048, "num_attention_heads": 4096, "head_dim": 4096,
      "num_local_experts": 8192, "num_experts_per_tok": 8192, "max_position_embeddings": 8, "rms_norm_eps": 1e-5})");
  const ParameterCount count = CountOf(folder.path() / "config.json");
  EXPECT_GT(static_cast<double>(count.total), 3 * std::pow(2.0, 60));
  EXPECT_LT(static_cast<double>(count.total), 3.02 * std::pow(2.0, 60));
}

}  // namespace
}  // namespace moe
