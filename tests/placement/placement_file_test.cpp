#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "placement/placement.h"
#include "tests/placement/file_test.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class PlacementFile : public FileTest<Placement> {
 protected:
  PlacementFile() : FileTest(ReadPlacementFile) {}
};

TEST_F(PlacementFile, ReadsTheExampleOfTheDocumentation) {
  const Result<Placement> placement = Read(R"({"schema": 1, "num_experts": 4, "workers": 2,
      "layers": [{"layer": 0, "slots": [[0, 1], [2, 3]]},
                 {"layer": 1, "slots": [[0, 3, 2], [1, 2]]}]})");
  ASSERT_TRUE(placement.ok()) << placement.status().message();
  EXPECT_EQ(placement->num_experts, 4);
  EXPECT_EQ(placement->workers, 2);
  ASSERT_EQ(placement->layers.size(), 2u);
  EXPECT_EQ(placement->layers[0].layer, 0);
  EXPECT_EQ(placement->layers[0].slots, (std::vector<std::vector<int>>{{0, 1}, {2, 3}}));
  EXPECT_EQ(placement->layers[1].layer, 1);
  EXPECT_EQ(placement->layers[1].slots, (std::vector<std::vector<int>>{{0, 3, 2}, {1, 2}}));
}

TEST_F(PlacementFile, ReadsBackWhatWasWritten) {
  for (int workers = 1; workers <= 9; workers += 4) {
    const PlacementShape shape{
        .num_experts = 6, .workers = workers, .layers = {1, 2, 40}, .redundant_experts = workers == 1 ? 0 : 7};
    const Placement written = *RoundRobinPlacement(shape);
    const Result<Placement> read = Read(PlacementJson(written));
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_TRUE(CheckPlacement(*read, shape).ok());
    ASSERT_EQ(read->layers.size(), written.layers.size());
    for (std::size_t i = 0; i < written.layers.size(); ++i) {
      EXPECT_EQ(read->layers[i].layer, written.layers[i].layer);
      EXPECT_EQ(read->layers[i].slots, written.layers[i].slots);
    }
  }
}

TEST_F(PlacementFile, MayListItsLayersInAnyOrder) {
  const Result<Placement> placement = Read(R"({"schema": 1, "num_experts": 1, "workers": 1,
      "layers": [{"layer": 3, "slots": [[0]]}, {"layer": 0, "slots": [[0]]}]})");
  ASSERT_TRUE(placement.ok());
  EXPECT_EQ(placement->layers[0].layer, 0);
  EXPECT_EQ(placement->layers[1].layer, 3);
}

TEST_F(PlacementFile, ThatIsNotThereOrCannotBeRead) {
  const Status missing = ReadPlacementFile(path_).status();
  EXPECT_EQ(missing.code(), StatusCode::kNotFound);
  EXPECT_THAT(missing.message(), HasSubstr(path_.string()));
  const Status folder = ReadPlacementFile(std::filesystem::temp_directory_path()).status();
  EXPECT_EQ(folder.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(folder.message(), AllOf(HasSubstr("placement file"), HasSubstr("is not a file")));
}

TEST_F(PlacementFile, ThatIsNotJson) {
  EXPECT_THAT(Refusal(""), HasSubstr("not JSON"));
  EXPECT_THAT(Refusal("{\"schema\": 1"), HasSubstr("not JSON"));
  EXPECT_THAT(Refusal("layers: []"), HasSubstr("not JSON"));
  EXPECT_THAT(Refusal("[1]"), HasSubstr("not a JSON object"));
}

TEST_F(PlacementFile, WithABrokenHead) {
  EXPECT_THAT(Refusal(R"({"num_experts": 1, "workers": 1, "layers": []})"), HasSubstr("schema"));
  EXPECT_THAT(Refusal(R"({"schema": 2, "num_experts": 1, "workers": 1, "layers": []})"),
              AllOf(HasSubstr("schema 2"), HasSubstr("(1)")));
  EXPECT_THAT(Refusal(R"({"schema": 1, "workers": 1, "layers": []})"), HasSubstr("num_experts"));
  EXPECT_THAT(Refusal(R"({"schema": 1, "num_experts": 1, "layers": []})"), HasSubstr("workers"));
  for (const std::string value : {"-1", "1.5", "\"8\"", "null", "1000001", "18446744073709551615", "1e3"}) {
    EXPECT_THAT(Refusal(R"({"schema": 1, "workers": 1, "layers": [], "num_experts": )" + value + "}"),
                HasSubstr("num_experts"))
        << value;
    EXPECT_THAT(Refusal(R"({"schema": 1, "num_experts": 1, "layers": [], "workers": )" + value + "}"),
                HasSubstr("workers"))
        << value;
  }
}

TEST_F(PlacementFile, WithBrokenLayers) {
  const auto with = [](std::string_view layers) {
    return R"({"schema": 1, "num_experts": 2, "workers": 1, "layers": )" + std::string(layers) + "}";
  };
  EXPECT_THAT(Refusal(R"({"schema": 1, "num_experts": 2, "workers": 1})"), HasSubstr("layers"));
  EXPECT_THAT(Refusal(with("{}")), HasSubstr("layers"));
  EXPECT_THAT(Refusal(with("[3]")), AllOf(HasSubstr("layers"), HasSubstr("3")));
  EXPECT_THAT(Refusal(with(R"([{"slots": [[0]]}])")), HasSubstr("layer"));
  EXPECT_THAT(Refusal(with(R"([{"layer": -4, "slots": [[0]]}])")), AllOf(HasSubstr("layer"), HasSubstr("-4")));
  EXPECT_THAT(Refusal(with(R"([{"layer": 5}])")), AllOf(HasSubstr("layer 5"), HasSubstr("slots")));
  EXPECT_THAT(Refusal(with(R"([{"layer": 5, "slots": 0}])")), HasSubstr("layer 5"));
  EXPECT_THAT(Refusal(with(R"([{"layer": 5, "slots": [0, 1]}])")), HasSubstr("layer 5"));
  for (const std::string expert : {"-1", "0.5", "\"a\"", "null", "1000001", "18446744073709551615"}) {
    EXPECT_THAT(Refusal(with(R"([{"layer": 5, "slots": [[0, )" + expert + "]]}]")),
                AllOf(HasSubstr("layer 5"), HasSubstr(expert)))
        << expert;
  }
}

// Reading checks the form alone; the shape is checked against the model afterwards.
TEST_F(PlacementFile, OfAnotherShapeIsReadAndThenRefusedByTheCheck) {
  const Result<Placement> placement =
      Read(R"({"schema": 1, "num_experts": 2, "workers": 1, "layers": [{"layer": 0, "slots": [[1, 1]]}]})");
  ASSERT_TRUE(placement.ok());
  EXPECT_THAT(CheckPlacement(*placement, {.num_experts = 2, .workers = 1, .layers = {0}}).message(),
              HasSubstr("twice"));
}

}  // namespace
}  // namespace moe
