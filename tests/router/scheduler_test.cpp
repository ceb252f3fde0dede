#include "router/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <vector>

#include "core/text.h"
#include "tests/router/scheduler_harness.h"

namespace moe {
namespace {

TEST_F(SchedulerTest, AdmissionReservesEveryPageThatASequenceCanNeed) {
  Make({.max_sequences = 4, .max_step_tokens = 8}, 5);
  // The last generated token is never computed: 2 pages exactly, then one position more.
  Sequence* two_pages = Enqueue({.prompt = kPage, .new_tokens = kPage + 1});
  Sequence* three_pages = Enqueue({.prompt = kPage, .new_tokens = kPage + 2});
  EXPECT_EQ(Admit(), (std::vector{two_pages, three_pages}));
  EXPECT_EQ(Reserved(*two_pages, 0), 2u);
  EXPECT_EQ(Reserved(*three_pages, 0), 3u);
  EXPECT_EQ(cache_->used_tokens(), cache_->capacity_tokens()) << "promised, though nothing is computed";
  while (!Complete(*two_pages)) Step();
  const std::vector<PageId>& two = two_pages->kv.groups[0].pages;
  const std::vector<PageId>& three = three_pages->kv.groups[0].pages;
  EXPECT_EQ(two.size(), 2u);
  std::set<PageId> distinct(two.begin(), two.end());
  distinct.insert(three.begin(), three.end());
  EXPECT_EQ(distinct.size(), two.size() + three.size()) << "a page was given twice";
}

TEST_F(SchedulerTest, AdmissionIsInTheOrderOfArrivalAndStopsAtMaxSequences) {
  Make({.max_sequences = 2, .max_step_tokens = 8}, 100);
  Sequence* first = Enqueue({});
  Sequence* second = Enqueue({});
  Sequence* third = Enqueue({});
  EXPECT_EQ(Admit(), (std::vector{first, second}));
  EXPECT_EQ(scheduler_->running(), 2u);
  EXPECT_EQ(scheduler_->waiting(), 1u);
  scheduler_->Retire([&](Sequence& sequence) { return &sequence == first; });
  EXPECT_EQ(Admit(), std::vector{third});
}

TEST_F(SchedulerTest, ASmallRequestDoesNotOvertakeALargeOneThatWaitsForPages) {
  Make({.max_sequences = 8, .max_step_tokens = 8}, 10);
  Sequence* running = Enqueue({.prompt = kPage, .new_tokens = 3});
  EXPECT_EQ(Admit(), std::vector{running});
  Sequence* large = Enqueue({.prompt = 10 * kPage, .new_tokens = 1});
  Enqueue({.prompt = 1, .new_tokens = 1});
  EXPECT_TRUE(Admit().empty()) << "9 pages are free and 10 are wanted; the small one must wait behind";
  while (!Complete(*running)) Step();
  RetireComplete();
  EXPECT_EQ(Admit(), std::vector{large});
  EXPECT_EQ(cache_->used_tokens(), cache_->capacity_tokens());
}

TEST_F(SchedulerTest, FitsIsDecidedByThePagesOfTheWholeCache) {
  Make({.max_sequences = 8, .max_step_tokens = 8}, 3);
  const auto request = [](std::size_t prompt, std::uint32_t new_tokens) {
    return SequenceRequest{.prompt = std::vector<std::uint32_t>(prompt), .max_new_tokens = new_tokens};
  };
  EXPECT_TRUE(scheduler_->Fits(request(3 * kPage, 1)));
  EXPECT_FALSE(scheduler_->Fits(request(3 * kPage, 2)));
  EXPECT_FALSE(scheduler_->Fits(request(3 * kPage + 1, 1)));
}

TEST_F(SchedulerTest, DecodesGetOneTokenEveryStepWhileALongPromptAdvancesByChunks) {
  Make({.max_sequences = 4, .max_step_tokens = 16}, 100);
  std::vector<Sequence*> decodes;
  for (int i = 0; i < 3; ++i) decodes.push_back(Enqueue({.prompt = 1, .new_tokens = 100}));
  Admit();
  Step();
  Sequence* prompt = Enqueue({.prompt = 500, .new_tokens = 2});
  Admit();
  while (prompt->generated() == 0) {
    const std::size_t left = prompt->remaining();
    std::map<Sequence*, std::size_t> served = Step();
    for (Sequence* decode : decodes) EXPECT_EQ(served[decode], 1u);
    EXPECT_EQ(served[prompt], std::min<std::size_t>(left, 13)) << "all that the decodes leave";
  }
}

TEST_F(SchedulerTest, AStepsRowsAreDecodesFirst) {
  Make({.max_sequences = 3, .max_step_tokens = 16}, 100);
  Sequence* prompt = Enqueue({.prompt = 200, .new_tokens = 2});
  Sequence* decode = Enqueue({.prompt = 1, .new_tokens = 50});
  Admit();
  ASSERT_TRUE(StepUntilDecoding({decode}));
  const auto chunks = scheduler_->Schedule();
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_EQ(chunks[0].sequence, decode);
  EXPECT_EQ(chunks[1].sequence, prompt);
}

TEST_F(SchedulerTest, OneTokenIsLeftForAPromptWhenDecodesFillTheStep) {
  Make({.max_sequences = 9, .max_step_tokens = 4}, 200);
  std::vector<Sequence*> decodes;
  for (int i = 0; i < 8; ++i) decodes.push_back(Enqueue({.prompt = 1, .new_tokens = 200}));
  Admit();
  ASSERT_TRUE(StepUntilDecoding(decodes));
  Sequence* prompt = Enqueue({.prompt = 10, .new_tokens = 1});
  Admit();
  for (int step = 0; step < 10; ++step) {
    std::map<Sequence*, std::size_t> served = Step();
    EXPECT_EQ(served[prompt], 1u);
    EXPECT_EQ(served.size(), 4u);
  }
  EXPECT_TRUE(Complete(*prompt));
  RetireComplete();
  EXPECT_EQ(Step().size(), 4u) << "without a prompt the decodes have the whole step";
}

TEST_F(SchedulerTest, DecodesThatDoNotFitAStepTakeTurnsEvenly) {
  Make({.max_sequences = 7, .max_step_tokens = 3}, 200);
  std::vector<Sequence*> decodes;
  for (int i = 0; i < 7; ++i) decodes.push_back(Enqueue({.prompt = 1, .new_tokens = 500}));
  Admit();
  ASSERT_TRUE(StepUntilDecoding(decodes));
  std::map<Sequence*, std::size_t> total;
  for (int step = 0; step < 70; ++step)
    for (const auto& [sequence, tokens] : Step()) total[sequence] += tokens;
  for (Sequence* decode : decodes) EXPECT_EQ(total[decode], 30u) << "70 steps of 3 over 7 sequences";
}

TEST_F(SchedulerTest, LongPromptsAdvanceInTurn) {
  Make({.max_sequences = 5, .max_step_tokens = 32}, 1000);
  std::vector<Sequence*> prompts;
  for (int i = 0; i < 5; ++i) prompts.push_back(Enqueue({.prompt = 1000, .new_tokens = 1}));
  Admit();
  for (int round = 0; round < 6; ++round) {
    std::map<Sequence*, std::size_t> total;
    for (int step = 0; step < 5; ++step)
      for (const auto& [sequence, tokens] : Step()) total[sequence] += tokens;
    for (Sequence* prompt : prompts) EXPECT_EQ(total[prompt], 32u) << "one full step in every five";
  }
}

TEST_F(SchedulerTest, AChunkLimitLetsSeveralPromptsShareAStep) {
  Make({.max_sequences = 8, .max_step_tokens = 32, .prefill_chunk = 7}, 1000);
  std::vector<Sequence*> prompts;
  for (int i = 0; i < 5; ++i) prompts.push_back(Enqueue({.prompt = 100, .new_tokens = 1}));
  Admit();
  std::map<Sequence*, std::size_t> served = Step();
  for (int i = 0; i < 4; ++i) EXPECT_EQ(served[prompts[static_cast<std::size_t>(i)]], 7u);
  EXPECT_EQ(served[prompts[4]], 4u) << "what is left of 32";
}

TEST_F(SchedulerTest, NobodyIsOvertakenForEverByThoseThatComeAndGo) {
  // Waves of short scores come and retire so that the set that runs shrinks and grows under the rotation.
  constexpr std::size_t kMax = 10;
  for (std::size_t wave = 1; wave < kMax; ++wave) {
    for (std::size_t pause = 1; pause < kMax; ++pause) {
      Make({.max_sequences = kMax, .max_step_tokens = 4}, 1000);
      Sequence* patient = Enqueue({.prompt = 400, .new_tokens = 1});
      std::size_t waited = 0;
      for (std::size_t step = 0; !Complete(*patient); ++step) {
        if (step % pause == 0)
          for (std::size_t i = scheduler_->waiting(); i < wave; ++i)
            Enqueue({.prompt = i % 2 == 0 ? 4u : 1u, .new_tokens = static_cast<std::uint32_t>(i % 3 * 4)});
        Admit();
        waited = Step().count(patient) > 0 ? 0 : waited + 1;
        ASSERT_LT(waited, kMax) << "wave " << wave << ", pause " << pause << ", step " << step;
        if (!Complete(*patient)) RetireComplete();
      }
    }
  }
}

TEST_F(SchedulerTest, RetireFreesPagesOnceAndTakesOutWaitingOnesToo) {
  Make({.max_sequences = 2, .max_step_tokens = 8}, 8);
  Sequence* gone = Enqueue({.prompt = 3 * kPage, .new_tokens = 1});
  Sequence* stays = Enqueue({.prompt = 2 * kPage, .new_tokens = 1});
  Sequence* waiting = Enqueue({.prompt = kPage, .new_tokens = 1});
  Admit();
  EXPECT_EQ(cache_->used_tokens(), 5 * kPage);
  int asked = 0;
  scheduler_->Retire([&](Sequence& sequence) {
    ++asked;
    return &sequence == gone || &sequence == waiting;
  });
  EXPECT_EQ(asked, 3);
  EXPECT_EQ(cache_->used_tokens(), 2 * kPage);
  EXPECT_EQ(scheduler_->running(), 1u);
  EXPECT_EQ(scheduler_->waiting(), 0u);
  scheduler_->Retire([&](Sequence& sequence) { return &sequence == stays; });
  scheduler_->Retire([](Sequence&) { return true; });
  EXPECT_EQ(cache_->used_tokens(), 0u);
}

// Thousands of sequences of all sizes that arrive, finish and are cancelled at random.
class SchedulerSimulation : public SchedulerTest, public testing::WithParamInterface<SchedulerLimits> {};

TEST_P(SchedulerSimulation, EverySequenceCompletesAndAdvancesOftenEnough) {
  constexpr std::size_t kSequences = 3000;
  constexpr std::size_t kPages = 40;
  Make(GetParam(), kPages);
  std::mt19937_64 random(20240607);
  const auto below = [&](std::uint64_t limit) { return static_cast<std::size_t>(random() % limit); };
  // A step serves at least one prompt if there is any, and at least one decode if there is any; those served go to the
  // end of their line. So nobody waits for more steps than there can be others.
  const std::size_t most_steps = limits_.max_sequences;
  std::map<Sequence*, std::size_t> idle_steps;  // of those that run
  std::vector<Sequence*> order;                 // of arrival
  std::size_t next_admitted = 0;
  std::size_t ended = 0;
  while (ended < kSequences) {
    for (std::size_t n = below(4); n > 0 && order.size() < kSequences; --n) {
      const std::size_t kind = below(10);
      const std::size_t prompt = kind == 0 ? 1 + below(kPages * kPage - 20) : 1 + below(kind < 4 ? 200 : 12);
      order.push_back(Enqueue({.prompt = prompt, .new_tokens = static_cast<std::uint32_t>(below(20))}));
    }
    for (Sequence* sequence : Admit()) {
      ASSERT_EQ(sequence, order[next_admitted++]) << "admitted out of turn";
      idle_steps[sequence] = 0;
    }
    ASSERT_LE(scheduler_->running(), limits_.max_sequences);
    for (auto& [sequence, idle] : idle_steps) ++idle;
    for (const auto& [sequence, tokens] : Step()) idle_steps[sequence] = 0;
    for (const auto& [sequence, idle] : idle_steps) ASSERT_LT(idle, most_steps);

    Sequence* cancelled = idle_steps.empty() || below(20) > 0 ? nullptr : idle_steps.begin()->first;
    std::size_t pages = 0;
    scheduler_->Retire([&](Sequence& sequence) {
      if (Complete(sequence) || &sequence == cancelled) {
        idle_steps.erase(&sequence);
        ++ended;
        return true;
      }
      pages += Held(sequence, 0) + Reserved(sequence, 0);
      return false;
    });
    ASSERT_EQ(cache_->used_tokens(), pages * kPage);
  }
  EXPECT_EQ(next_admitted, kSequences);
  EXPECT_EQ(scheduler_->running() + scheduler_->waiting(), 0u);
  EXPECT_EQ(cache_->used_tokens(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Limits, SchedulerSimulation,
                         testing::Values(SchedulerLimits{.max_sequences = 8, .max_step_tokens = 64},
                                         SchedulerLimits{.max_sequences = 8, .max_step_tokens = 64, .prefill_chunk = 1},
                                         SchedulerLimits{.max_sequences = 8, .max_step_tokens = 64, .prefill_chunk = 7},
                                         SchedulerLimits{.max_sequences = 12, .max_step_tokens = 2},
                                         SchedulerLimits{.max_sequences = 12, .max_step_tokens = 5, .prefill_chunk = 3},
                                         SchedulerLimits{.max_sequences = 1, .max_step_tokens = 16}),
                         [](const auto& test) {
                           return Cat("sequences", test.param.max_sequences, "_step", test.param.max_step_tokens,
                                      "_chunk", test.param.prefill_chunk);
                         });

}  // namespace
}  // namespace moe
