#include "model/parameter_count.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "tests/model/golden_case.h"
#include "tests/model/model_files.h"
#include "tests/reference/golden.h"

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
  const ParameterCount count = CountOf(InRepository("models/published") / (std::string(GetParam().name) + ".json"));
  EXPECT_EQ(count.total, GetParam().total);
  EXPECT_EQ(count.active, GetParam().active);
  EXPECT_EQ(count.active_without_embedding, GetParam().active_without_embedding);
}

INSTANTIATE_TEST_SUITE_P(
    All, PublishedModel,
    ::testing::Values(Published{"mixtral-8x7b", 46'702'792'704, 12'879'925'248, 12'748'853'248},
                      Published{"mixtral-8x22b-v0.1", 140'620'634'112, 39'152'031'744, 38'955'423'744},
                      Published{"mixtral-8x22b-instruct-v0.1", 140'630'071'296, 39'161'468'928, 38'960'142'336},
                      Published{"qwen1.5-moe-a2.7b", 14'315'784'192, 2'689'173'504, 2'378'008'576},
                      Published{"qwen2-57b-a14b", 57'408'658'944, 14'249'270'784, 13'704'732'160},
                      Published{"qwen3-30b-a3b", 30'532'122'624, 3'353'032'704, 3'041'867'776},
                      Published{"qwen3-235b-a22b", 235'093'634'560, 22'190'763'520, 21'568'433'664},
                      Published{"olmoe-1b-7b", 6'919'161'856, 1'282'017'280, 1'178'994'688},
                      Published{"deepseek-v2", 235'741'434'880, 21'375'800'320, 20'851'512'320},
                      Published{"deepseek-v2-lite", 15'706'484'224, 2'661'150'208, 2'451'435'008},
                      Published{"deepseek-v3", 671'026'419'200, 37'552'297'472, 36'625'618'432},
                      Published{"gpt-oss-120b", 116'829'156'672, 5'711'982'912, 5'132'849'472},
                      Published{"gpt-oss-20b", 20'914'757'184, 4'187'440'704, 3'608'307'264},
                      Published{"llama-4-scout", 107'769'861'120, 17'172'894'720, 16'138'408'960},
                      Published{"llama-4-maverick", 400'711'848'960, 17'184'691'200, 16'150'205'440},
                      Published{"switch-base-8", 619'339'008, 222'977'280, 222'977'280},
                      Published{"switch-c-2048", 1'571'308'972'448, 1'728'326'048, 1'728'326'048},
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
                      Published{"mistral-7b-v0.1", 7'241'732'096, 7'241'732'096, 7'110'660'096},
                      Published{"gemma-2b", 2'506'172'416, 2'506'172'416, 2'506'172'416},
                      Published{"gemma-3-270m", 268'098'176, 268'098'176, 268'098'176},
                      Published{"phi-3-mini-4k", 3'821'079'552, 3'821'079'552, 3'722'578'944},
                      Published{"gpt2", 124'439'808, 124'439'808, 124'439'808},
                      Published{"gpt2-medium", 354'823'168, 354'823'168, 354'823'168},
                      Published{"gpt2-large", 774'030'080, 774'030'080, 774'030'080},
                      Published{"gpt2-xl", 1'557'611'200, 1'557'611'200, 1'557'611'200}),
    [](const auto& test) {
      std::string name = test.param.name;
      for (char& c : name) {
        if (c == '-' || c == '.') c = '_';
      }
      return name;
    });

std::vector<std::string> CountedFolders() {
  std::vector<std::string> folders;
  for (const std::string& name : GoldenNames()) folders.push_back("tests/goldens/" + name);
  return folders;
}

class CountedCase : public ::testing::TestWithParam<std::string> {};

TEST_P(CountedCase, AgreesWithItsGoldenFile) {
  const std::filesystem::path folder = InRepository(GetParam());
  EXPECT_EQ(CountOf(folder / "config.json").total, ReadGolden(folder).num_parameters);
}

TEST_P(CountedCase, HasTheElementsOfItsFiles) {
  const std::filesystem::path folder = InRepository(GetParam());
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  std::uint64_t elements = 0;
  for (const auto& [name, info] : checkpoint->tensors()) elements += info.elements();
  const CheckpointElements counted = CountOf(folder / "config.json").checkpoint;
  // The file of GLM-4-MoE leaves out the prediction layer that its configuration announces.
  EXPECT_EQ(elements, GetParam().ends_with("glm4_moe") ? counted.weights + counted.scales : counted.total());
}

INSTANTIATE_TEST_SUITE_P(All, CountedCase, ::testing::ValuesIn(CountedFolders()),
                         [](const auto& test) { return std::filesystem::path(test.param).filename().string(); });

// The checkpoint's published element count, part by part (DeepSeek-V3's model card: 671B main model, 14B module for
// multi-token prediction with its copies of embedding and head).
TEST(CheckpointElements, OfDeepSeekV3AreThePublishedOnes) {
  const ParameterCount count = CountOf(InRepository("models/published/deepseek-v3.json"));
  EXPECT_EQ(count.checkpoint.weights, 671'026'419'200u);
  EXPECT_EQ(count.checkpoint.prediction_layers, 11'610'068'224u);
  EXPECT_EQ(count.checkpoint.duplicates, 1'853'358'080u);
  EXPECT_EQ(count.checkpoint.scales, 41'540'496u);
  EXPECT_EQ(count.checkpoint.total(), 684'531'386'000u);
  EXPECT_EQ(count.checkpoint.weights, count.total) << "the rest is no part of the model that is served";
}

TEST(CheckpointElements, OfMxfp4AreBytesAndScales) {
  const ParameterCount count = CountOf(InRepository("models/published/gpt-oss-20b.json"));
  // Experts of 24 layers: three matrices of 2880 x 2880 and 3 * 2880 biases each.
  const std::uint64_t matrices = std::uint64_t{24} * 32 * 3 * 2880 * 2880;
  EXPECT_EQ(count.part(ModelPart::kExperts), matrices + 24 * 32 * 3 * 2880);
  EXPECT_EQ(count.checkpoint.weights, count.total - matrices / 2);
  EXPECT_EQ(count.checkpoint.scales, matrices / 32);
  EXPECT_EQ(count.checkpoint.prediction_layers + count.checkpoint.duplicates, 0u);
}

TEST(CheckpointElements, OfPlainModelsAreTheirParameters) {
  for (const char* name : {"llama-3.2-1b", "mixtral-8x7b", "switch-base-8", "llama-4-scout"}) {
    const ParameterCount count = CountOf(InRepository("models/published") / (std::string(name) + ".json"));
    EXPECT_EQ(count.checkpoint.total(), count.total) << name;
  }
}

TEST(ParameterCount, OfGpt3FollowsFromItsSizes) {
  const TemporaryFolder folder;
  folder.Write("config.json", R"({"model_type": "gpt2", "vocab_size": 50257, "n_positions": 2048, "n_embd": 12288,
      "n_layer": 96, "n_head": 96, "layer_norm_epsilon": 1e-5})");
  const ParameterCount count = CountOf(folder.path() / "config.json");
  EXPECT_EQ(count.total, 174'604'259'328u);
  EXPECT_EQ(count.active_without_embedding, count.total) << "tied";
}

TEST(ParameterCount, SplitsDeepSeekV3IntoParts) {
  const ParameterCount count = CountOf(InRepository("models/published/deepseek-v3.json"));
  const std::uint64_t hidden = 7168;
  const std::uint64_t attention =
      hidden * 1536 + 1536 * 128 * 192 + hidden * 576 + 512 * 128 * 256 + 128 * 128 * hidden;
  EXPECT_EQ(count.part(ModelPart::kAttention), 61 * attention);
  EXPECT_EQ(count.part(ModelPart::kRouter), 58 * (256 * hidden + 256)) << "with the correction bias";
  EXPECT_EQ(count.part(ModelPart::kExperts), 58 * 256 * 3 * hidden * 2048);
  EXPECT_EQ(count.part(ModelPart::kSharedExperts), 58 * 3 * hidden * 2048);
  EXPECT_EQ(count.part(ModelPart::kDenseFfn), 3 * 3 * hidden * 18432);
  EXPECT_EQ(count.part(ModelPart::kNorms), 61 * (2 * hidden + 1536 + 512) + hidden);
  EXPECT_EQ(count.part(ModelPart::kHead), 129280 * hidden);
  EXPECT_EQ(count.expert_parameters_each(), 3 * hidden * 2048);
  EXPECT_EQ(count.active, count.total - 58 * (256 - 8) * 3 * hidden * 2048);
}

TEST(ParameterCount, CountsBothStacksOfSwitch) {
  const ParameterCount count = CountOf(InRepository("models/published/switch-base-8.json"));
  const std::uint64_t matrix = 768 * 768;
  // Self-attention of 24 layers, cross-attention of 12, a bias table of 32 buckets and 12 heads a stack.
  EXPECT_EQ(count.part(ModelPart::kAttention), (24 + 12) * 4 * matrix + 2 * 32 * 12);
  EXPECT_EQ(count.part(ModelPart::kExperts), std::uint64_t{12} * 8 * 2 * 768 * 3072);
  EXPECT_EQ(count.part(ModelPart::kDenseFfn), 12 * 2 * 768 * 3072);
  EXPECT_EQ(count.part(ModelPart::kNorms), (12 * 2 + 12 * 3 + 2) * 768);
  EXPECT_EQ(count.part(ModelPart::kHead), 0u);
}

TEST(ParameterCount, SplitsMixtralIntoParts) {
  const ParameterCount count = CountOf(InRepository("models/published/mixtral-8x7b.json"));
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
  const ParameterCount count = CountOf(InRepository("models/published/llama-3.2-1b.json"));
  EXPECT_EQ(count.part(ModelPart::kEmbedding), 128256u * 2048);
  EXPECT_EQ(count.part(ModelPart::kHead), 0u);
  EXPECT_EQ(count.part(ModelPart::kDenseFfn), 16u * 3 * 2048 * 8192);
  EXPECT_EQ(count.parameters_each.front(), 0u);
  EXPECT_EQ(count.dense(), count.total);
}

TEST(ParameterCount, CountsBiases) {
  Result<ModelConfig> config = ReadModelConfigFile(InRepository("models/published/llama-2-7b.json"));
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
