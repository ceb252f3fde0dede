#include "model/kv_cache.h"

#include <algorithm>
#include <limits>

#include "core/check.h"

namespace moe {
namespace {

/// The group of a layer's own attention.
KvGroup SelfGroup(const AttentionSpec& attention, bool encoder) {
  if (encoder) return {.source = true, .transient = true};
  return {.window = attention.window, .chunk = attention.chunk};
}

constexpr KvGroup kCrossGroup = {.source = true};

std::size_t IndexOf(const std::vector<KvGroup>& groups, const KvGroup& group) {
  const auto it = std::ranges::find(groups, group);
  MOE_CHECK(it != groups.end());
  return static_cast<std::size_t>(it - groups.begin());
}

/// Elements of a page, by what holds them.
struct SlotShape {
  std::size_t kv_heads = 0;
  std::size_t key_elements = 0;    // of a head
  std::size_t value_elements = 0;  // of a head; 0: part of the keys

  std::size_t elements() const { return kv_heads * (key_elements + value_elements); }
};

SlotShape ShapeOf(const AttentionSpec& attention) {
  if (attention.latent) {
    const int width = attention.latent->kv_rank + attention.latent->rope_dim;
    return {.kv_heads = 1, .key_elements = static_cast<std::size_t>(width) * kPageTokens};
  }
  const std::size_t head = static_cast<std::size_t>(attention.head_dim) * kPageTokens;
  return {.kv_heads = static_cast<std::size_t>(attention.num_kv_heads), .key_elements = head, .value_elements = head};
}

/// Calls visit(layer, use, group, shape) for everything that is cached.
template <typename Visit>
void ForEachSlot(const ModelConfig& config, Visit&& visit) {
  for (std::size_t i = 0; i < config.layers.size(); ++i) {
    const LayerSpec& layer = config.layers[i];
    const bool encoder = i < static_cast<std::size_t>(config.encoder_layers);
    visit(i, KvCache::Use::kSelf, SelfGroup(layer.attention, encoder), ShapeOf(layer.attention));
    if (layer.cross_attention) visit(i, KvCache::Use::kCross, kCrossGroup, ShapeOf(*layer.cross_attention));
  }
}

/// Elements of a page of each group.
std::vector<std::size_t> PageElements(const ModelConfig& config, const std::vector<KvGroup>& groups) {
  std::vector<std::size_t> elements(groups.size());
  ForEachSlot(config, [&](std::size_t, KvCache::Use, const KvGroup& group, const SlotShape& shape) {
    std::size_t& sum = elements[IndexOf(groups, group)];
    sum = group.transient ? std::max(sum, shape.elements()) : sum + shape.elements();
  });
  return elements;
}

/// Pages that a sequence holds at a time when `rows` are computed in a step: what the first of them still sees, and
/// themselves, at any alignment.
std::size_t LivePages(const KvGroup& group, std::size_t rows) {
  return PagesFor(static_cast<std::size_t>(std::max(group.window, group.chunk)) - 1 + rows) + 1;
}

}  // namespace

std::size_t KvGroup::FirstVisible(std::size_t position) const {
  return AttentionSpec{.window = window, .chunk = chunk}.FirstVisible(position);
}

std::vector<KvGroup> KvGroups(const ModelConfig& config) {
  std::vector<KvGroup> groups;
  ForEachSlot(config, [&](std::size_t, KvCache::Use, const KvGroup& group, const SlotShape&) {
    if (std::ranges::find(groups, group) == groups.end()) groups.push_back(group);
  });
  const auto order = [](const KvGroup& group) { return 2 * group.source + group.limited(); };
  std::ranges::stable_sort(groups, {}, order);
  return groups;
}

KvPlan PlanKv(const ModelConfig& config, const KvLimits& limits) {
  const std::vector<KvGroup> groups = KvGroups(config);
  const std::vector<std::size_t> elements = PageElements(config, groups);
  KvPlan plan{.max_chunk = limits.max_chunk, .type = limits.type};
  bool overflows = false;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    std::size_t pages = std::max<std::size_t>(1, PagesFor(limits.tokens));
    if (groups[g].limited()) {
      pages = std::min(pages, limits.max_sequences * LivePages(groups[g], limits.max_chunk));
    }
    // Every sequence of a step may leave a page partly empty.
    if (groups[g].transient) pages = PagesFor(limits.max_step_tokens) + limits.max_sequences;
    plan.pages.push_back(pages);
    const auto page_bytes = static_cast<std::uint64_t>(elements[g]) * BytesPerElement(limits.type);
    std::uint64_t group_bytes = 0;
    if (__builtin_mul_overflow(std::uint64_t{pages}, page_bytes, &group_bytes) ||
        __builtin_add_overflow(plan.bytes, group_bytes, &plan.bytes)) {
      overflows = true;
    }
  }
  if (overflows) plan.bytes = std::numeric_limits<std::uint64_t>::max();
  return plan;
}

