#include "model/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace moe {
namespace {

using ::testing::HasSubstr;

std::string Error(std::string_view text) {
  const Result<JsonValue> value = ParseJson(text);
  return value.ok() ? "no error" : value.status().message();
}

TEST(Json, KeepsIntegersApartFromReals) {
  const Result<JsonValue> root = ParseJson(R"({"a": 3, "b": 3.0, "c": -4, "d": 18446744073709551615, "e": 1e3})");
  ASSERT_TRUE(root.ok()) << root.status().message();
  EXPECT_EQ(root->Find("a")->AsInt(), 3);
  EXPECT_EQ(root->Find("a")->AsReal(), 3.0);
  EXPECT_EQ(root->Find("b")->AsInt(), std::nullopt);
  EXPECT_EQ(root->Find("b")->AsReal(), 3.0);
  EXPECT_EQ(root->Find("c")->AsInt(), -4);
  EXPECT_EQ(root->Find("c")->AsUnsigned(), std::nullopt);
  EXPECT_EQ(root->Find("d")->AsUnsigned(), 18446744073709551615u);
  EXPECT_EQ(root->Find("d")->AsInt(), std::nullopt);
  EXPECT_EQ(root->Find("e")->AsUnsigned(), std::nullopt);
}

TEST(Json, FindsMembersInAnyOrder) {
  const Result<JsonValue> root = ParseJson(R"({"z": [1, {"y": "text"}], "a": null, "m": true})");
  ASSERT_TRUE(root.ok());
  EXPECT_EQ(*root->Find("z")->AsArray()->at(1).Find("y")->AsString(), "text");
  EXPECT_TRUE(root->Find("a")->is_null());
  EXPECT_TRUE(*root->Find("m")->AsBool());
  EXPECT_EQ(root->Find("b"), nullptr);
  EXPECT_EQ(root->Find("z")->Find("y"), nullptr);
}

TEST(Json, RefusesAKeyThatIsThereTwice) {
  EXPECT_THAT(Error(R"({"b": 1, "a": 2, "b": 3})"), HasSubstr("key \"b\" is there twice"));
}

TEST(Json, RefusesWhatIsNotJson) {
  for (const char* text : {"", "{oops", "{} x", "[1,]", "{\"a\": NaN}", "[1e999]", "\"\xff\""}) {
    EXPECT_THAT(Error(text), HasSubstr("not JSON")) << text;
  }
}

TEST(Json, RefusesDeepNesting) {
  EXPECT_EQ(Error(std::string(64, '[') + std::string(64, ']')), "no error");
  EXPECT_THAT(Error(std::string(65, '[') + std::string(65, ']')), HasSubstr("nested more than 64 deep"));
  EXPECT_THAT(Error(std::string(1'000'000, '[')), HasSubstr("nested more than 64 deep"));
}

TEST(Json, ErrorsArePrintableAndShort) {
  const std::string error = Error("{\"a\": \x01\x02\n" + std::string(100'000, '\x7f'));
  EXPECT_LT(error.size(), 300u);
  for (const char c : error.substr(0, 100)) EXPECT_TRUE(c >= ' ' && c <= '~') << static_cast<int>(c);
}

TEST(Json, ExcerptsAreShort) {
  const Result<JsonValue> root = ParseJson(R"({"a": [1, 2.5, "x"], "b": null})");
  EXPECT_EQ(root->Excerpt(), R"({"a": [1, 2.5, "x"], "b": null})");
  EXPECT_LT(ParseJson("[\"" + std::string(1000, 'x') + "\"]")->Excerpt().size(), 90u);
  EXPECT_LT(ParseJson("[" + std::string(1000, '1') + "e-990]")->Excerpt().size(), 90u);
}

}  // namespace
}  // namespace moe
