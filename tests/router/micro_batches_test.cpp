// The cut of a step's rows into micro-batches, and the choice of how many.
#include "router/micro_batches.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <utility>
#include <vector>

#include "router/micro_batch_choice.h"
#include "tests/router/engine_harness.h"

namespace moe {
namespace {

using testing::ElementsAre;

// Sequences in the middle of their prompts.
class MicroBatchesTest : public testing::Test {
 protected:
  /// `tokens` rows of a sequence that has computed `computed` positions; position p holds token 1000 * sequence + p.
  Chunk Add(std::size_t computed, std::size_t tokens) {
    std::vector<std::uint32_t> prompt(computed + tokens + 5);
    std::iota(prompt.begin(), prompt.end(), static_cast<std::uint32_t>(1000 * sequences_.size()));
    SequenceRequest request = Greedy(std::move(prompt), 1);
    auto output = std::make_shared<SequenceOutput>(request, config_);
    sequences_.push_back(std::make_unique<Sequence>(std::move(request), output, nullptr, config_));
    sequences_.back()->computed = computed;
    return {.sequence = sequences_.back().get(), .tokens = tokens};
  }

  const ModelConfig config_ = *ReadModelConfig(SourcePath("tests/goldens/mixtral"));
  std::vector<std::unique_ptr<Sequence>> sequences_;
};

TEST_F(MicroBatchesTest, EveryRowIsInOnePartWithItsPositionAndPages) {
  const std::vector<Chunk> chunks = {Add(7, 1), Add(0, 11), Add(20, 1), Add(3, 6), Add(9, 2)};
  constexpr std::size_t kRows = 21;
  MicroBatches cut(kRows, kMaxMicroBatches);
  for (int count = 1; count <= kMaxMicroBatches; ++count) {
    cut.Cut(chunks, count);
    ASSERT_EQ(cut.batches().size(), static_cast<std::size_t>(count));
    EXPECT_EQ(cut.rows(), kRows);
    std::vector<std::size_t> next(chunks.size());  // rows of each chunk so far
    std::size_t chunk = 0;
    std::size_t row = 0;
    for (std::size_t part = 0; part < cut.batches().size(); ++part) {
      const StepBatch& batch = cut.batches()[part];
      EXPECT_EQ(cut.first_row(part), row);
      EXPECT_GE(batch.token_ids.size(), kRows / static_cast<std::size_t>(count));
      EXPECT_LE(batch.token_ids.size(), kRows / static_cast<std::size_t>(count) + 1);
      ASSERT_EQ(batch.positions.size(), batch.token_ids.size());
      std::size_t in_batch = 0;
      for (const StepBatch::Entry& entry : batch.entries) {
        if (next[chunk] == chunks[chunk].tokens) ++chunk;
        const Sequence& sequence = *chunks[chunk].sequence;
        EXPECT_EQ(entry.kv, &sequence.kv);
        EXPECT_EQ(entry.first_row, in_batch);
        EXPECT_EQ(entry.first_position, sequence.computed + next[chunk]);
        EXPECT_GT(entry.rows, 0u);
        for (std::size_t i = 0; i < entry.rows; ++i) {
          EXPECT_EQ(batch.positions[in_batch + i], entry.first_position + i);
          EXPECT_EQ(batch.token_ids[in_batch + i], sequence.tokens[entry.first_position + i]);
        }
        in_batch += entry.rows;
        next[chunk] += entry.rows;
      }
      EXPECT_EQ(in_batch, batch.token_ids.size());
      row += in_batch;
    }
    EXPECT_EQ(row, kRows);
    for (std::size_t i = 0; i < chunks.size(); ++i) EXPECT_EQ(next[i], chunks[i].tokens);
  }
}

TEST_F(MicroBatchesTest, DecodesStayWhole) {
  const std::vector<Chunk> chunks = {Add(7, 1), Add(8, 1), Add(20, 1), Add(3, 1)};
  MicroBatches cut(4, 2);
  cut.Cut(chunks, 2);
  EXPECT_EQ(cut.batches()[0].entries.size(), 2u);
  EXPECT_EQ(cut.batches()[1].entries.size(), 2u);
  EXPECT_EQ(cut.batches()[1].entries[0].kv, &chunks[2].sequence->kv);
}

// A machine whose steps take `seconds(rows, count)`.
class MicroBatchChoiceTest : public testing::Test {
 protected:
  using Timing = std::function<double(std::size_t rows, int count)>;

