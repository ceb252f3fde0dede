#include "model/kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "tests/model/kv_configs.h"

namespace moe {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::Not;

constexpr std::size_t kFloatPage = kPageTokens * sizeof(float);

// Groups and plans.

TEST(KvGroups, LayersOfOneKindShareAGroup) {
  EXPECT_THAT(KvGroups(Plain()), ElementsAre(KvGroup{}));
  EXPECT_THAT(KvGroups(Latent()), ElementsAre(KvGroup{}));
  EXPECT_THAT(KvGroups(Windowed(8)), ElementsAre(KvGroup{.window = 8}));
}

TEST(KvGroups, TheUnlimitedOneComesFirst) {
  EXPECT_THAT(KvGroups(Alternating(8, 0)), ElementsAre(KvGroup{}, KvGroup{.window = 8}));
  EXPECT_THAT(KvGroups(Alternating(0, 64)), ElementsAre(KvGroup{}, KvGroup{.chunk = 64}));
  ModelConfig three = Alternating(8, 0);
  three.layers.push_back({.attention = Heads(16, 0)});
  EXPECT_THAT(KvGroups(three), ElementsAre(KvGroup{}, KvGroup{.window = 8}, KvGroup{.window = 16}));
}

TEST(KvGroups, OfAnEncoderFollowTheDecoders) {
  EXPECT_THAT(KvGroups(EncoderDecoder()),
              ElementsAre(KvGroup{}, KvGroup{.source = true, .transient = true}, KvGroup{.source = true}));
}

TEST(KvGroups, SeeWhatTheirLayersSee) {
  EXPECT_EQ(KvGroup{}.FirstVisible(1000), 0u);
  EXPECT_EQ(KvGroup{.window = 8}.FirstVisible(7), 0u);
  EXPECT_EQ(KvGroup{.window = 8}.FirstVisible(8), 1u) << "itself and the 7 before it";
  EXPECT_EQ(KvGroup{.chunk = 8}.FirstVisible(7), 0u);
  EXPECT_EQ(KvGroup{.chunk = 8}.FirstVisible(8), 8u);
  EXPECT_EQ(KvGroup{.chunk = 8}.FirstVisible(23), 16u);
}

TEST(PagesFor, RoundsUp) {
  EXPECT_EQ(PagesFor(0), 0u);
  EXPECT_EQ(PagesFor(1), 1u);
  EXPECT_EQ(PagesFor(kPageTokens), 1u);
  EXPECT_EQ(PagesFor(kPageTokens + 1), 2u);
  EXPECT_EQ(PagesFor(100 * kPageTokens), 100u);
}

constexpr KvLimits kLimits = {.tokens = 1000, .max_sequences = 3, .max_step_tokens = 100, .max_chunk = 40};

TEST(KvPlan, HasRoomForAllTokens) {
  const KvPlan plan = PlanKv(Plain(), kLimits);
  EXPECT_THAT(plan.pages, ElementsAre(32)) << "1000 tokens in pages of 32";
  // Keys and values of 2 heads of 24 and 3 of 10.
  EXPECT_EQ(plan.bytes, 32 * 2 * (2 * 24 + 3 * 10) * kFloatPage);
  EXPECT_EQ(plan.max_chunk, 40u);
  EXPECT_THAT(PlanKv(Plain(), {.tokens = 1, .max_sequences = 1, .max_step_tokens = 1, .max_chunk = 1}).pages,
              ElementsAre(1));
}

TEST(KvPlan, OfBf16TakesHalfTheBytes) {
  KvLimits limits = kLimits;
  limits.type = KvType::kBf16;
  for (const ModelConfig& config : {Plain(), Latent(), Windowed(8), Alternating(8, 0), EncoderDecoder()}) {
    const KvPlan wide = PlanKv(config, kLimits);
    const KvPlan narrow = PlanKv(config, limits);
    EXPECT_EQ(narrow.type, KvType::kBf16);
    EXPECT_EQ(narrow.pages, wide.pages);
    EXPECT_EQ(2 * narrow.bytes, wide.bytes);
  }
}

TEST(KvPlan, OfLatentAttentionHoldsTheLatent) {
  EXPECT_EQ(PlanKv(Latent(), kLimits).bytes, 32 * 2 * (12 + 4) * kFloatPage) << "not 8 heads of 10 and 5";
}

TEST(KvPlan, OfLimitedLayersHoldsWhatSequencesStillSee) {
  // A step of 40 rows sees 7 positions more: 47 touch 3 pages at most.
  EXPECT_THAT(PlanKv(Windowed(8), kLimits).pages, ElementsAre(3 * 3));
  EXPECT_THAT(PlanKv(Alternating(8, 0), kLimits).pages, ElementsAre(32, 9));
  EXPECT_EQ(PlanKv(Alternating(8, 0), kLimits).bytes, (32 + 9) * 2 * 2 * 4 * kFloatPage);
  EXPECT_THAT(PlanKv(Alternating(0, 64), kLimits).pages, ElementsAre(32, 5 * 3)) << "103 positions";
  EXPECT_THAT(PlanKv(Alternating(4096, 0), kLimits).pages, ElementsAre(32, 32)) << "never more than all tokens";
}

TEST(KvPlan, OfAnEncoderHoldsOneStepOfIt) {
  const KvPlan plan = PlanKv(EncoderDecoder(), kLimits);
  // 100 rows of up to 3 sequences: 4 pages, and one more for each that ends inside a page.
  EXPECT_THAT(plan.pages, ElementsAre(32, 7, 32));
  const std::size_t decoder = 3 * 2 * 2 * 4;
  const std::size_t widest_encoder_layer = 2 * 3 * 4;
  EXPECT_EQ(plan.bytes, (32 * decoder + 7 * widest_encoder_layer + 32 * decoder) * kFloatPage);
}

TEST(KvPlan, OfMoreBytesThanCanBeCountedHasTheMostThatCan) {
  KvLimits limits = kLimits;
  limits.tokens = std::size_t{1} << 58;
  // 2^53 pages of 19,968 bytes.
  EXPECT_EQ(PlanKv(Plain(), limits).bytes, std::numeric_limits<std::uint64_t>::max());
  limits.tokens = std::size_t{1} << 50;
  EXPECT_EQ(PlanKv(Plain(), limits).bytes, (std::uint64_t{1} << 45) * 19'968);
}

TEST(KvCache, NeedsWhatASequenceHoldsAtATime) {
  const auto needed = [](const ModelConfig& config, const KvDemand& demand) {
    KvCache cache(config, PlanKv(config, kLimits));
    std::vector<std::size_t> pages;
    for (const KvPages::Group& group : Reserved(config, cache, demand).groups) pages.push_back(group.reserved);
    return pages;
  };
  EXPECT_THAT(needed(Plain(), {.tokens = 65}), ElementsAre(3));
  EXPECT_THAT(needed(Windowed(8), {.tokens = 1'000'000}), ElementsAre(3));
  EXPECT_THAT(needed(Windowed(8), {.tokens = 33}), ElementsAre(2)) << "shorter than what a window may touch";
  EXPECT_THAT(needed(Alternating(0, 64), {.tokens = 640}), ElementsAre(20, 5));
  EXPECT_THAT(needed(EncoderDecoder(), {.tokens = 65, .source = 20}), ElementsAre(3, 1, 1));
}

TEST(KvCache, TakesWindowedSequencesLongerThanItself) {
  const ModelConfig config = Windowed(8);
  const KvCache cache(config, {.pages = {2}, .max_chunk = 1});
  EXPECT_TRUE(cache.Fits({.tokens = 1'000'000}));
  const KvCache full(Plain(), {.pages = {2}, .max_chunk = 1});
  EXPECT_TRUE(full.Fits({.tokens = 64}));
  EXPECT_FALSE(full.Fits({.tokens = 65}));
}

// Reservations.

TEST(KvCache, CountsWhatIsHeldOrReserved) {
  const ModelConfig config = Plain();
  KvCache cache(config, {.pages = {3}, .max_chunk = 64});
  EXPECT_EQ(cache.capacity_tokens(), 3 * kPageTokens);
  EXPECT_EQ(cache.used_tokens(), 0u);
  KvPages first = Reserved(config, cache, {.tokens = 40});
  EXPECT_EQ(cache.used_tokens(), 2 * kPageTokens);
  cache.ExtendTokens(0, 10, first);
  EXPECT_EQ(cache.used_tokens(), 2 * kPageTokens) << "taking what was reserved takes no more";
  KvPages second = Reserved(config, cache, {.tokens = 1});
  EXPECT_EQ(cache.used_tokens(), 3 * kPageTokens);
  cache.Release(first);
  EXPECT_EQ(cache.used_tokens(), kPageTokens) << "its page and its reservation";
  cache.Release(second);
  EXPECT_EQ(cache.used_tokens(), 0u);
}

TEST(KvCache, ReservesAllGroupsOrNone) {
  const ModelConfig config = Alternating(8, 0);
  KvCache cache(config, {.pages = {10, 3}, .max_chunk = 1});
  KvPages first = Reserved(config, cache, {.tokens = 100});  // 4 and 2 pages
  KvPages second = KvCache::MakePages(config, {.tokens = 100});
  EXPECT_FALSE(cache.Reserve({.tokens = 100}, second)) << "one page of the window's group is left";
  EXPECT_EQ(cache.used_tokens(), 4 * kPageTokens) << "and nothing of the other";
  EXPECT_EQ(second.groups[0].reserved, 0u);
  EXPECT_TRUE(cache.Reserve({.tokens = 32}, second));
  cache.Release(first);
  cache.Release(second);
  (void)Reserved(config, cache, {.tokens = 320});
}

TEST(KvCache, MakesListsThatDoNotGrow) {
  const ModelConfig config = EncoderDecoder();
  KvCache cache(config, PlanKv(config, kLimits));
  const KvDemand demand{.tokens = 200, .source = 70};
  KvPages pages = Reserved(config, cache, demand);
  std::vector<const PageId*> before;
  for (KvPages::Group& group : pages.groups) before.push_back(group.pages.data());
  cache.ExtendSource(70, pages);
  for (std::size_t at = 0; at < 200; at += 40) cache.ExtendTokens(at, at + 40, pages);
  for (std::size_t g = 0; g < before.size(); ++g) EXPECT_EQ(pages.groups[g].pages.data(), before[g]);
}

TEST(KvCacheDeathTest, TakingMoreThanWasReserved) {
  const ModelConfig config = Plain();
  KvCache cache(config, {.pages = {3}, .max_chunk = 64});
  KvPages pages = Reserved(config, cache, {.tokens = 32});
  EXPECT_DEATH(cache.ExtendTokens(0, 33, pages), "reserved at admission");
  EXPECT_DEATH(cache.ExtendTokens(0, 65, pages), "broken invariant") << "a longer chunk than was planned";
}

// Pages of a sequence as it grows.

TEST(KvCache, TheLastFreedPageIsTheFirstReused) {
  const ModelConfig config = Plain();
  KvCache cache(config, {.pages = {5}, .max_chunk = 64});
  KvPages first = Reserved(config, cache, {.tokens = 64});
  KvPages second = Reserved(config, cache, {.tokens = 32});
  cache.ExtendTokens(0, 33, first);
  cache.ExtendTokens(0, 1, second);
  EXPECT_THAT(first.groups[0].pages, ElementsAre(0, 1)) << "the lowest first: a small load touches little memory";
  EXPECT_THAT(second.groups[0].pages, ElementsAre(2));
  cache.Release(first);
  KvPages third = Reserved(config, cache, {.tokens = 96});
  cache.ExtendTokens(0, 64, third);
  cache.ExtendTokens(64, 65, third);
  EXPECT_THAT(third.groups[0].pages, ElementsAre(1, 0, 3));
}

TEST(KvCache, GivesBackWhatAWindowNoLongerShows) {
  const ModelConfig config = Alternating(8, 0);
  KvCache cache(config, {.pages = {10, 2}, .max_chunk = 1});
  KvPages pages = Reserved(config, cache, {.tokens = 320});
  for (std::size_t at = 0; at < 39; ++at) cache.ExtendTokens(at, at + 1, pages);
  EXPECT_THAT(pages.groups[1].pages, ElementsAre(0, 1));
  EXPECT_EQ(pages.groups[1].first, 0u) << "position 38 sees 31";
  cache.ExtendTokens(39, 40, pages);
  EXPECT_EQ(pages.groups[1].first, 1u) << "position 39 sees 32 and later";
  EXPECT_EQ(Held(pages.groups[0]), 2u) << "the other group keeps all";
  for (std::size_t at = 40; at < 65; ++at) cache.ExtendTokens(at, at + 1, pages);
  EXPECT_THAT(pages.groups[1].pages, ElementsAre(0, 1, 0)) << "the page that was given back";
}

TEST(KvCache, GivesBackAChunkAtItsEnd) {
  const ModelConfig config = Alternating(0, 64);
  KvCache cache(config, {.pages = {10, 3}, .max_chunk = 1});
  KvPages pages = Reserved(config, cache, {.tokens = 320});
  for (std::size_t at = 0; at < 64; ++at) cache.ExtendTokens(at, at + 1, pages);
  EXPECT_EQ(Held(pages.groups[1]), 2u);
  cache.ExtendTokens(64, 65, pages);
  EXPECT_EQ(pages.groups[1].first, 2u);
  EXPECT_EQ(Held(pages.groups[1]), 1u);
}

// Encoders.

TEST(KvCache, AnEncodersOwnPagesLastOneStep) {
  const ModelConfig config = EncoderDecoder();
  KvCache cache(config, {.pages = {4, 3, 4}, .max_chunk = 8});
  KvPages first = Reserved(config, cache, {.tokens = 40, .source = 40});
  KvPages second = KvCache::MakePages(config, {.tokens = 40, .source = 40});
  EXPECT_FALSE(cache.Reserve({.tokens = 40, .source = 40}, second)) << "2 of the 3 pages are promised to the first";
  cache.ExtendSource(40, first);
  EXPECT_EQ(Held(first.groups[1]), 2u);
  EXPECT_EQ(Held(first.groups[2]), 2u);
  EXPECT_EQ(Held(first.groups[0]), 0u) << "no token of the decoder yet";
  cache.ReleaseTransient(first);
  EXPECT_EQ(Held(first.groups[1]), 0u);
  EXPECT_EQ(first.groups[1].reserved, 0u) << "it will not be encoded again";
  EXPECT_EQ(Held(first.groups[2]), 2u) << "the decoder looks at these";
  EXPECT_TRUE(cache.Reserve({.tokens = 40, .source = 40}, second));
  cache.ExtendSource(40, second);
  for (const PageId page : second.groups[2].pages) EXPECT_THAT(first.groups[2].pages, Not(Contains(page)));
  cache.ExtendTokens(0, 8, first);
  cache.Release(first);
  cache.Release(second);
  EXPECT_EQ(cache.used_tokens(), 0u);
  (void)Reserved(config, cache, {.tokens = 128, .source = 96});
}

// Memory.

/// Every (layer, use, page, head) block but for those that the encoder's layers share, with a number of its own.
template <typename Visit>
void ForEachBlock(KvCache& cache, const ModelConfig& config, const KvPlan& plan, Visit&& visit) {
  std::uint32_t number = 0;
  const auto attention = [&](std::size_t layer, KvCache::Use use, const AttentionSpec& spec) {
    const std::size_t group = cache.group_of(layer, use);
    const std::size_t bytes = static_cast<std::size_t>(spec.head_dim) * kPageTokens * BytesPerElement(plan.type);
    for (PageId page = 0; page < plan.pages[group]; ++page) {
      for (std::size_t head = 0; head < static_cast<std::size_t>(spec.num_kv_heads); ++head) {
        for (const std::span<std::byte> block :
             {cache.keys(layer, use, page, head), cache.values(layer, use, page, head)}) {
          EXPECT_EQ(block.size(), bytes);
          EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block.data()) % kAlignment, 0u);
          visit(block, ++number);
        }
      }
    }
  };
  for (std::size_t layer = 0; layer < config.layers.size(); ++layer) {
    const LayerSpec& spec = config.layers[layer];
    // Of an encoder, the widest layer.
    if (config.has_encoder() && layer == 0) continue;
    attention(layer, KvCache::Use::kSelf, spec.attention);
    if (spec.cross_attention) attention(layer, KvCache::Use::kCross, *spec.cross_attention);
  }
}

