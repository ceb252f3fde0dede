#include "bench/engine/quality_figures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

namespace moe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(Windows, FollowOneAnotherAndTheLastIsShorter) {
  EXPECT_THAT(Windows("abcdefgh", 3, 0), ElementsAre("abc", "def", "gh"));
  EXPECT_THAT(Windows("abcdef", 3, 0), ElementsAre("abc", "def"));
}

TEST(Windows, OneByteAtTheEndScoresNothing) { EXPECT_THAT(Windows("abcdefg", 3, 0), ElementsAre("abc", "def")); }

TEST(Windows, AreTheFirstSoManyWhenAskedTo) {
  EXPECT_THAT(Windows("abcdefgh", 2, 3), ElementsAre("ab", "cd", "ef"));
  EXPECT_THAT(Windows("abc", 2, 3), ElementsAre("ab"));
}

TEST(Windows, OfNothingAreNone) {
  EXPECT_THAT(Windows("", 4, 0), ElementsAre());
  EXPECT_THAT(Windows("a", 4, 0), ElementsAre());
}

TEST(ByteTokens, AreUnsigned) { EXPECT_THAT(ByteTokens(std::string_view("a\xff\0", 3)), ElementsAre(97u, 255u, 0u)); }

TEST(KlDivergence, IsThatOfTheTwoDistributions) {
  // Half and half against three quarters and a quarter: ½ ln(½ / ¾) + ½ ln(½ / ¼) = ½ ln(4 / 3).
  const std::vector<float> even = {0, 0};
  const std::vector<float> skewed = {std::log(3.0f), 0};
  EXPECT_NEAR(KlDivergence(even, skewed), 0.5 * std::log(4.0 / 3), 1e-7);
  // The other way: ¾ ln(¾ / ½) + ¼ ln(¼ / ½).
  EXPECT_NEAR(KlDivergence(skewed, even), 0.75 * std::log(1.5) + 0.25 * std::log(0.5), 1e-7);
  EXPECT_EQ(KlDivergence(skewed, skewed), 0);
}

TEST(KlDivergence, DoesNotDependOnAConstantOrOverflow) {
  const std::vector<float> even = {1000, 1000};
  const std::vector<float> skewed = {std::log(3.0f), 0};
  EXPECT_NEAR(KlDivergence(even, skewed), 0.5 * std::log(4.0 / 3), 1e-7);
}

TEST(Mean, IsOverAllThatWasAdded) {
  Mean mean;
  EXPECT_EQ(mean.value(), 0);
  mean.Add(1);
  mean.Add(4);
  EXPECT_EQ(mean.value(), 2.5);
  EXPECT_EQ(mean.count(), 2u);
}

constexpr const char* kTasks =
    "{\"language\": \"sums\", \"prompt\": \"1 + 1 = \", \"answer\": \"2\\n\"}\n"
    "{\"language\": \"mirror\", \"prompt\": \"ab -> \", \"answer\": \"ba\\n\"}\n";

TEST(ParseTasks, ReadsALineATask) {
  const Result<std::vector<Task>> tasks = ParseTasks(kTasks, 0);
  ASSERT_TRUE(tasks.ok()) << tasks.status().message();
  ASSERT_EQ(tasks->size(), 2u);
  EXPECT_EQ((*tasks)[0].language, "sums");
  EXPECT_EQ((*tasks)[0].prompt, "1 + 1 = ");
  EXPECT_EQ((*tasks)[0].answer, "2\n");
  EXPECT_EQ((*tasks)[1].answer, "ba\n");
  EXPECT_EQ(ParseTasks(kTasks, 1)->size(), 1u);
}

TEST(ParseTasks, NamesTheLineAndWhatIsWrong) {
  const std::string good = "{\"language\": \"a\", \"prompt\": \"b\", \"answer\": \"c\"}\n";
  const std::pair<std::string, const char*> cases[] = {
      {"", "no tasks"},
      {good + "{", "line 2"},
      {good + "\n" + good, "line 2"},
      {good + "[]", "line 2: [] is no object"},
      {"{\"language\": \"a\", \"prompt\": \"b\"}", "line 1: answer is missing or empty"},
      {"{\"language\": \"a\", \"prompt\": 3, \"answer\": \"c\"}", "line 1: prompt is 3, a string was expected"},
      {"{\"language\": \"\", \"prompt\": \"b\", \"answer\": \"c\"}", "language is missing or empty"},
      {"{\"language\": \"a\", \"prompt\": \"b\", \"answer\": \"c\", \"hint\": \"d\"}", "key \"hint\" is unknown"},
  };
  for (const auto& [text, expected] : cases) {
    const Result<std::vector<Task>> tasks = ParseTasks(text, 0);
    ASSERT_FALSE(tasks.ok()) << text;
    EXPECT_THAT(tasks.status().message(), HasSubstr(expected)) << text;
  }
}

}  // namespace
}  // namespace moe
