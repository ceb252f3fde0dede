// Keys and values of past positions, in pages of kPageTokens positions that sequences hold by number.
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

/// A page holds kPageTokens consecutive positions, from an absolute position that is a multiple of kPageTokens, for all
/// layers. Per layer and KV head: keys (head_dim, kPageTokens), one column a position, and values (kPageTokens,
/// head_dim), fp32: the two layouts in which attention reads strictly forward.
/// Pages are reference-counted and immutable once full. Used by the engine thread alone.
class KvCache {
 public:
  KvCache(const ModelConfig& config, std::size_t num_pages);

  static std::size_t BytesPerPage(const ModelConfig& config);
  static constexpr std::size_t PagesFor(std::size_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

  std::size_t num_pages() const { return references_.size(); }
  std::size_t free_pages() const { return free_.size(); }
  std::size_t capacity_tokens() const { return num_pages() * kPageTokens; }
  std::size_t used_tokens() const { return (num_pages() - free_pages()) * kPageTokens; }

  /// A page with one reference; there must be a free one.
  PageId Allocate();
  void Release(PageId page);

  /// (head_dim, kPageTokens) and (kPageTokens, head_dim) of a page.
  float* keys(std::size_t layer, PageId page, std::size_t kv_head);
  float* values(std::size_t layer, PageId page, std::size_t kv_head);

 private:
  struct LayerShape {
    std::size_t offset = 0;  // of the layer inside a page, floats
    std::size_t head = 0;    // floats of one head's keys; its values take as many
    std::size_t kv_heads = 0;
  };

  std::vector<LayerShape> layers_;
  std::size_t page_floats_ = 0;
  AlignedBuffer<float> storage_;
  std::vector<std::uint32_t> references_;
  std::vector<PageId> free_;  // last freed, first reused: its memory is resident already
};

}  // namespace moe
