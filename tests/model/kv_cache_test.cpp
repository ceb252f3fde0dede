#include "model/kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <span>
#include <vector>

namespace moe {
namespace {

/// Layers of different shapes, as some families have them.
ModelConfig Config() {
  ModelConfig config;
  config.layers.push_back({.attention = {.num_heads = 4, .num_kv_heads = 2, .head_dim = 24}});
  config.layers.push_back({.attention = {.num_heads = 4, .num_kv_heads = 1, .head_dim = 16}});
  config.layers.push_back({.attention = {.num_heads = 6, .num_kv_heads = 3, .head_dim = 10}});
  return config;
}

TEST(KvCache, PagesForTokensRoundsUp) {
  EXPECT_EQ(KvCache::PagesFor(0), 0u);
  EXPECT_EQ(KvCache::PagesFor(1), 1u);
  EXPECT_EQ(KvCache::PagesFor(kPageTokens), 1u);
  EXPECT_EQ(KvCache::PagesFor(kPageTokens + 1), 2u);
  EXPECT_EQ(KvCache::PagesFor(100 * kPageTokens), 100u);
}

TEST(KvCache, APageHasKeysAndValuesOfAllLayers) {
  // 2 (keys, values) * kPageTokens * 4 bytes * Σ kv_heads * head_dim
  EXPECT_EQ(KvCache::BytesPerPage(Config()), 2 * kPageTokens * 4 * (2 * 24 + 16 + 3 * 10));
  EXPECT_EQ(KvCache::BytesPerPage(ModelConfig{}), 0u);
}

TEST(KvCache, CountsPagesAndTokens) {
  KvCache cache(Config(), 3);
  EXPECT_EQ(cache.num_pages(), 3u);
  EXPECT_EQ(cache.capacity_tokens(), 3 * kPageTokens);
  EXPECT_EQ(cache.used_tokens(), 0u);
  const PageId first = cache.Allocate();
  const PageId second = cache.Allocate();
  EXPECT_EQ(cache.free_pages(), 1u);
  EXPECT_EQ(cache.used_tokens(), 2 * kPageTokens);
  cache.Release(first);
  EXPECT_EQ(cache.used_tokens(), kPageTokens);
  cache.Release(second);
  EXPECT_EQ(cache.used_tokens(), 0u);
  EXPECT_EQ(cache.free_pages(), 3u);
}

TEST(KvCache, GivesEveryPageOnceWhileItIsHeld) {
  KvCache cache(Config(), 50);
  std::set<PageId> held;
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(held.insert(cache.Allocate()).second);
  EXPECT_EQ(*held.rbegin(), 49u);
  EXPECT_EQ(cache.free_pages(), 0u);
}

TEST(KvCache, TheLastFreedPageIsTheFirstReused) {
  KvCache cache(Config(), 5);
  EXPECT_EQ(cache.Allocate(), 0u) << "the lowest first: a small load touches little memory";
  EXPECT_EQ(cache.Allocate(), 1u);
  EXPECT_EQ(cache.Allocate(), 2u);
  cache.Release(0);
  cache.Release(2);
  EXPECT_EQ(cache.Allocate(), 2u);
  EXPECT_EQ(cache.Allocate(), 0u);
  EXPECT_EQ(cache.Allocate(), 3u);
}

/// Every (layer, page, head) block, keys and values, with a number of its own.
template <typename Visit>
void ForEachBlock(KvCache& cache, const ModelConfig& config, Visit&& visit) {
  std::uint32_t number = 0;
  for (PageId page = 0; page < cache.num_pages(); ++page) {
    for (std::size_t layer = 0; layer < config.layers.size(); ++layer) {
      const AttentionSpec& spec = config.layers[layer].attention;
      const std::size_t floats = static_cast<std::size_t>(spec.head_dim) * kPageTokens;
      for (std::size_t head = 0; head < static_cast<std::size_t>(spec.num_kv_heads); ++head) {
        visit(std::span(cache.keys(layer, page, head), floats), ++number);
        visit(std::span(cache.values(layer, page, head), floats), ++number);
      }
    }
  }
}

TEST(KvCache, BlocksOfLayersHeadsAndPagesDoNotOverlap) {
  const ModelConfig config = Config();
  KvCache cache(config, 4);
  const auto element = [](std::uint32_t block, std::size_t i) {
    return static_cast<float>(block * 4096 + static_cast<std::uint32_t>(i));
  };
  ForEachBlock(cache, config, [&](std::span<float> block, std::uint32_t number) {
    for (std::size_t i = 0; i < block.size(); ++i) block[i] = element(number, i);
  });
  std::size_t bytes = 0;
  ForEachBlock(cache, config, [&](std::span<float> block, std::uint32_t number) {
    bytes += block.size_bytes();
    for (std::size_t i = 0; i < block.size(); ++i) ASSERT_EQ(block[i], element(number, i)) << "block " << number;
  });
  EXPECT_EQ(bytes, cache.num_pages() * KvCache::BytesPerPage(config)) << "and nothing is wasted";
}

TEST(KvCache, ReusedPagesKeepTheirPlace) {
  KvCache cache(Config(), 2);
  const PageId page = cache.Allocate();
  float* const keys = cache.keys(1, page, 0);
  cache.Release(page);
  EXPECT_EQ(cache.keys(1, cache.Allocate(), 0), keys);
}

TEST(KvCacheDeathTest, AllocatingWithoutAFreePage) {
  KvCache cache(Config(), 1);
  (void)cache.Allocate();
  EXPECT_DEATH((void)cache.Allocate(), "reserved at admission");
  KvCache none(Config(), 0);
  EXPECT_DEATH((void)none.Allocate(), "reserved at admission");
}

TEST(KvCacheDeathTest, ReleasingAPageThatNobodyHolds) {
  KvCache cache(Config(), 2);
  EXPECT_DEATH(cache.Release(0), "broken invariant");
  const PageId page = cache.Allocate();
  cache.Release(page);
  EXPECT_DEATH(cache.Release(page), "broken invariant");
  EXPECT_DEATH(cache.Release(2), "broken invariant") << "there is no such page";
}

}  // namespace
}  // namespace moe