KvCache::KvCache(const ModelConfig& config, const KvPlan& plan) : max_chunk_(plan.max_chunk), type_(plan.type) {
  const std::vector<KvGroup> specs = KvGroups(config);
  const std::vector<std::size_t> elements = PageElements(config, specs);
  const std::size_t element_bytes = BytesPerElement(type_);
  MOE_CHECK(plan.pages.size() == specs.size() && plan.max_chunk > 0);
  self_.resize(config.layers.size());
  cross_.resize(config.layers.size());
  std::vector<std::size_t> offsets(specs.size());
  ForEachSlot(config, [&](std::size_t layer, Use use, const KvGroup& spec, const SlotShape& shape) {
    const std::size_t group = IndexOf(specs, spec);
    Slot& slot = use == Use::kSelf ? self_[layer] : cross_[layer];
    slot = {.group = group,
            .offset = offsets[group],
            .key_bytes = shape.key_elements * element_bytes,
            .value_bytes = shape.value_elements * element_bytes};
    if (!spec.transient) offsets[group] += shape.elements() * element_bytes;
  });
  for (std::size_t g = 0; g < specs.size(); ++g) {
    Group group{.spec = specs[g], .page_bytes = elements[g] * element_bytes};
    const std::size_t pages = plan.pages[g];
    group.storage = AlignedBuffer<std::byte>(pages * group.page_bytes);
    group.references.resize(pages);
    group.free.reserve(pages);
    for (std::size_t page = pages; page > 0; --page) group.free.push_back(static_cast<PageId>(page - 1));
    groups_.push_back(std::move(group));
  }
}

std::size_t KvCache::used_tokens() const {
  const Group& group = groups_.front();
  return (group.references.size() - (group.free.size() - group.reserved)) * kPageTokens;
}

std::size_t KvCache::NeededOf(const Group& group, const KvDemand& demand) const {
  const std::size_t all = PagesFor(group.spec.source ? demand.source : demand.tokens);
  return group.spec.limited() ? std::min(all, LivePages(group.spec, max_chunk_)) : all;
}

bool KvCache::Fits(const KvDemand& demand) const {
  return std::ranges::all_of(groups_, [&](const Group& g) { return NeededOf(g, demand) <= g.references.size(); });
}

KvPages KvCache::MakePages(const ModelConfig& config, const KvDemand& demand) {
  KvPages pages;
  for (const KvGroup& group : KvGroups(config)) {
    pages.groups.emplace_back().pages.reserve(PagesFor(group.source ? demand.source : demand.tokens));
  }
  return pages;
}

bool KvCache::Reserve(const KvDemand& demand, KvPages& pages) {
  MOE_CHECK(pages.groups.size() == groups_.size());
  const auto room = [&](const Group& g) { return NeededOf(g, demand) <= g.free.size() - g.reserved; };
  if (!std::ranges::all_of(groups_, room)) return false;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    pages.groups[g].reserved = NeededOf(groups_[g], demand);
    groups_[g].reserved += pages.groups[g].reserved;
  }
  return true;
}

void KvCache::ReleaseBelow(Group& group, std::size_t page, KvPages::Group& held) {
  for (; held.first < std::min(page, held.pages.size()); ++held.first) {
    const PageId id = held.pages[held.first];
    MOE_CHECK(group.references[id] > 0);
    if (--group.references[id] == 0) group.free.push_back(id);
    ++held.reserved;
    ++group.reserved;
  }
}

void KvCache::Extend(Group& group, std::size_t first_visible, std::size_t end, KvPages::Group& held) {
  ReleaseBelow(group, first_visible / kPageTokens, held);
  while (held.pages.size() < PagesFor(end)) {
    MOE_CHECK(held.reserved > 0, "KV pages are reserved at admission, so one must be left");
    const PageId page = group.free.back();
    group.free.pop_back();
    --held.reserved;
    --group.reserved;
    group.references[page] = 1;
    held.pages.push_back(page);
  }
}

void KvCache::ExtendTokens(std::size_t begin, std::size_t end, KvPages& pages) {
  MOE_CHECK(end - begin <= max_chunk_);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    if (!group.spec.source) Extend(group, group.spec.FirstVisible(begin), end, pages.groups[g]);
  }
}

void KvCache::ExtendSource(std::size_t end, KvPages& pages) {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    if (groups_[g].spec.source) Extend(groups_[g], 0, end, pages.groups[g]);
  }
}

void KvCache::ReleaseTransient(KvPages& pages) {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    KvPages::Group& held = pages.groups[g];
    if (!groups_[g].spec.transient) continue;
    ReleaseBelow(groups_[g], held.pages.size(), held);
    groups_[g].reserved -= held.reserved;
    held.reserved = 0;
  }
}

void KvCache::Release(KvPages& pages) {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    KvPages::Group& held = pages.groups[g];
    ReleaseBelow(groups_[g], held.pages.size(), held);
    groups_[g].reserved -= held.reserved;
    held = {};
  }
}

std::span<std::byte> KvCache::keys(std::size_t layer, Use use, PageId page, std::size_t kv_head) {
  const Slot& at = slot(layer, use);
  Group& group = groups_[at.group];
  const std::size_t offset = page * group.page_bytes + at.offset + kv_head * (at.key_bytes + at.value_bytes);
  return group.storage.span().subspan(offset, at.key_bytes);
}

std::span<std::byte> KvCache::values(std::size_t layer, Use use, PageId page, std::size_t kv_head) {
  const Slot& at = slot(layer, use);
  if (at.value_bytes == 0) return keys(layer, use, page, kv_head);
  Group& group = groups_[at.group];
  const std::size_t offset =
      page * group.page_bytes + at.offset + kv_head * (at.key_bytes + at.value_bytes) + at.key_bytes;
  return group.storage.span().subspan(offset, at.value_bytes);
}

}  // namespace moe