TEST(KvCacheMemory, BlocksOfLayersHeadsAndPagesDoNotOverlap) {
  for (const KvType type : {KvType::kF32, KvType::kBf16}) {
    for (const ModelConfig& config : {Plain(), Alternating(8, 0), EncoderDecoder()}) {
      const KvPlan plan =
          PlanKv(config, {.tokens = 96, .max_sequences = 1, .max_step_tokens = 40, .max_chunk = 8, .type = type});
      KvCache cache(config, plan);
      // Two bytes tell blocks and places in them apart: every place has the number of its block.
      const auto byte = [](std::uint32_t block, std::size_t i) {
        return static_cast<std::byte>(i % 2 == 0 ? block : block >> 8);
      };
      std::size_t bytes = 0;
      ForEachBlock(cache, config, plan, [&](std::span<std::byte> block, std::uint32_t number) {
        ASSERT_LT(number, 1u << 16);
        bytes += block.size();
        for (std::size_t i = 0; i < block.size(); ++i) block[i] = byte(number, i);
      });
      EXPECT_EQ(bytes, plan.bytes) << "and nothing is wasted";
      ForEachBlock(cache, config, plan, [&](std::span<std::byte> block, std::uint32_t number) {
        for (std::size_t i = 0; i < block.size(); ++i) ASSERT_EQ(block[i], byte(number, i)) << "block " << number;
      });
    }
  }
}

