// What attention remembers of past positions, in pages of kPageTokens positions that sequences hold by number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/aligned_buffer.h"
#include "kernels/kernels.h"
#include "model/config.h"

namespace moe {

using PageId = std::uint32_t;

/// Layers that need the same positions for the same time: they share page lists. Most models have one group; layers
/// with a sliding window have one of their own, which keeps what the window still shows; a decoder that looks at an
/// encoder has the encoder's positions in a group of their own.
struct KvGroup {
  bool source = false;     // positions of the encoder's input, else of the decoder's tokens
  bool transient = false;  // needed in one step only: the encoder's own attention, whose layers use the same memory
  int window = 0;          // as in AttentionSpec
  int chunk = 0;

  bool operator==(const KvGroup&) const = default;
  bool limited() const { return window > 0 || chunk > 0; }
  /// The first position of this group that a query at `position` sees.
  std::size_t FirstVisible(std::size_t position) const;
};

/// The groups of a model: those of the decoder's tokens first, an unlimited one before the others.
std::vector<KvGroup> KvGroups(const ModelConfig& config);

constexpr std::size_t PagesFor(std::size_t positions) { return (positions + kPageTokens - 1) / kPageTokens; }

/// Positions that a sequence needs room for.
struct KvDemand {
  std::size_t tokens = 0;  // of the decoder
  std::size_t source = 0;  // of the encoder
};

/// What bounds the pages that a cache needs.
struct KvLimits {
  std::size_t tokens = 0;           // positions of all sequences together
  std::size_t max_sequences = 0;    // at a time
  std::size_t max_step_tokens = 0;  // rows of a step, of a stack
  std::size_t max_chunk = 0;        // rows of a sequence in a step, at most max_step_tokens
  KvType type = KvType::kF32;       // of what is cached
};

/// The pages of each group, and their memory.
struct KvPlan {
  std::vector<std::size_t> pages;
  std::uint64_t bytes = 0;  // the largest number when they are more than it: no machine has as many
  std::size_t max_chunk = 0;
  KvType type = KvType::kF32;
};
KvPlan PlanKv(const ModelConfig& config, const KvLimits& limits);

/// What a sequence holds of each group: pages by absolute page, of which those before `first` were given back.
struct KvPages {
  struct Group {
    std::vector<PageId> pages;
    std::size_t first = 0;
    std::size_t reserved = 0;  // pages that it may still take
  };
  std::vector<Group> groups;
};

/// A page holds kPageTokens consecutive positions, from an absolute position that is a multiple of kPageTokens, for all
/// layers of its group, as elements of the plan's type. Per layer and KV head: keys (head_dim, kPageTokens), one column
/// a position, and values (kPageTokens, head_dim): the two layouts in which attention reads strictly forward. Latent
/// attention: one row a position (kPageTokens, kv_rank + rope_dim), the values being its first kv_rank elements. Pages
/// are reference-counted and immutable once full. Used by the engine thread alone; nothing but construction and
/// MakePages allocates memory.
class KvCache {
 public:
  KvCache(const ModelConfig& config, const KvPlan& plan);

  KvType type() const { return type_; }
  std::size_t num_groups() const { return groups_.size(); }
  std::size_t capacity_tokens() const { return groups_.front().references.size() * kPageTokens; }
  /// Of the first group: held or reserved.
  std::size_t used_tokens() const;

  /// Whether an empty cache could take it.
  bool Fits(const KvDemand& demand) const;
  /// Lists with room for all that the sequence will hold; nothing is reserved.
  static KvPages MakePages(const ModelConfig& config, const KvDemand& demand);
  /// Reserves all that the sequence can ever hold, or nothing: false.
  bool Reserve(const KvDemand& demand, KvPages& pages);

  /// Before a step computes decoder positions [begin, end), or encodes source positions [0, end): gives back what no
  /// query from `begin` on sees, and takes pages up to `end`, which must have been reserved.
  void ExtendTokens(std::size_t begin, std::size_t end, KvPages& pages);
  void ExtendSource(std::size_t end, KvPages& pages);
  /// After the encoder has run: what only it needed.
  void ReleaseTransient(KvPages& pages);
  /// Everything, reservations too.
  void Release(KvPages& pages);

  /// What a layer's attention reads and writes.
  enum class Use : std::uint8_t { kSelf, kCross };
  std::size_t group_of(std::size_t layer, Use use) const { return slot(layer, use).group; }
  /// (head_dim, kPageTokens) and (kPageTokens, head_dim) of a page, or latent rows, which both are.
  std::span<std::byte> keys(std::size_t layer, Use use, PageId page, std::size_t kv_head);
  std::span<std::byte> values(std::size_t layer, Use use, PageId page, std::size_t kv_head);

 private:
  struct Group {
    KvGroup spec;
    std::size_t page_bytes = 0;
    AlignedBuffer<std::byte> storage;
    std::vector<std::uint32_t> references;  // by page
    std::vector<PageId> free;               // last freed, first reused: its memory is resident already
    std::size_t reserved = 0;               // of the free ones
  };
  /// Where one attention lies in a page of its group.
  struct Slot {
    std::size_t group = 0;
    std::size_t offset = 0;       // bytes, as are the sizes; of the first head
    std::size_t key_bytes = 0;    // of one head
    std::size_t value_bytes = 0;  // 0: values are part of the keys
  };

  const Slot& slot(std::size_t layer, Use use) const { return use == Use::kSelf ? self_[layer] : cross_[layer]; }
  std::size_t NeededOf(const Group& group, const KvDemand& demand) const;
  void Extend(Group& group, std::size_t first_visible, std::size_t end, KvPages::Group& held);
  void ReleaseBelow(Group& group, std::size_t page, KvPages::Group& held);

  std::vector<Group> groups_;
  std::vector<Slot> self_;   // by layer
  std::vector<Slot> cross_;  // by layer; empty without an encoder
  std::size_t max_chunk_ = 0;
  KvType type_ = KvType::kF32;
};

}  // namespace moe
