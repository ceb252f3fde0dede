#include "placement/loads_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/placement/file_test.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

class LoadsFile : public FileTest<std::vector<LayerLoad>> {
 protected:
  LoadsFile() : FileTest(ReadLoadsFile) {}
};

TEST_F(LoadsFile, HasTokensByLayerAndExpert) {
  const Result<std::vector<LayerLoad>> loads = Read(R"({"layers": [[1, 2.5, 0], [7, 8, 9]]})");
  ASSERT_TRUE(loads.ok()) << loads.status().message();
  ASSERT_EQ(loads->size(), 2u);
  EXPECT_EQ((*loads)[0].layer, 0);
  EXPECT_EQ((*loads)[1].layer, 1);
  EXPECT_EQ((*loads)[0].mean, (std::vector<double>{1, 2.5, 0}));
  EXPECT_TRUE((*loads)[0].samples.empty());
}

TEST_F(LoadsFile, MayNameLayersAndHaveSamples) {
  const Result<std::vector<LayerLoad>> loads =
      Read(R"({"layers": [[3, 3], [4, 4]], "layer_indices": [3, 7], "samples": [[[1, 2], [4, 0]], [[2, 1], [0, 4]]]})");
  ASSERT_TRUE(loads.ok()) << loads.status().message();
  EXPECT_EQ((*loads)[1].layer, 7);
  EXPECT_EQ((*loads)[1].samples, (std::vector<std::vector<double>>{{4, 0}, {0, 4}}));
}

TEST_F(LoadsFile, OfAModelTakesItsLayers) {
  ASSERT_TRUE(Read(R"({"layers": [[1, 2], [3, 4]]})").ok());
  const Result<std::vector<LayerLoad>> loads = ReadLoadsFile(path_, {1, 3}, 2);
  ASSERT_TRUE(loads.ok()) << loads.status().message();
  EXPECT_EQ((*loads)[0].layer, 1);
  EXPECT_EQ((*loads)[1].layer, 3);
  EXPECT_THAT(ReadLoadsFile(path_, {1}, 2).status().message(), HasSubstr("has 2 layers, the model has 1"));
  EXPECT_THAT(ReadLoadsFile(path_, {1, 3}, 8).status().message(), HasSubstr("has 2 experts, the model has 8"));
  ASSERT_TRUE(Read(R"({"layers": [[1, 2], [3, 4]], "layer_indices": [1, 2]})").ok());
  EXPECT_THAT(ReadLoadsFile(path_, {1, 3}, 2).status().message(), HasSubstr("layer_indices[1] 2"));
}

TEST_F(LoadsFile, ThatIsNoneIsRefused) {
  EXPECT_THAT(Refusal("[[1]]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(Refusal("{}"), HasSubstr("layers is missing"));
  EXPECT_THAT(Refusal(R"({"layers": []})"), HasSubstr("layers is missing or empty"));
  EXPECT_THAT(Refusal(R"({"layers": 3})"), HasSubstr("layers 3 is not a list"));
  EXPECT_THAT(Refusal(R"({"layers": [[]]})"), HasSubstr("layers[0]"));
  EXPECT_THAT(Refusal(R"({"layers": [[1, 2], [3]]})"), HasSubstr("layers[1] has 1 experts, layers[0] has 2"));
  EXPECT_THAT(Refusal(R"({"layers": [[1, -2]]})"), HasSubstr("layers[0][1] -2"));
  EXPECT_THAT(Refusal(R"({"layers": [[1, "2"]]})"), HasSubstr("layers[0][1]"));
  EXPECT_THAT(Refusal(R"({"layers": [[1]], "weights": 3})"), HasSubstr("weights"));
  EXPECT_THAT(Refusal(R"({"layers": [[1]], "layer_indices": [0, 1]})"), HasSubstr("has 2 entries"));
  EXPECT_THAT(Refusal(R"({"layers": [[1], [2]], "layer_indices": [3, 3]})"), HasSubstr("layer_indices[1] 3"));
  EXPECT_THAT(Refusal(R"({"layers": [[1]], "samples": [[[1], [2]]]})"), HasSubstr("samples[0]"));
  EXPECT_THAT(Refusal(R"({"layers": [[1]], "samples": [[[1, 2]]]})"), HasSubstr("samples[0][0] has 2"));
  EXPECT_EQ(ReadLoadsFile("/nowhere/loads.json").status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace moe
