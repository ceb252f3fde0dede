#include "bench/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <string_view>

#include "core/text.h"
#include "tests/temporary_folder.h"

namespace moe {
namespace {

using testing::HasSubstr;

constexpr std::uint32_t kVocabulary = 256;
const ServedModel kModel{.name = "toy", .vocab_size = kVocabulary, .context_length = 512};

class TextFile {
 public:
  explicit TextFile(std::string_view text) { folder_.Write("some.txt", text); }
  std::string path() const { return folder_.path() / "some.txt"; }

 private:
  const TemporaryFolder folder_;
};

Workload Create(const WorkloadOptions& options) {
  auto workload = Workload::Create(options, kModel);
  EXPECT_TRUE(workload.ok()) << workload.status().message();
  return *std::move(workload);
}

TEST(ParseLengthRange, TakesANumberOrARange) {
  const auto one = ParseLengthRange("7");
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->low, 7u);
  EXPECT_EQ(one->high, 7u);
  const auto range = ParseLengthRange("16:64");
  ASSERT_TRUE(range.ok());
  EXPECT_EQ(range->low, 16u);
  EXPECT_EQ(range->high, 64u);
}

TEST(ParseLengthRange, RefusesEverythingElse) {
  for (const char* text :
       {"", "0", "-1", "x", "1:", ":1", "2:1", "0:3", "1:2:3", "1.5", " 1", "4294967296", "1:4000000000"}) {
    const auto range = ParseLengthRange(text);
    ASSERT_FALSE(range.ok()) << text;
    EXPECT_EQ(range.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(range.status().message(), HasSubstr(Cat('"', text, '"')));
  }
}

TEST(Workload, DrawsLengthsFromTheWholeRange) {
  const Workload workload = Create({.input_len = {3, 5}, .output_len = {7, 8}, .sequences_per_request = 2});
  std::set<std::size_t> inputs;
  std::set<std::uint32_t> outputs;
  for (std::uint64_t i = 0; i < 100; ++i) {
    const PlannedCall call = workload.Make(Workload::Phase::kMeasured, i);
    ASSERT_EQ(call.prompts.size(), 2u);
    for (const auto& prompt : call.prompts) inputs.insert(prompt.size());
    outputs.insert(call.max_new_tokens);
  }
  EXPECT_EQ(inputs, (std::set<std::size_t>{3, 4, 5}));
  EXPECT_EQ(outputs, (std::set<std::uint32_t>{7, 8}));
}

TEST(Workload, RandomIdsCoverTheVocabularyAndNothingElse) {
  const Workload workload = Create({.input_len = {400, 400}, .output_len = {1, 1}});
  std::set<std::uint32_t> seen;
  for (std::uint64_t i = 0; i < 20; ++i) {
    const PlannedCall call = workload.Make(Workload::Phase::kMeasured, i);
    seen.insert(call.prompts[0].begin(), call.prompts[0].end());
  }
  EXPECT_EQ(*seen.rbegin(), kVocabulary - 1);
  EXPECT_EQ(seen.size(), kVocabulary);
}

TEST(Workload, TextPromptsAreWindowsOfTheFile) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += Cat(i, i % 7 == 0 ? "\xff" : " ");
  const TextFile file(text);
  const Workload workload = Create({.input_len = {20, 30}, .output_len = {1, 1}, .text_file = file.path()});
  std::set<std::size_t> places;
  for (std::uint64_t i = 0; i < 50; ++i) {
    std::string window;
    const PlannedCall call = workload.Make(Workload::Phase::kMeasured, i);
    for (const std::uint32_t token : call.prompts[0]) window += static_cast<char>(token);
    const std::size_t place = text.find(window);
    ASSERT_NE(place, std::string::npos);
    places.insert(place);
  }
  EXPECT_GT(places.size(), 40u);
}

TEST(Workload, AWindowMayBeTheWholeText) {
  const TextFile file("abcd");
  const Workload workload = Create({.input_len = {4, 4}, .output_len = {1, 1}, .text_file = file.path()});
  EXPECT_EQ(workload.Make(Workload::Phase::kMeasured, 0).prompts[0], (std::vector<std::uint32_t>{'a', 'b', 'c', 'd'}));
}

TEST(Workload, ACallDependsOnSeedPhaseAndIndexOnly) {
  const WorkloadOptions options{.input_len = {50, 60}, .output_len = {1, 9}, .seed = 5};
  const PlannedCall call = Create(options).Make(Workload::Phase::kMeasured, 3);
  const Workload again = Create(options);
  (void)again.Make(Workload::Phase::kMeasured, 17);
  EXPECT_EQ(again.Make(Workload::Phase::kMeasured, 3).prompts, call.prompts);
  EXPECT_EQ(again.Make(Workload::Phase::kMeasured, 3).sampling_seed, call.sampling_seed);
  EXPECT_NE(again.Make(Workload::Phase::kMeasured, 4).prompts, call.prompts);
  EXPECT_NE(again.Make(Workload::Phase::kWarmup, 3).prompts, call.prompts);
  WorkloadOptions other = options;
  other.seed = 6;
  EXPECT_NE(Create(other).Make(Workload::Phase::kMeasured, 3).prompts, call.prompts);
}

TEST(Workload, RefusesWhatDoesNotFitTheModel) {
  const TextFile file("abc\xff");
  ServedModel ascii = kModel;
  ascii.vocab_size = 128;
  ServedModel narrow = kModel;
  narrow.max_sequences_per_request = 4;
  const auto expect_refused = [](const WorkloadOptions& options, const ServedModel& model, const char* expected) {
    const auto workload = Workload::Create(options, model);
    ASSERT_FALSE(workload.ok()) << expected;
    EXPECT_EQ(workload.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(workload.status().message(), HasSubstr(expected));
  };
  expect_refused({.input_len = {1, 500}, .output_len = {1, 13}}, kModel, "exceed the context of 512");
  expect_refused({.sequences_per_request = 5}, narrow, "limit of 4");
  expect_refused({.input_len = {5, 5}, .text_file = file.path()}, kModel, "has 4 bytes");
  expect_refused({.input_len = {2, 2}, .text_file = file.path()}, ascii, "value 255");
  expect_refused({.text_file = "/nonexistent/text"}, kModel, "--text /nonexistent/text");
  expect_refused({.text_file = testing::TempDir()}, kModel, "nothing can be read");
  EXPECT_TRUE(Workload::Create({.input_len = {1, 500}, .output_len = {1, 12}}, kModel).ok());
}

}  // namespace
}  // namespace moe
