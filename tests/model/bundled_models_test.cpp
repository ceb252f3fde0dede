// The three trained models against what an independent implementation computed for them.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "tests/model/model_files.h"
#include "tests/reference/golden.h"
#include "tests/reference/local_model.h"

namespace moe {
namespace {

class BundledModel : public ::testing::TestWithParam<std::string> {
 protected:
  BundledModel()
      : golden_(ReadBundledGolden(folder())), model_(folder(), {.max_positions = 1024, .max_step_tokens = 512}) {}

  static std::filesystem::path folder() { return InRepository("models/eight-languages-" + GetParam()); }

  const BundledGolden golden_;
  LocalModel model_;
};

INSTANTIATE_TEST_SUITE_P(EightLanguages, BundledModel, ::testing::Values("moe", "dense", "collapsed"),
                         [](const auto& test) { return test.param; });

TEST_P(BundledModel, LogitsAreTheGoldens) {
  LocalModel::Sequence sequence;
  const StepTrace trace = model_.Step(sequence, golden_.logits_prompt);
  ASSERT_EQ(golden_.logits.size(), static_cast<std::size_t>(model_.config().vocab_size));
  const auto last = std::span(trace.logits).last(golden_.logits.size());
  for (std::size_t i = 0; i < last.size(); ++i) ASSERT_NEAR(last[i], golden_.logits[i], golden_.logit_tolerance);
}

TEST_P(BundledModel, GreedyContinuationsAreTheGoldens) {
  ASSERT_EQ(golden_.prompts.size(), 8u);
  for (const GoldenPrompt& prompt : golden_.prompts)
    EXPECT_EQ(model_.Greedy(prompt.ids, prompt.greedy.size()), prompt.greedy);
}

}  // namespace
}  // namespace moe
