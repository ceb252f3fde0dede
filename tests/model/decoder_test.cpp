// A whole forward pass against the goldens of an independent implementation, and its bits against itself.
#include "model/decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "tests/kernels/kernel_cases.h"
#include "tests/model/model_files.h"
#include "tests/reference/golden.h"
#include "tests/reference/local_model.h"

namespace moe {
namespace {

using Case = std::tuple<std::string, const Kernels*>;

/// One golden case computed with one implementation of the kernels.
class DecoderCase : public ::testing::TestWithParam<Case> {
 protected:
  DecoderCase() : golden_(ReadGolden(folder())) {}

  std::filesystem::path folder() const { return InRepository("tests/goldens") / std::get<0>(GetParam()); }
  LocalModel Make(int threads = 1) const {
    return {folder(), {.kernels = std::get<1>(GetParam()), .threads = threads, .max_step_tokens = 128}};
  }

  const Golden golden_;
};

std::vector<const Kernels*> AllKernels() {
  std::vector<const Kernels*> all = AvailableSimdKernels();
  all.push_back(&ReferenceKernels());
  return all;
}

class SparseDecoderCase : public DecoderCase {};

std::string CaseName(const ::testing::TestParamInfo<Case>& info) {
  return std::get<0>(info.param) + "_" + std::string(std::get<1>(info.param)->name());
}

INSTANTIATE_TEST_SUITE_P(Goldens, DecoderCase,
                         ::testing::Combine(::testing::Values("mixtral", "mixtral_bf16", "llama", "llama3_rope",
                                                              "mistral"),
                                            ::testing::ValuesIn(AllKernels())),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(Goldens, SparseDecoderCase,
                         ::testing::Combine(::testing::Values("mixtral", "mixtral_bf16"),
                                            ::testing::ValuesIn(AllKernels())),
                         CaseName);

void ExpectNear(std::span<const float> actual, std::span<const float> expected, double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  double worst = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double difference = std::abs(static_cast<double>(actual[i]) - expected[i]);
    worst = difference <= worst ? worst : difference;  // NaN too
  }
  EXPECT_LE(worst, tolerance);
}

/// Everything that two passes over the same rows computed, as bits.
void ExpectSameTrace(const StepTrace& actual, const StepTrace& expected) {
  EXPECT_TRUE(SameBits(actual.logits, expected.logits));
  ASSERT_EQ(actual.hidden.size(), expected.hidden.size());
  for (std::size_t i = 0; i < actual.hidden.size(); ++i)
    EXPECT_TRUE(SameBits(actual.hidden[i], expected.hidden[i])) << "after layer " << i;
  ASSERT_EQ(actual.routes.size(), expected.routes.size());
  for (std::size_t i = 0; i < actual.routes.size(); ++i) {
    EXPECT_EQ(actual.routes[i].ids, expected.routes[i].ids);
    EXPECT_TRUE(SameBits(actual.routes[i].weights, expected.routes[i].weights));
  }
}

/// The rows [begin, end) of a trace of `rows` rows.
StepTrace RowsOf(const StepTrace& trace, std::size_t rows, std::size_t begin, std::size_t end) {
  const auto cut = [&](const auto& values) {
    const std::size_t width = values.size() / rows;
    return std::decay_t<decltype(values)>(values.begin() + static_cast<std::ptrdiff_t>(begin * width),
                                          values.begin() + static_cast<std::ptrdiff_t>(end * width));
  };
  StepTrace part{.logits = cut(trace.logits), .final_norm = cut(trace.final_norm)};
  for (const std::vector<float>& hidden : trace.hidden) part.hidden.push_back(cut(hidden));
  for (const StepTrace::Routes& routes : trace.routes) part.routes.push_back({cut(routes.ids), cut(routes.weights)});
  return part;
}

TEST_P(DecoderCase, LogitsAreTheGoldensAtEveryPosition) {
  LocalModel model = Make();
  const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
  for (std::size_t i = 0; i < golden_.prompts.size(); ++i) {
    LocalModel::Sequence sequence;
    const GoldenPrompt& prompt = golden_.prompts[i];
    const StepTrace trace = model.Step(sequence, prompt.ids);
    ExpectNear(std::span(trace.logits).last(vocab), golden_.tensor(Cat("prompt", i, ".logits")).floats,
               golden_.logit_tolerance);
    ASSERT_EQ(prompt.argmax.size(), prompt.ids.size());
    for (std::size_t row = 0; row < prompt.ids.size(); ++row)
      EXPECT_EQ(ArgMax(std::span(trace.logits).subspan(row * vocab, vocab)), prompt.argmax[row]);
    if (i == 0) ExpectNear(trace.logits, golden_.tensor("prompt0.all_logits").floats, golden_.logit_tolerance);
  }
}

TEST_P(DecoderCase, TheResidualStreamIsTheGoldensAfterEveryLayer) {
  LocalModel model = Make();
  LocalModel::Sequence sequence;
  const StepTrace trace = model.Step(sequence, golden_.prompts[0].ids);
  const auto hidden = static_cast<std::size_t>(model.config().hidden);
  const std::vector<float>& expected = golden_.tensor("prompt0.hidden").floats;  // (layers + 1, hidden), last token
  ASSERT_EQ(expected.size(), trace.hidden.size() * hidden);
  for (std::size_t i = 0; i < trace.hidden.size(); ++i)
    ExpectNear(std::span(trace.hidden[i]).last(hidden), std::span(expected).subspan(i * hidden, hidden),
               golden_.hidden_tolerance);
  ExpectNear(std::span(trace.final_norm).last(hidden), golden_.tensor("prompt0.final_norm").floats,
             golden_.hidden_tolerance);
}

TEST_P(SparseDecoderCase, ExpertsAndTheirWeightsAreTheGoldens) {
  LocalModel model = Make();
  ASSERT_FALSE(model.config().sparse_layers().empty());
  LocalModel::Sequence sequence;
  const StepTrace trace = model.Step(sequence, golden_.prompts[0].ids);
  for (const int layer : model.config().sparse_layers()) {
    const StepTrace::Routes& routes = trace.routes[static_cast<std::size_t>(layer)];
    EXPECT_EQ(routes.ids, golden_.tensor(Cat("prompt0.router.", layer, ".ids")).ints);
    ExpectNear(routes.weights, golden_.tensor(Cat("prompt0.router.", layer, ".weights")).floats, 1e-5);
  }
}

TEST_P(DecoderCase, GreedyContinuationsAreTheGoldens) {
  LocalModel model = Make();
  for (const GoldenPrompt& prompt : golden_.prompts)
    EXPECT_EQ(model.Greedy(prompt.ids, prompt.greedy.size()), prompt.greedy);
}

// Invariant 1: a row's bits depend on the tokens before it and on nothing else.

TEST_P(DecoderCase, ChunkedPrefillHasTheBitsOfWholePrefill) {
  LocalModel model = Make();
  const std::vector<std::uint32_t>& ids = golden_.prompts.back().ids;
  ASSERT_GT(ids.size(), kPageTokens) << "must cross a page";
  LocalModel::Sequence whole;
  const StepTrace expected = model.Step(whole, ids);
  for (const std::size_t chunk : Counts{1, 3, 7, 33}) {
    LocalModel::Sequence sequence;
    ExpectSameTrace(model.Prefill(sequence, ids, chunk), expected);
  }
}

TEST_P(DecoderCase, SequencesOfOneStepHaveTheBitsTheyHaveAlone) {
  LocalModel model = Make();
  std::vector<LocalModel::Sequence> sequences(golden_.prompts.size());
  // Each sequence enters the step with as many tokens in the cache as its index, the rest are the step's rows.
  std::vector<LocalModel::Part> parts;
  std::vector<StepTrace> alone;
  std::size_t rows = 0;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const std::span<const std::uint32_t> ids = golden_.prompts[i].ids;
    const std::size_t before = std::min(i, ids.size() - 1);
    LocalModel::Sequence single;
    const StepTrace trace = model.Step(single, ids);
    alone.push_back(RowsOf(trace, ids.size(), before, ids.size()));
    if (before > 0) model.Step(sequences[i], ids.first(before));
    parts.push_back({&sequences[i], ids.subspan(before)});
    rows += ids.size() - before;
  }
  std::reverse(parts.begin(), parts.end());
  const StepTrace together = model.Step(parts);
  std::size_t row = 0;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const std::size_t count = parts[p].tokens.size();
    ExpectSameTrace(RowsOf(together, rows, row, row + count), alone[parts.size() - 1 - p]);
    row += count;
  }
}

