// Random sequences in a cache of random layers: a cache that promised pages has them, and keeps what is still seen.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "model/kv_cache.h"
#include "tests/model/kv_configs.h"

namespace moe {
namespace {

/// Sequences that grow by random chunks in turns, and are released and begun again. Checks after every step that what a
/// query sees is held, by one sequence only, within what was said to be needed, and holds what was stored there.
class GrowingSequences {
 public:
  GrowingSequences(const ModelConfig& config, const KvLimits& limits, std::uint32_t seed)
      : config_(config), limits_(limits), random_(seed), cache_(config, PlanKv(config, limits)) {
    sequences_.resize(limits.max_sequences);
  }

  void Run(int steps) {
    for (int i = 0; i < steps && !::testing::Test::HasFailure(); ++i) {
      Sequence& sequence = sequences_[Random(0, sequences_.size() - 1)];
      if (sequence.pages.groups.empty()) Begin(sequence);
      Grow(sequence);
      CheckOwners();
      CheckStored(sequence);
      if (sequence.length == sequence.demand.tokens || Random(0, 40) == 0) {
        cache_.Release(sequence.pages);
        sequence = {};
      }
    }
    for (Sequence& sequence : sequences_)
      if (!sequence.pages.groups.empty()) cache_.Release(sequence.pages);
    EXPECT_EQ(cache_.used_tokens(), 0u);
  }

 private:
  struct Sequence {
    KvDemand demand;
    KvPages pages;
    std::vector<std::size_t> reserved;  // by group, at the beginning
    std::size_t length = 0;
    std::byte number{0};  // what its pages are filled with, modulo 256
  };

  std::size_t Random(std::size_t least, std::size_t most) {
    return std::uniform_int_distribution<std::size_t>(least, most)(random_);
  }

  void Begin(Sequence& sequence) {
    // A share of the tokens each: then they fit together.
    sequence.demand.tokens = Random(1, limits_.tokens / limits_.max_sequences);
    sequence.number = static_cast<std::byte>(Random(0, 255));
    sequence.pages = Reserved(config_, cache_, sequence.demand);
    for (const KvPages::Group& group : sequence.pages.groups) sequence.reserved.push_back(group.reserved);
  }

  void Grow(Sequence& sequence) {
    const std::size_t left = sequence.demand.tokens - sequence.length;
    const std::size_t end = sequence.length + Random(1, std::min(left, limits_.max_chunk));
    cache_.ExtendTokens(sequence.length, end, sequence.pages);
    const std::vector<KvGroup> groups = KvGroups(config_);
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const KvPages::Group& held = sequence.pages.groups[g];
      EXPECT_EQ(held.first, groups[g].FirstVisible(sequence.length) / kPageTokens) << "no more than is seen";
      EXPECT_EQ(held.pages.size(), PagesFor(end));
      EXPECT_EQ(Held(held) + held.reserved, sequence.reserved[g]) << "what it returns it may retake";
    }
    for (std::size_t position = sequence.length; position < end; ++position) {
      ForEachElement(sequence, position, [&](std::span<std::byte> element) {
        std::ranges::fill(element, sequence.number ^ static_cast<std::byte>(position));
      });
    }
    sequence.length = end;
  }

  /// Calls visit(bytes) for the first key and for all values of a position in every layer.
  template <typename Visit>
  void ForEachElement(const Sequence& sequence, std::size_t position, const Visit& visit) {
    constexpr KvCache::Use kUse = KvCache::Use::kSelf;
    const std::size_t bytes = BytesPerElement(limits_.type);
    for (std::size_t layer = 0; layer < config_.layers.size(); ++layer) {
      const PageId page = sequence.pages.groups[cache_.group_of(layer, kUse)].pages[position / kPageTokens];
      const std::size_t slot = position % kPageTokens;
      const std::size_t dim = static_cast<std::size_t>(config_.layers[layer].attention.head_dim);
      visit(cache_.keys(layer, kUse, page, 0).subspan(slot * bytes, bytes));
      visit(cache_.values(layer, kUse, page, 0).subspan(slot * dim * bytes, dim * bytes));
    }
  }

  /// What the next query sees of the sequence.
  void CheckStored(const Sequence& sequence) {
    std::size_t first = 0;
    for (const KvGroup& group : KvGroups(config_)) first = std::max(first, group.FirstVisible(sequence.length));
    for (std::size_t position = first; position < sequence.length; ++position) {
      ForEachElement(sequence, position, [&](std::span<std::byte> element) {
        const std::byte stored = sequence.number ^ static_cast<std::byte>(position);
        if (!std::ranges::all_of(element, [&](std::byte b) { return b == stored; }))
          ADD_FAILURE() << "position " << position << " was overwritten";
      });
    }
  }

  void CheckOwners() {
    for (std::size_t g = 0; g < cache_.num_groups(); ++g) {
      std::set<PageId> owned;
      for (const Sequence& sequence : sequences_) {
        if (sequence.pages.groups.empty()) continue;
        const KvPages::Group& held = sequence.pages.groups[g];
        for (std::size_t page = held.first; page < held.pages.size(); ++page)
          EXPECT_TRUE(owned.insert(held.pages[page]).second) << "page " << held.pages[page] << " has two owners";
      }
    }
  }

  const ModelConfig& config_;
  const KvLimits limits_;
  std::mt19937 random_;
  KvCache cache_;
  std::vector<Sequence> sequences_;
};

TEST(KvCache, HoldsWhatQueriesSeeAndNoMoreThanItSaid) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    const auto any = [&](int most) { return std::uniform_int_distribution<int>(1, most)(random); };
    const ModelConfig config = seed % 3 == 0   ? Windowed(any(150))
                               : seed % 3 == 1 ? Alternating(any(150), 0)
                                               : Alternating(0, any(150));
    const std::size_t chunk = static_cast<std::size_t>(any(100));
    const std::size_t sequences = static_cast<std::size_t>(any(4));
    const KvLimits limits{.tokens = sequences * kPageTokens * static_cast<std::size_t>(any(12)),
                          .max_sequences = sequences,
                          .max_step_tokens = chunk,
                          .max_chunk = chunk,
                          .type = seed % 2 == 0 ? KvType::kF32 : KvType::kBf16};
    GrowingSequences(config, limits, seed).Run(100);
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace moe
