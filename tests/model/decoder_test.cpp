// Invariant 1 inside one process: a row's bits depend on the tokens before it and on nothing else.
#include "model/decoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/kernels/kernel_cases.h"
#include "tests/model/golden_case.h"

namespace moe {
namespace {

/// Everything that two passes over the same rows computed, as bits.
void ExpectSameTrace(const StepTrace& actual, const StepTrace& expected) {
  EXPECT_TRUE(SameBits(actual.logits, expected.logits));
  EXPECT_TRUE(SameBits(actual.final_norm, expected.final_norm));
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

class DecoderBits : public GoldenCase {
 protected:
  /// The tokens of the decoder: the prompt, or what it says about the prompt.
  std::vector<std::uint32_t> Tokens(const LocalModel& model, std::size_t prompt) const {
    if (!model.config().has_encoder()) return golden_.prompts[prompt].ids;
    std::vector<std::uint32_t> tokens = {model.config().decoder_start_token.value()};
    const std::vector<std::uint32_t>& greedy = golden_.prompts[prompt].greedy;
    tokens.insert(tokens.end(), greedy.begin(), greedy.end() - 1);
    return tokens;
  }

  /// A new sequence of that prompt, of which no token of the decoder has been computed.
  LocalModel::Sequence Begin(LocalModel& model, std::size_t prompt) const {
    LocalModel::Sequence sequence;
    if (model.config().has_encoder()) model.Encode(sequence, golden_.prompts[prompt].ids);
    return sequence;
  }

  /// The most tokens of a sequence whose result does not depend on how they are cut into steps: an expert's capacity
  /// counts in each call.
  static std::size_t MaxChunk(const LocalModel& model) {
    std::size_t chunk = 128;
    for (const LayerSpec& layer : model.config().layers) {
      if (layer.moe && layer.moe->gate.capacity > 0)
        chunk = std::min(chunk, static_cast<std::size_t>(layer.moe->gate.capacity));
    }
    return chunk;
  }

  StepTrace Whole(LocalModel& model, std::size_t prompt) const {
    LocalModel::Sequence sequence = Begin(model, prompt);
    const StepTrace trace = model.Prefill(sequence, Tokens(model, prompt), MaxChunk(model));
    model.Release(sequence);
    return trace;
  }
};

auto Cases(const std::vector<std::string>& names) {
  return ::testing::Combine(::testing::ValuesIn(names), ::testing::Values(&SimdKernels()));
}

INSTANTIATE_TEST_SUITE_P(All, DecoderBits, Cases(AllGoldens()), CaseName);

class PromptBits : public DecoderBits {};
INSTANTIATE_TEST_SUITE_P(All, PromptBits, Cases(Only(false, AllGoldens())), CaseName);

class EncoderBits : public DecoderBits {};
INSTANTIATE_TEST_SUITE_P(All, EncoderBits, Cases(Only(true, AllGoldens())), CaseName);

TEST_P(DecoderBits, ChunkedPrefillHasTheBitsOfWholePrefill) {
  LocalModel model = Make();
  for (const std::size_t prompt : Counts{0, golden_.prompts.size() - 1}) {
    const StepTrace expected = Whole(model, prompt);
    for (const std::size_t chunk : Counts{1, 2, 3, 7, 33}) {
      if (chunk > MaxChunk(model)) continue;
      LocalModel::Sequence sequence = Begin(model, prompt);
      ExpectSameTrace(model.Prefill(sequence, Tokens(model, prompt), chunk), expected);
      model.Release(sequence);
    }
  }
}

TEST_P(PromptBits, DecodingHasTheBitsOfPrefill) {
  LocalModel model = Make();
  const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
  for (const GoldenPrompt& prompt : golden_.prompts) {
    const LocalModel::Continuation decoded = model.Continue(prompt.ids, prompt.greedy.size());
    std::vector<std::uint32_t> ids = prompt.ids;
    ids.insert(ids.end(), decoded.tokens.begin(), decoded.tokens.end() - 1);
    LocalModel::Sequence sequence;
    const StepTrace whole = model.Step(sequence, ids);
    for (std::size_t i = 0; i < decoded.logits.size(); ++i) {
      const std::size_t row = prompt.ids.size() - 1 + i;
      EXPECT_TRUE(SameBits(decoded.logits[i], std::span(whole.logits).subspan(row * vocab, vocab))) << "token " << i;
    }
    model.Release(sequence);
  }
}

TEST_P(DecoderBits, SequencesOfOneStepHaveTheBitsTheyHaveAlone) {
  LocalModel model = Make();
  const std::size_t prompts = golden_.prompts.size();
  std::vector<std::vector<std::uint32_t>> tokens;
  for (std::size_t i = 0; i < prompts; ++i) tokens.push_back(Tokens(model, i));
  std::vector<LocalModel::Sequence> sequences(prompts);
  // Each sequence enters the step with as many tokens in the cache as its index, the rest are the step's rows, as many
  // as no capacity binds.
  std::vector<LocalModel::Part> parts;
  std::vector<StepTrace> alone;
  std::size_t rows = 0;
  for (std::size_t i = 0; i < prompts; ++i) {
    const std::span<const std::uint32_t> ids = tokens[i];
    const std::size_t before = std::min(i, ids.size() - 1);
    const std::size_t count = std::min(ids.size() - before, MaxChunk(model));
    alone.push_back(RowsOf(Whole(model, i), ids.size(), before, before + count));
    sequences[i] = Begin(model, i);
    if (before > 0) model.Prefill(sequences[i], ids.first(before), MaxChunk(model));
    parts.push_back({&sequences[i], ids.subspan(before, count)});
    rows += count;
  }
  std::ranges::reverse(parts);
  const StepTrace together = model.Step(parts);
  std::size_t row = 0;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const std::size_t count = parts[p].tokens.size();
    ExpectSameTrace(RowsOf(together, rows, row, row + count), alone[parts.size() - 1 - p]);
    row += count;
  }
}

TEST_P(EncoderBits, SourcesOfOneStepHaveTheBitsTheyHaveAlone) {
  LocalModel model = Make();
  std::vector<LocalModel::Sequence> sequences(golden_.prompts.size());
  std::vector<LocalModel::Part> parts;
  std::size_t rows = 0;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    parts.push_back({&sequences[i], golden_.prompts[i].ids});
    rows += golden_.prompts[i].ids.size();
  }
  std::ranges::reverse(parts);
  const StepTrace together = model.Encode(parts);
  std::size_t row = 0;
  for (const LocalModel::Part& part : parts) {
    LocalModel::Sequence single;
    const std::size_t count = part.tokens.size();
    ExpectSameTrace(RowsOf(together, rows, row, row + count), model.Encode(single, part.tokens));
    row += count;
    // And what the decoder reads of it.
    const std::uint32_t start = model.config().decoder_start_token.value();
    ExpectSameTrace(model.Step(*part.sequence, {&start, 1}), model.Step(single, {&start, 1}));
    model.Release(single);
  }
}

TEST_P(DecoderBits, ReusedPagesLeaveNoTrace) {
  LocalModel model = Make();
  const StepTrace expected = Whole(model, 0);
  (void)Whole(model, golden_.prompts.size() - 1);
  ExpectSameTrace(Whole(model, 0), expected);
}

TEST_P(DecoderBits, ThreadsDoNotChangeTheBits) {
  std::vector<StepTrace> traces;
  for (const int threads : {1, 2, 4}) {
    LocalModel model = Make(threads);
    // The longest prompt twice over in one step: enough work to be shared out.
    const std::size_t last = golden_.prompts.size() - 1;
    const std::vector<std::uint32_t> tokens = Tokens(model, last);
    std::vector<LocalModel::Sequence> sequences(2);
    std::vector<LocalModel::Part> parts;
    if (model.config().has_encoder()) {
      for (LocalModel::Sequence& sequence : sequences) parts.push_back({&sequence, golden_.prompts[last].ids});
      traces.push_back(model.Encode(parts));
      parts.clear();
    }
    for (LocalModel::Sequence& sequence : sequences) parts.push_back({&sequence, tokens});
    traces.push_back(model.Step(parts));
  }
  const std::size_t stacks = traces.size() / 3;
  for (std::size_t i = stacks; i < traces.size(); ++i) ExpectSameTrace(traces[i], traces[i % stacks]);
}

class InstructionSets : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(All, InstructionSets, ::testing::ValuesIn(AllGoldens()),
                         [](const auto& test) { return LastPart(test.param); });

TEST_P(InstructionSets, GiveTheSameBits) {
  const std::filesystem::path folder = InRepository("tests/" + GetParam());
  const std::vector<std::uint32_t> ids = ReadGolden(folder).prompts.back().ids;
  std::vector<StepTrace> traces;
  std::size_t stacks = 1;
  for (const Kernels* kernels : AvailableSimdKernels()) {
    LocalModel model(folder, {.kernels = kernels});
    LocalModel::Sequence sequence;
    if (model.config().has_encoder()) {
      stacks = 2;
      traces.push_back(model.Encode(sequence, ids));
    }
    traces.push_back(model.Step(sequence, ids));
  }
  for (std::size_t i = stacks; i < traces.size(); ++i) ExpectSameTrace(traces[i], traces[i % stacks]);
}

}  // namespace
}  // namespace moe
