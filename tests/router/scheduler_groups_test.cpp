// The scheduler over caches of several groups of layers: windows, whose pages come back while a sequence runs, and an
// encoder, whose sources have rows of a step of their own.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/router/scheduler_harness.h"

namespace moe {
namespace {

AttentionSpec Attention(int window = 0, int chunk = 0) {
  return {.num_heads = 1, .num_kv_heads = 1, .head_dim = 1, .window = window, .chunk = chunk};
}

// Every layer sees a window, as Mistral's.
ModelConfig WindowConfig(int window) {
  ModelConfig config = TinyConfig();
  config.layers = {{.attention = Attention(window)}, {.attention = Attention(window)}};
  return config;
}

// Layers with a window beside layers that see everything, as gpt-oss's; a chunk as Llama 4's.
ModelConfig MixedConfig() {
  ModelConfig config = TinyConfig();
  config.layers = {{.attention = Attention(64)}, {.attention = Attention()}, {.attention = Attention(0, 64)}};
  return config;
}

ModelConfig EncoderConfig() {
  ModelConfig config = TinyConfig();
  AttentionSpec encoder = Attention();
  encoder.causal = false;
  config.encoder_layers = 2;
  config.layers = {{.attention = encoder}, {.attention = encoder}};
  config.layers.push_back({.attention = Attention(), .cross_attention = encoder});
  config.decoder_start_token = 0;
  return config;
}

constexpr int kWindow = 64;

class WindowScheduler : public SchedulerTest {
 protected:
  WindowScheduler() : SchedulerTest(WindowConfig(kWindow)) {}
};

// A chunk of 16 rows sees 79 positions at most: PagesFor(79) pages and one for where they begin.
constexpr std::size_t kLive = (kWindow - 1 + 16 + kPage - 1) / kPage + 1;

TEST_F(WindowScheduler, ASequenceLongerThanThePoolRuns) {
  Make({.max_sequences = 2, .max_step_tokens = 16}, 8);
  ASSERT_EQ(cache_->capacity_tokens(), 2 * kLive * kPage) << "what two sequences can hold, though 8 pages were allowed";
  Sequence* sequence = Enqueue({.prompt = 1000, .new_tokens = 500});
  ASSERT_EQ(Admit(), std::vector{sequence});
  while (!Complete(*sequence)) {
    Step();
    ASSERT_LE(Held(*sequence, 0), kLive);
    ASSERT_EQ(Held(*sequence, 0) + Reserved(*sequence, 0), kLive) << "what it gives back it may take again";
  }
  EXPECT_GT(sequence->kv.groups[0].first, 40u) << "1,499 positions, of which the last 79 are seen";
  RetireComplete();
  EXPECT_EQ(cache_->used_tokens(), 0u);
}

TEST_F(WindowScheduler, PagesOutOfTheWindowServeTheSameSequenceAgain) {
  Make({.max_sequences = 1, .max_step_tokens = 16}, 100);
  Sequence* sequence = Enqueue({.prompt = 2, .new_tokens = 2000});
  Admit();
  while (!Complete(*sequence)) Step();
  const std::vector<PageId>& pages = sequence->kv.groups[0].pages;
  ASSERT_EQ(pages.size(), PagesFor(2001));
  for (const PageId page : pages) EXPECT_LT(page, kLive) << "of a pool of so many";
}

TEST_F(WindowScheduler, AdmissionCountsWhatCanBeHeldAtATimeNotTheWholeLength) {
  // Three times what one sequence holds, and no more.
  Make({.max_sequences = 9, .max_step_tokens = 16}, 3 * kLive);
  std::vector<Sequence*> sequences;
  for (int i = 0; i < 4; ++i) sequences.push_back(Enqueue({.prompt = 3000, .new_tokens = 3}));
  EXPECT_EQ(Admit(), std::vector(sequences.begin(), sequences.begin() + 3));
  while (!Complete(*sequences[0])) Step();
  RetireComplete();
  EXPECT_EQ(Admit(), std::vector{sequences[3]});
}

TEST_F(WindowScheduler, AShortSequenceReservesItsOwnPagesOnly) {
  Make({.max_sequences = 9, .max_step_tokens = 16}, kLive);
  Sequence* one_page = Enqueue({.prompt = 10, .new_tokens = 5});
  Sequence* others = Enqueue({.prompt = 10 + (kLive - 2) * kPage, .new_tokens = 1});
  EXPECT_EQ(Admit(), (std::vector{one_page, others}));
  EXPECT_EQ(Reserved(*one_page, 0), 1u);
}

TEST_F(WindowScheduler, NothingFitsAPoolSmallerThanTheWindow) {
  Make({.max_sequences = 2, .max_step_tokens = 16}, kLive - 1);
  EXPECT_FALSE(scheduler_->Fits(Request({.prompt = 1000})));
  EXPECT_TRUE(scheduler_->Fits(Request({.prompt = (kLive - 1) * kPage}))) << "short enough to be held whole";
}

class MixedScheduler : public SchedulerTest {
 protected:
  MixedScheduler() : SchedulerTest(MixedConfig()) {}
};

TEST_F(MixedScheduler, AdmissionNeedsPagesOfEveryGroup) {
  Make({.max_sequences = 9, .max_step_tokens = 16}, 20);
  Sequence* long_one = Enqueue({.prompt = 14 * kPage});  // 14 pages of 20 where all is kept; windows: 4 each
  Sequence* large = Enqueue({.prompt = 7 * kPage});      // 7: windows have room, the unlimited layers have not
  EXPECT_EQ(Admit(), std::vector{long_one});
  EXPECT_EQ(Reserved(*long_one, 0), 14u);
  EXPECT_EQ(Reserved(*long_one, 1), kLive);
  EXPECT_EQ(Reserved(*long_one, 2), kLive);
  EXPECT_EQ(Reserved(*large, 0), 0u) << "all groups or none";
  EXPECT_EQ(Reserved(*large, 1), 0u);
  while (!Complete(*long_one)) Step();
  EXPECT_EQ(Held(*long_one, 0), 14u) << "everything is still seen";
  EXPECT_LE(Held(*long_one, 1), kLive);
  EXPECT_LE(Held(*long_one, 2), 2u) << "the block of 64 positions that the last row is in";
  RetireComplete();
  EXPECT_EQ(Admit(), std::vector{large});
}

TEST_F(MixedScheduler, FitsIsDecidedByTheGroupThatHasTheLeastRoom) {
  Make({.max_sequences = 2, .max_step_tokens = 16}, 20);
  EXPECT_TRUE(scheduler_->Fits(Request({.prompt = 20 * kPage})));
  EXPECT_FALSE(scheduler_->Fits(Request({.prompt = 20 * kPage + 1})));
}

class EncoderScheduler : public SchedulerTest {
 protected:
  EncoderScheduler() : SchedulerTest(EncoderConfig()) {}
};

TEST_F(EncoderScheduler, SourcesAreEncodedWholeAndBeforeTheDecodersRows) {
  Make({.max_sequences = 4, .max_step_tokens = 32, .prefill_chunk = 3}, 100);
  Sequence* decoding = Enqueue({.new_tokens = 50, .source = 9});
  Admit();
  Step();
  EXPECT_EQ(encoded_, std::vector{decoding});
  EXPECT_EQ(decoding->computed, 0u) << "its decoder begins in the next step";
  Sequence* next = Enqueue({.new_tokens = 50, .source = 30});
  Admit();
  const std::span<const Chunk> chunks = scheduler_->Schedule();
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_TRUE(chunks[0].encode);
  EXPECT_EQ(chunks[0].sequence, next);
  EXPECT_EQ(chunks[0].tokens, 30u) << "no prefill chunk cuts a source";
  EXPECT_FALSE(chunks[1].encode);
  EXPECT_EQ(chunks[1].sequence, decoding);
}

TEST_F(EncoderScheduler, TheEncodersRowsAreNotTakenFromTheDecoders) {
  Make({.max_sequences = 12, .max_step_tokens = 8}, 200);
  std::vector<Sequence*> decodes;
  for (int i = 0; i < 8; ++i) decodes.push_back(Enqueue({.new_tokens = 200, .source = 1}));
  Admit();
  ASSERT_TRUE(StepUntilDecoding(decodes));
  Sequence* late = Enqueue({.new_tokens = 200, .source = 8});
  Admit();
  const std::map<Sequence*, std::size_t> served = Step();
  EXPECT_EQ(encoded_, std::vector{late});
  EXPECT_EQ(served.size(), 8u) << "8 rows of the encoder and 8 of the decoder";
}

TEST_F(EncoderScheduler, SourcesThatDoNotFitAStepWaitInTheirOrder) {
  Make({.max_sequences = 8, .max_step_tokens = 16}, 100);
  Sequence* first = Enqueue({.new_tokens = 9, .source = 10});
  Sequence* second = Enqueue({.new_tokens = 9, .source = 7});
  Sequence* small = Enqueue({.new_tokens = 9, .source = 1});
  Sequence* last = Enqueue({.new_tokens = 9, .source = 16});
  Admit();
  Step();
  EXPECT_EQ(encoded_, std::vector{first}) << "the small one would fit, and must not overtake";
  Step();
  EXPECT_EQ(encoded_, (std::vector{second, small}));
  Step();
  EXPECT_EQ(encoded_, std::vector{last});
  Step();
  EXPECT_TRUE(encoded_.empty());
}

TEST_F(EncoderScheduler, ASourceLongerThanAStepDoesNotFit) {
  Make({.max_sequences = 8, .max_step_tokens = 16}, 100);
  EXPECT_TRUE(scheduler_->Fits(Request({.source = 16})));
  EXPECT_FALSE(scheduler_->Fits(Request({.source = 17})));
  EXPECT_FALSE(scheduler_->Fits(Request({.new_tokens = 100 * kPage + 1, .source = 1})));
}

TEST_F(EncoderScheduler, EncodingGivesBackWhatOnlyTheEncoderNeeded) {
  // Groups: the decoder's tokens, then the source as cross-attention and as the encoder sees it.
  Make({.max_sequences = 1, .max_step_tokens = 2 * kPage}, 4);
  ASSERT_EQ(cache_->num_groups(), 3u);
  Sequence* sequence = Enqueue({.new_tokens = 3, .source = 2 * kPage});
  Admit();
  EXPECT_EQ(Reserved(*sequence, 0), 1u);
  EXPECT_EQ(Reserved(*sequence, 1), 2u);
  EXPECT_EQ(Reserved(*sequence, 2), 2u);
  (void)scheduler_->Schedule();
  EXPECT_EQ(Held(*sequence, 1), 2u);
  EXPECT_EQ(Held(*sequence, 2), 2u);
  EXPECT_EQ(Held(*sequence, 0), 0u) << "the decoder has not begun";
  cache_->ReleaseTransient(sequence->kv);
  const KvGroup transient = KvGroups(config_)[1].transient ? KvGroups(config_)[1] : KvGroups(config_)[2];
  for (std::size_t g = 1; g < 3; ++g)
    EXPECT_EQ(Held(*sequence, g), KvGroups(config_)[g] == transient ? 0u : 2u) << "group " << g;
}

// Sequences of all sizes over both kinds of groups: everyone ends, nobody starves, nothing leaks.
struct SimulationCase {
  const char* name = "";
  ModelConfig config;
  SchedulerLimits limits;
};

class GroupSimulation : public SchedulerTest, public testing::WithParamInterface<SimulationCase> {
 protected:
  GroupSimulation() : SchedulerTest(GetParam().config) {}