  void Make(MicroBatchChoice::Options options) {
    choice_.emplace(options, 4096, [this](const MicroBatchDecision& decision) { decisions_.push_back(decision); });
  }
  /// The counts of so many steps.
  std::vector<int> Run(std::size_t rows, std::size_t steps, const Timing& seconds) {
    std::vector<int> counts;
    for (std::size_t i = 0; i < steps; ++i) {
      counts.push_back(choice_->Next(rows));
      choice_->Note(rows, counts.back(), seconds(rows, counts.back()));
    }
    return counts;
  }
  static double OneIsFaster(std::size_t, int count) { return count; }
  static double TwoAreFaster(std::size_t, int count) { return count == 2 ? 1 : 2; }

  std::optional<MicroBatchChoice> choice_;
  std::vector<MicroBatchDecision> decisions_;
};

constexpr std::size_t kTrialSteps = 2 * MicroBatchChoice::kTrials;

TEST_F(MicroBatchChoiceTest, WhatIsAskedForIsTakenAsFarAsThereAreRows) {
  Make({.most = 3});
  EXPECT_EQ(choice_->Next(1), 1);
  EXPECT_EQ(choice_->Next(2), 2);
  EXPECT_THAT(Run(3, 3, OneIsFaster), ElementsAre(3, 3, 3));
  EXPECT_TRUE(decisions_.empty());
}

TEST_F(MicroBatchChoiceTest, TrialsTakeTurnsAndTheFasterIsKept) {
  Make({.most = 2, .measure = true});
  std::vector<int> counts = Run(8, kTrialSteps + 3, TwoAreFaster);
  for (std::size_t i = 0; i < kTrialSteps; ++i) EXPECT_EQ(counts[i], 1 + static_cast<int>(i % 2));
  EXPECT_THAT(std::vector<int>(counts.end() - 3, counts.end()), ElementsAre(2, 2, 2));
  counts = Run(32, kTrialSteps + 3, OneIsFaster);
  EXPECT_THAT(std::vector<int>(counts.end() - 3, counts.end()), ElementsAre(1, 1, 1));
}

TEST_F(MicroBatchChoiceTest, ASizeClassReachesToTheNextPowerOfTwo) {
  Make({.most = 2, .measure = true});
  Run(8, kTrialSteps, TwoAreFaster);
  ASSERT_EQ(decisions_.size(), 1u);
  EXPECT_EQ(decisions_[0].first_rows, 8u);
  EXPECT_EQ(decisions_[0].end_rows, 16u);
  EXPECT_EQ(decisions_[0].count, 2);
  EXPECT_DOUBLE_EQ(decisions_[0].row_seconds[0], 2.0 / 8);
  EXPECT_DOUBLE_EQ(decisions_[0].row_seconds[1], 1.0 / 8);
  EXPECT_EQ(choice_->Next(15), 2);
  EXPECT_EQ(choice_->Next(7), 1) << "the first trial of its class";
  EXPECT_EQ(choice_->Next(16), 1) << "the same";
}

TEST_F(MicroBatchChoiceTest, StepsOfAClassCompareByTheRow) {
  // Trials of two have twice the rows; a row takes them half as long.
  Make({.most = 2, .measure = true});
  for (std::size_t i = 0; i < kTrialSteps; ++i) {
    const int count = choice_->Next(8);
    choice_->Note(count == 1 ? 8 : 15, count, count == 1 ? 1.0 : 1.5);
  }
  EXPECT_EQ(choice_->Next(8), 2);
}

TEST_F(MicroBatchChoiceTest, TwoDisturbedTrialsOfEachDecideNothing) {
  for (const bool two : {false, true}) {
    Make({.most = 2, .measure = true});
    std::size_t step = 0;
    Run(8, kTrialSteps, [&](std::size_t rows, int count) {
      const bool disturbed = step++ < 4;
      return (two ? TwoAreFaster(rows, count) : OneIsFaster(rows, count)) *
             (disturbed && count == (two ? 2 : 1) ? 9 : 1);
    });
    EXPECT_EQ(choice_->Next(8), two ? 2 : 1);
  }
}

TEST_F(MicroBatchChoiceTest, AGainInTheNoiseIsNone) {
  for (const double gain : {0.01, 0.03}) {
    Make({.most = 2, .measure = true});
    Run(8, kTrialSteps, [&](std::size_t, int count) { return count == 2 ? 1 - gain : 1; });
    EXPECT_EQ(choice_->Next(8), gain > MicroBatchChoice::kGain ? 2 : 1);
  }
}

TEST_F(MicroBatchChoiceTest, TheChoiceIsTriedAgainAndOnlyNewsAreTold) {
  Make({.most = 2, .measure = true});
  const std::size_t round = kTrialSteps + MicroBatchChoice::kKept;
  Run(8, round, OneIsFaster);
  Run(8, round, OneIsFaster);
  EXPECT_EQ(decisions_.size(), 1u);
  const std::vector<int> counts = Run(8, round, TwoAreFaster);
  EXPECT_EQ(std::count(counts.begin(), counts.end(), 1), static_cast<int>(MicroBatchChoice::kTrials));
  ASSERT_EQ(decisions_.size(), 2u);
  EXPECT_EQ(decisions_[1].count, 2);
}

TEST_F(MicroBatchChoiceTest, WhatIsDecidedOnceIsNeverTriedAgain) {
  Make({.most = 2, .measure = true});
  Run(8, kTrialSteps, OneIsFaster);
  choice_->DecideOnce();
  EXPECT_TRUE(choice_->Tries(8)) << "what was chosen before is forgotten";
  Run(8, kTrialSteps - 1, TwoAreFaster);
  EXPECT_TRUE(choice_->Tries(8));
  Run(8, 1, TwoAreFaster);
  EXPECT_FALSE(choice_->Tries(8));
  EXPECT_TRUE(choice_->Tries(16)) << "another class";
  EXPECT_THAT(Run(8, 2 * MicroBatchChoice::kKept, OneIsFaster), testing::Each(2));
}

TEST_F(MicroBatchChoiceTest, NothingIsTriedWithoutAChoice) {
  Make({.most = 2});
  EXPECT_FALSE(choice_->Tries(8));
  Make({.most = 2, .measure = true});
  EXPECT_FALSE(choice_->Tries(1));
}

TEST_F(MicroBatchChoiceTest, WhatIsFixedIsTakenAndNothingIsTried) {
  for (const bool measure : {false, true}) {
    Make({.most = 3, .measure = measure});
    for (const int count : {2, 3, 1}) {
      choice_->Fix(count);
      EXPECT_FALSE(choice_->Tries(8));
      EXPECT_THAT(Run(8, 2 * kTrialSteps, TwoAreFaster), testing::Each(count));
      EXPECT_EQ(choice_->Next(1), 1) << "as many as rows";
    }
    EXPECT_TRUE(decisions_.empty());
  }
}

TEST_F(MicroBatchChoiceTest, ASingleRowIsNoTrial) {
  Make({.most = 2, .measure = true});
  EXPECT_THAT(Run(1, 40, TwoAreFaster), testing::Each(1));
  EXPECT_TRUE(decisions_.empty());
}

TEST_F(MicroBatchChoiceTest, MoreThanTwoCanBeMeasured) {
  Make({.most = 4, .measure = true});
  Run(64, 4 * MicroBatchChoice::kTrials, [](std::size_t, int count) { return count == 3 ? 1 : 2; });
  EXPECT_EQ(choice_->Next(64), 3);
}

}  // namespace
}  // namespace moe