TEST_P(DecoderCase, ReusedPagesLeaveNoTrace) {
  LocalModel model = Make();
  LocalModel::Sequence first;
  const StepTrace expected = model.Step(first, golden_.prompts[0].ids);
  model.Release(first);
  LocalModel::Sequence other;
  model.Step(other, golden_.prompts.back().ids);
  model.Release(other);
  LocalModel::Sequence again;
  ExpectSameTrace(model.Step(again, golden_.prompts[0].ids), expected);
}

TEST_P(DecoderCase, ThreadsDoNotChangeTheBits) {
  LocalModel one = Make(1);
  LocalModel four = Make(4);
  // All prompts twice over in one step: enough work to be shared out.
  std::vector<LocalModel::Sequence> sequences(4);
  std::vector<LocalModel::Part> parts;
  for (std::size_t i = 0; i < 2; ++i) parts.push_back({&sequences[i], golden_.prompts[4].ids});
  const StepTrace expected = one.Step(parts);
  for (std::size_t i = 0; i < 2; ++i) parts[i].sequence = &sequences[2 + i];
  ExpectSameTrace(four.Step(parts), expected);
}

TEST(Decoder, InstructionSetsGiveTheSameBits) {
  for (const std::string name : {"mixtral", "mixtral_bf16", "llama", "llama3_rope", "mistral"}) {
    const std::filesystem::path folder = InRepository("tests/goldens") / name;
    const Golden golden = ReadGolden(folder);
    std::vector<StepTrace> traces;
    for (const Kernels* kernels : AvailableSimdKernels()) {
      LocalModel model(folder, {.kernels = kernels});
      LocalModel::Sequence sequence;
      traces.push_back(model.Step(sequence, golden.prompts.back().ids));
    }
    for (const StepTrace& trace : traces) ExpectSameTrace(trace, traces.front());
  }
}

}  // namespace
}  // namespace moe