  Want Draw() {
    const bool encoder = config_.has_encoder();
    const std::size_t prompt = 1 + random_() % (random_() % 10 == 0 ? 500 : 40);
    return {.prompt = encoder ? 1 : prompt,
            .new_tokens = static_cast<std::uint32_t>(random_() % (random_() % 10 == 0 ? 200 : 20)),
            .source = encoder ? 1 + random_() % limits_.max_step_tokens : 0};
  }
  /// How many such sequences the cache takes at a time, up to 100; they are gone again after.
  std::size_t CountReservations(KvCache& cache, const KvDemand& demand) const {
    std::vector<KvPages> held(100, KvCache::MakePages(config_, demand));
    std::size_t count = 0;
    while (count < held.size() && cache.Reserve(demand, held[count])) ++count;
    for (std::size_t i = 0; i < count; ++i) cache.Release(held[i]);
    return count;
  }
  std::mt19937_64 random_{20250211};
};

TEST_P(GroupSimulation, EverySequenceCompletesAndNothingLeaks) {
  constexpr std::size_t kSequences = 1000;
  Make(GetParam().limits, 24);
  std::size_t queued = 0;
  std::size_t ended = 0;
  std::map<Sequence*, std::size_t> idle;
  while (ended < kSequences) {
    for (std::size_t n = random_() % 3; n > 0 && queued < kSequences; --n, ++queued) Enqueue(Draw());
    for (Sequence* sequence : Admit()) idle[sequence] = 0;
    for (auto& [sequence, steps] : idle) ++steps;
    for (const auto& [sequence, tokens] : Step()) idle[sequence] = 0;
    for (Sequence* sequence : encoded_) idle[sequence] = 0;
    for (const auto& [sequence, steps] : idle) ASSERT_LT(steps, limits_.max_sequences);
    Sequence* cancelled = idle.empty() || random_() % 20 > 0 ? nullptr : idle.begin()->first;
    scheduler_->Retire([&](Sequence& sequence) {
      const bool done = Complete(sequence) || &sequence == cancelled;
      if (done) ended += idle.erase(&sequence);
      return done;
    });
  }
  EXPECT_EQ(cache_->used_tokens(), 0u);
  // A page that leaked would be missing here.
  KvCache fresh = NewCache(24);
  for (const KvDemand& demand : {KvDemand{.tokens = 1}, KvDemand{.source = 1}, KvDemand{.tokens = 24 * kPage}}) {
    EXPECT_EQ(CountReservations(*cache_, demand), CountReservations(fresh, demand));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, GroupSimulation,
    testing::Values(SimulationCase{"Window", WindowConfig(40), {.max_sequences = 8, .max_step_tokens = 64}},
                    SimulationCase{"WindowByChunks",
                                   WindowConfig(33),
                                   {.max_sequences = 5, .max_step_tokens = 7, .prefill_chunk = 3}},
                    SimulationCase{"Mixed", MixedConfig(), {.max_sequences = 8, .max_step_tokens = 16}},
                    SimulationCase{"Encoder", EncoderConfig(), {.max_sequences = 8, .max_step_tokens = 64}},
                    SimulationCase{"NarrowEncoder", EncoderConfig(), {.max_sequences = 6, .max_step_tokens = 4}}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace moe
