#include "model/kv_cache.h"

#include "core/check.h"

namespace moe {
namespace {

std::size_t HeadFloats(const AttentionSpec& attention) {
  return static_cast<std::size_t>(attention.head_dim) * kPageTokens;
}

}  // namespace

std::size_t KvCache::BytesPerPage(const ModelConfig& config) {
  std::size_t floats = 0;
  for (const LayerSpec& layer : config.layers)
    floats += 2 * HeadFloats(layer.attention) * static_cast<std::size_t>(layer.attention.num_kv_heads);
  return floats * sizeof(float);
}

KvCache::KvCache(const ModelConfig& config, std::size_t num_pages) : references_(num_pages, 0) {
  for (const LayerSpec& layer : config.layers) {
    const LayerShape shape{.offset = page_floats_,
                           .head = HeadFloats(layer.attention),
                           .kv_heads = static_cast<std::size_t>(layer.attention.num_kv_heads)};
    layers_.push_back(shape);
    page_floats_ += 2 * shape.head * shape.kv_heads;
  }
  storage_ = AlignedBuffer<float>(page_floats_ * num_pages);
  free_.reserve(num_pages);
  for (std::size_t page = num_pages; page > 0; --page) free_.push_back(static_cast<PageId>(page - 1));
}

PageId KvCache::Allocate() {
  MOE_CHECK(!free_.empty(), "KV pages are reserved at admission, so one must be free");
  const PageId page = free_.back();
  free_.pop_back();
  references_[page] = 1;
  return page;
}

void KvCache::Release(PageId page) {
  MOE_CHECK(page < references_.size() && references_[page] > 0);
  if (--references_[page] == 0) free_.push_back(page);
}

float* KvCache::keys(std::size_t layer, PageId page, std::size_t kv_head) {
  const LayerShape& shape = layers_[layer];
  return storage_.data() + page * page_floats_ + shape.offset + kv_head * shape.head;
}

float* KvCache::values(std::size_t layer, PageId page, std::size_t kv_head) {
  const LayerShape& shape = layers_[layer];
  return storage_.data() + page * page_floats_ + shape.offset + (shape.kv_heads + kv_head) * shape.head;
}

}  // namespace moe