TEST(KvCacheMemory, LayersOfAnEncoderUseTheSameOne) {
  const ModelConfig config = EncoderDecoder();
  KvCache cache(config, PlanKv(config, kLimits));
  EXPECT_EQ(cache.group_of(0, KvCache::Use::kSelf), cache.group_of(1, KvCache::Use::kSelf));
  const auto keys = [&](std::size_t layer, KvCache::Use use) { return cache.keys(layer, use, 1, 0).data(); };
  EXPECT_EQ(keys(0, KvCache::Use::kSelf), keys(1, KvCache::Use::kSelf));
  EXPECT_NE(keys(2, KvCache::Use::kCross), keys(3, KvCache::Use::kCross));
  EXPECT_NE(cache.group_of(2, KvCache::Use::kSelf), cache.group_of(2, KvCache::Use::kCross));
}

TEST(KvCacheMemory, LatentRowsAreKeysAndValues) {
  const ModelConfig config = Latent();
  for (const KvType type : {KvType::kF32, KvType::kBf16}) {
    KvCache cache(config, {.pages = {2}, .max_chunk = 1, .type = type});
    const auto keys = [&](std::size_t layer, PageId page) { return cache.keys(layer, KvCache::Use::kSelf, page, 0); };
    const std::size_t bytes = 16 * kPageTokens * BytesPerElement(type);
    EXPECT_EQ(cache.values(0, KvCache::Use::kSelf, 0, 0).data(), keys(0, 0).data());
    EXPECT_EQ(keys(0, 0).size(), bytes);
    EXPECT_EQ(keys(1, 0).data() - keys(0, 0).data(), static_cast<std::ptrdiff_t>(bytes));
    EXPECT_EQ(keys(0, 1).data() - keys(0, 0).data(), static_cast<std::ptrdiff_t>(2 * bytes));
  }
}

}  // namespace
}  // namespace moe
