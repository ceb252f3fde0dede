// The built-in models: counted exactly, found by name, compared with what is quoted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "bench/plan/params_report.h"
#include "model/parameter_count.h"
#include "test_folders.h"
#include "tests/bench/plan_models.h"

namespace moe {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::string ErrorOf(const std::string& what) {
  const Result<NamedModel> model = OpenModel(what);
  return model.ok() ? "no error" : model.status().message();
}

// The figures come from another implementation of the published models.
TEST(BuiltInModels, AreCountedExactly) {
  const json counts = json::parse(PublishedCountsJson());
  EXPECT_EQ(counts.size(), PublishedModels().size());
  for (const PublishedModel& model : PublishedModels()) {
    SCOPED_TRACE(model.name);
    const json& want = counts.at(std::string(model.name));
    const ParameterCount count = CountParameters(BuiltIn(std::string(model.name)));
    EXPECT_EQ(count.total, want.at("total").get<std::uint64_t>());
    EXPECT_EQ(count.active, want.at("active").get<std::uint64_t>());
    EXPECT_EQ(count.active_without_embedding, want.at("active_without_embedding").get<std::uint64_t>());
  }
}

TEST(BuiltInModels, AreTheFilesOfTheRepository) {
  std::set<std::string> files;
  for (const auto& file : std::filesystem::directory_iterator(MOE_SOURCE_DIR "/models/published"))
    files.insert(file.path().stem());
  files.erase("counts");
  std::set<std::string> names;
  for (const PublishedModel& model : PublishedModels()) {
    names.emplace(model.name);
    std::ifstream file(Cat(MOE_SOURCE_DIR, "/models/published/", model.name, ".json"));
    const std::string text(std::istreambuf_iterator<char>(file), {});
    EXPECT_EQ(model.config, text) << model.name;
  }
  EXPECT_EQ(names, files);
}

TEST(BuiltInModels, AreReadWithoutWarnings) {
  for (const PublishedModel& model : PublishedModels())
    EXPECT_THAT(BuiltIn(std::string(model.name)).warnings, testing::IsEmpty()) << model.name;
}

TEST(BuiltInModels, AreFoundHoweverTheyAreSpelt) {
  EXPECT_EQ(OpenModel("mixtral-8x7b")->name, "mixtral-8x7b");
  EXPECT_EQ(OpenModel("Mixtral-8x7B")->name, "mixtral-8x7b");
  EXPECT_EQ(OpenModel("gpt3-175b")->name, "gpt-3-175b");
  EXPECT_EQ(OpenModel("llama_3.1_8b")->name, "llama-3.1-8b");
}

TEST(BuiltInModels, AnUnknownNameListsNearOnes) {
  EXPECT_EQ(ErrorOf("mixtrl-8x7b"),
            "model \"mixtrl-8x7b\" is neither a file, a folder nor a built-in name "
            "(near: mixtral-8x7b)");
  EXPECT_THAT(ErrorOf("deepseek"), HasSubstr("(near: deepseek-v2-lite, deepseek-v2, deepseek-v3)"));
  EXPECT_THAT(ErrorOf("unheard of"), HasSubstr("--list shows"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("--list shows"));
  EXPECT_THAT(ErrorOf("./mixtral-8x7b"), HasSubstr("neither a file"));  // a path is no name
  EXPECT_THAT(ErrorOf(std::string(100'000, 'x')), HasSubstr("--list shows"));
}

TEST(BuiltInModels, AFolderOrFileIsAModelToo) {
  const std::string golden = MOE_SOURCE_DIR "/tests/goldens/mixtral";
  EXPECT_EQ(OpenModel(golden)->name, "mixtral");
  EXPECT_EQ(OpenModel(golden + "/")->name, "mixtral");
  EXPECT_EQ(OpenModel(golden + "/config.json")->name, "mixtral");
  EXPECT_EQ(OpenModel(MOE_SOURCE_DIR "/models/published/gpt2.json")->name, "gpt2");
  EXPECT_THAT(OpenModel(golden)->quoted, testing::IsEmpty());
  EXPECT_THAT(ErrorOf(MOE_SOURCE_DIR "/tests"), HasSubstr("has no config.json"));
  EXPECT_THAT(ErrorOf(MOE_SOURCE_DIR "/README.md"), HasSubstr("README.md"));
}

TEST(QuotedFigures, AreRoundingsOrDiffer) {
  const auto compared = [](const std::string& name) {
    const NamedModel model = *OpenModel(name);
    std::vector<std::pair<std::string, bool>> figures;
    for (const ComparedFigure& figure : CompareQuoted(model, CountParameters(model.config)))
      figures.emplace_back(figure.quoted.label, figure.is_rounding);
    return figures;
  };
  using Figures = std::vector<std::pair<std::string, bool>>;
  EXPECT_EQ(compared("mixtral-8x7b"), (Figures{{"46.7B", true}, {"12.9B", true}}));
  EXPECT_EQ(compared("gpt-oss-120b"), (Figures{{"117B", true}, {"5.1B", true}}));
  EXPECT_EQ(compared("deepseek-v3"), (Figures{{"671B", true}, {"37B", false}, {"685B", true}}));
  EXPECT_EQ(compared("llama-2-70b"), (Figures{{"70B", false}, {"70,015,266,816", false}}));
  EXPECT_EQ(compared("gpt2"), (Figures{{"117M", false}}));
}

// 684,531,386,000 is the element count that was published for this checkpoint.
TEST(CheckpointElements, OfDeepSeekV3AreThePublishedOnes) {
  const CheckpointElements elements = CountParameters(BuiltIn("deepseek-v3")).checkpoint;
  EXPECT_EQ(elements.weights, 671'026'419'200);
  EXPECT_EQ(elements.prediction_layers, 11'610'068'224);
  EXPECT_EQ(elements.duplicates, 1'853'358'080);
  EXPECT_EQ(elements.scales, 41'540'496);
  EXPECT_EQ(elements.total(), 684'531'386'000);
}

TEST(ParamsReport, HasThePromisedKeys) {
  const NamedModel model = *OpenModel("qwen1.5-moe-a2.7b");
  const json params = json::parse(ParamsJson(model, CountParameters(model.config)));
  EXPECT_EQ(params["name"], "qwen1.5-moe-a2.7b");
  EXPECT_EQ(params["total"], 14'315'784'192);
  std::uint64_t sum = 0;
  for (const char* part :
       {"embedding", "attention", "router", "experts", "shared_experts", "dense_ffn", "norms", "head"})
    sum += params["by_part"].at(part).get<std::uint64_t>();
  EXPECT_EQ(params["by_part"].size(), 8);
  EXPECT_EQ(sum, 14'315'784'192);
  EXPECT_EQ(params["experts"], (json{{"count", 60}, {"per_token", 4}, {"parameters_each", 3 * 2048 * 1408}}));
  EXPECT_EQ(params["checkpoint"]["elements"], 14'315'784'192);
}

TEST(ParamsReport, TextShowsExactAndQuotedFigures) {
  const NamedModel model = *OpenModel("llama-2-70b");
  const std::string text = ParamsText(model, CountParameters(model.config));
  EXPECT_THAT(text, HasSubstr("68,976,648,192"));
  EXPECT_THAT(text, HasSubstr("70,015,266,816, which differs"));
  EXPECT_THAT(*ModelListText(), HasSubstr("gpt-3-175b"));
  EXPECT_EQ(json::parse(*ModelListJson()).size(), PublishedModels().size());
}

}  // namespace
}  // namespace moe
