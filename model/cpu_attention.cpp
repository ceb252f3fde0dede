#include "model/cpu_attention.h"

#include <algorithm>
#include <cmath>

#include "core/parallel.h"

namespace moe {
namespace {

// Query rows of one item: enough to reuse the pointers to pages, few enough to share a prefill chunk out.
constexpr std::size_t kItemRows = 16;
// Query heads of one item of latent attention, which all read the same rows: enough to use each row often, few enough
// that decoding one sequence keeps several threads busy, and that queries and sums (2 * 16 * 16 * 576 floats) stay in
// the second-level cache.
constexpr std::size_t kItemHeads = 16;
// So many query heads on a KV head fill a tile of the kernels by themselves.
constexpr std::size_t kHeadsOfTile = 8;

std::size_t Size(int value) { return static_cast<std::size_t>(value); }

std::size_t LatentWidth(const LatentSpec& latent) { return Size(latent.kv_rank + latent.rope_dim); }

/// The bias of every head and distance, from the table (buckets, heads) of a stack.
std::vector<float> ExpandBias(const AttentionSpec& spec, const std::vector<float>& table) {
  if (!spec.relative_bias) return {};
  const int reach = spec.relative_bias->max_distance;
  const std::size_t width = Size(2 * reach + 1);
  std::vector<float> expanded(Size(spec.num_heads) * width);
  for (int delta = -reach; delta <= reach; ++delta) {
    const std::size_t bucket = Size(spec.relative_bias->Bucket(delta, spec.causal));
    for (std::size_t head = 0; head < Size(spec.num_heads); ++head) {
      expanded[head * width + Size(delta + reach)] = table[bucket * Size(spec.num_heads) + head];
    }
  }
  return expanded;
}

}  // namespace

CpuAttention::CpuAttention(const Parts& parts, std::size_t max_step_tokens, std::size_t max_pages)
    : config_(parts.config),
      weights_(parts.weights),
      kernels_(parts.kernels),
      pool_(parts.pool),
      matmul_(parts.matmul),
      cache_(parts.cache),
      frequencies_(parts.config.rope.Frequencies()),
      cos_(max_step_tokens * frequencies_.size()),
      sin_(max_step_tokens * frequencies_.size()),
      scratch_(static_cast<std::size_t>(parts.pool.threads())) {
  std::size_t query_width = 0;
  std::size_t latent_floats = 0;
  std::size_t bias_heads = 0;
  for (const LayerSpec& layer : config_.layers) {
    const AttentionSpec& spec = layer.attention;
    if (spec.latent) {
      query_width = std::max(query_width, Size(spec.num_heads * spec.head_dim));
      latent_floats = std::max(latent_floats, LatentWidth(*spec.latent) + Size(spec.latent->kv_rank));
    }
    if (spec.relative_bias) bias_heads = std::max(bias_heads, Size(spec.num_heads / spec.num_kv_heads));
  }
  latent_queries_ = AlignedBuffer<float>(max_step_tokens * query_width);
  for (Scratch& scratch : scratch_) {
    scratch.keys.resize(max_pages);
    scratch.values.resize(max_pages);
    scratch.visible.reserve(kItemRows);
    scratch.bias = AlignedBuffer<float>(bias_heads * max_pages * kPageTokens);
    scratch.latent = AlignedBuffer<float>(kItemRows * kItemHeads * latent_floats);
  }
  // An item covers one entry's rows; entries and the cuts are at most the rows of a step.
  items_.reserve(max_step_tokens);
  if (config_.has_encoder()) {
    encoder_bias_ = ExpandBias(config_.layers.front().attention, weights_.encoder_relative_bias);
  }
  decoder_bias_ = ExpandBias(config_.layers.back().attention, weights_.relative_bias);
}

void CpuAttention::BeginStack(const StepBatch& batch) {
  batch_ = &batch;
  const std::size_t half = frequencies_.size();
  ShareOut(pool_, batch.positions.size(), batch.positions.size() * half * 40, [&](std::size_t row, int) {
    for (std::size_t i = 0; i < half; ++i) {
      const double angle = batch.positions[row] * frequencies_[i];
      cos_[row * half + i] = static_cast<float>(std::cos(angle) * config_.rope.magnitude);
      sin_[row * half + i] = static_cast<float>(std::sin(angle) * config_.rope.magnitude);
    }
  });
  items_.clear();
  for (const StepBatch::Entry& entry : batch.entries)
    for (std::size_t row = 0; row < entry.rows; row += kItemRows)
      items_.push_back({&entry, row, std::min(kItemRows, entry.rows - row)});
}

void CpuAttention::Self(std::size_t layer, MatrixView<float> projected, MatrixView<float> out) {
  const AttentionSpec& spec = config_.layers[layer].attention;
  if (spec.latent) return SelfLatent(layer, projected, out);
  const std::size_t queries = Size(spec.num_heads * spec.head_dim);
  const std::size_t keys = Size(spec.num_kv_heads * spec.head_dim);
  ShareOut(pool_, items_.size(), projected.rows() * projected.cols() * 4, [&](std::size_t index, int) {
    const Item& item = items_[index];
    const std::size_t first = item.entry->first_row + item.row;
    for (std::size_t row = first; row < first + item.rows; ++row) PrepareRow(layer, row, projected.row(row));
    StoreHeads(layer, KvCache::Use::kSelf, spec, item, projected.Columns(queries, keys),
               projected.Columns(queries + keys, keys));
  });
  const std::size_t kv_heads = Size(spec.num_kv_heads);
  ShareOut(pool_, items_.size() * kv_heads, Work(spec), [&](std::size_t index, int thread) {
    AttendHeads(layer, items_[index / kv_heads], index % kv_heads, scratch_[static_cast<std::size_t>(thread)],
                projected.Columns(0, queries), out);
  });
}

void CpuAttention::PrepareRow(std::size_t layer, std::size_t row, std::span<float> qkv) {
  const AttentionSpec& spec = config_.layers[layer].attention;
  const AttentionWeights& weights = weights_.layers[layer].attention;
  const float eps = config_.rms_norm_eps;
  const std::size_t dim = Size(spec.head_dim);
  const std::size_t q_heads = Size(spec.num_heads);
  // q, then k, lie side by side.
  const MatrixView<float> heads(qkv.data(), q_heads + Size(spec.num_kv_heads), dim);
  const std::span<float> q = qkv.first(q_heads * dim);
  const std::span<float> k = qkv.subspan(q_heads * dim, Size(spec.num_kv_heads) * dim);
  if (spec.qk_norm == QkNorm::kWholeProjection) {
    kernels_.RmsNorm(q, weights.query_norm, eps, q);
    kernels_.RmsNorm(k, weights.key_norm, eps, k);
  } else if (spec.qk_norm == QkNorm::kPerHead) {
    for (std::size_t h = 0; h < heads.rows(); ++h) {
      kernels_.RmsNorm(heads.row(h), h < q_heads ? weights.query_norm : weights.key_norm, eps, heads.row(h));
    }
  }
  if (spec.clip_qkv > 0) kernels_.Clamp(spec.clip_qkv, qkv);
  if (spec.rope) Rotate(heads, row);
  if (spec.qk_norm == QkNorm::kUnitAfterRope) {
    for (std::size_t h = 0; h < heads.rows(); ++h) kernels_.RmsNorm(heads.row(h), {}, eps, heads.row(h));
  }
  if (spec.temperature) {
    const double steps = std::floor((batch_->positions[row] + 1.0) / spec.temperature->floor_scale);
    kernels_.Scale(static_cast<float>(1 + spec.temperature->scale * std::log1p(steps)), q);
  }
}

void CpuAttention::Rotate(MatrixView<float> heads, std::size_t row) {
  const std::size_t half = frequencies_.size();
  kernels_.Rope(heads, cos_.span().subspan(row * half, half), sin_.span().subspan(row * half, half),
                config_.rope.pairing);
}

template <typename Store>
void CpuAttention::ForEachPage(const Item& item, std::size_t group, const Store& store) const {
  const StepBatch::Entry& entry = *item.entry;
  for (std::size_t row = item.row; row < item.row + item.rows;) {
    const std::size_t position = entry.first_position + row;
    const std::size_t slot = position % kPageTokens;
    const std::size_t count = std::min(item.row + item.rows - row, kPageTokens - slot);
    store(RowRange{.first = entry.first_row + row, .count = count},
          entry.kv->groups[group].pages[position / kPageTokens], slot);
    row += count;
  }
}

void CpuAttention::StoreHeads(std::size_t layer, KvCache::Use use, const AttentionSpec& spec, const Item& item,
                              MatrixView<const float> keys, MatrixView<const float> values) {
  const std::size_t dim = Size(spec.head_dim);
  const KvType type = cache_.type();
  const std::size_t bytes = BytesPerElement(type);
  ForEachPage(item, cache_.group_of(layer, use), [&](const RowRange& rows, PageId page, std::size_t slot) {
    for (std::size_t h = 0; h < Size(spec.num_kv_heads); ++h) {
      StoreKvColumns(keys.Rows(rows.first, rows.count).Columns(h * dim, dim), type, kPageTokens,
                     cache_.keys(layer, use, page, h).subspan(slot * bytes));
      StoreKvRows(values.Rows(rows.first, rows.count).Columns(h * dim, dim), type,
                  cache_.values(layer, use, page, h).subspan(slot * dim * bytes));
    }
  });
}

VisibleRange CpuAttention::Visible(const AttentionSpec& spec, const StepBatch::Entry& entry, std::size_t row) {
  const std::size_t position = entry.first_position + row;
  // Without a causal mask the entry is a whole sequence.
  if (!spec.causal) return {.begin = 0, .end = entry.first_position + entry.rows};
  return {.begin = spec.FirstVisible(position), .end = position + 1};
}

VisibleRange CpuAttention::VisibleToAll(const AttentionSpec& spec, const Item& item) {
  return {.begin = Visible(spec, *item.entry, item.row).begin,
          .end = Visible(spec, *item.entry, item.row + item.rows - 1).end};
}

CpuAttention::Window CpuAttention::FindPages(std::size_t layer, KvCache::Use use, const StepBatch::Entry& entry,
                                             std::size_t kv_head, const VisibleRange& visible, Scratch& scratch) {
  const std::vector<PageId>& pages = entry.kv->groups[cache_.group_of(layer, use)].pages;
  const std::size_t first = visible.begin / kPageTokens;
  const std::size_t count = PagesFor(visible.end) - first;
  for (std::size_t i = 0; i < count; ++i) {
    scratch.keys[i] = cache_.keys(layer, use, pages[first + i], kv_head).data();
    scratch.values[i] = cache_.values(layer, use, pages[first + i], kv_head).data();
  }
  return {.skipped = first * kPageTokens,
          .keys = std::span(scratch.keys).first(count),
          .values = std::span(scratch.values).first(count)};
}

AttentionTask CpuAttention::TaskFor(const AttentionSpec& spec, const Window& window,
                                    const VisibleRange& visible) const {
  return {.type = cache_.type(),
          .key_pages = window.keys,
          .value_pages = window.values,
          .value_stride = Size(spec.head_dim),
          .begin = visible.begin - window.skipped,
          .end = visible.end - window.skipped,
          .scale = spec.scale};
}

MatrixView<const float> CpuAttention::PositionBias(std::size_t layer, std::size_t position, std::size_t first_head,
                                                   std::size_t heads, const Window& window, const VisibleRange& visible,
                                                   Scratch& scratch) const {
  const AttentionSpec& spec = config_.layers[layer].attention;
  if (!spec.relative_bias) return {};
  const std::vector<float>& table = layer < Size(config_.encoder_layers) ? encoder_bias_ : decoder_bias_;
  const auto reach = static_cast<std::ptrdiff_t>(spec.relative_bias->max_distance);
  const std::size_t width = static_cast<std::size_t>(2 * reach + 1);
  const MatrixView<float> bias(scratch.bias.data(), heads, window.keys.size() * kPageTokens);
  for (std::size_t at = visible.begin; at < visible.end; ++at) {
    const auto delta = static_cast<std::ptrdiff_t>(at) - static_cast<std::ptrdiff_t>(position);
    const auto index = static_cast<std::size_t>(std::clamp(delta, -reach, reach) + reach);
    for (std::size_t h = 0; h < heads; ++h) bias(h, at - window.skipped) = table[(first_head + h) * width + index];
  }
  return bias;
}

std::size_t CpuAttention::Work(const AttentionSpec& spec) const {
  std::size_t visible = 0;
  for (const StepBatch::Entry& entry : batch_->entries) visible += entry.rows * (entry.first_position + entry.rows);
  return visible * Size(spec.num_heads * spec.head_dim) * 2;
}

void CpuAttention::AttendHeads(std::size_t layer, const Item& item, std::size_t kv_head, Scratch& scratch,
                               MatrixView<const float> queries, MatrixView<float> out) {
  const AttentionSpec& spec = config_.layers[layer].attention;
  const std::size_t group = Size(spec.num_heads / spec.num_kv_heads);
  const std::size_t dim = Size(spec.head_dim);
  const std::size_t head = kv_head * group;
  const std::vector<float>& sinks = weights_.layers[layer].attention.sinks;
  const VisibleRange seen = VisibleToAll(spec, item);
  const Window window = FindPages(layer, KvCache::Use::kSelf, *item.entry, kv_head, seen, scratch);
  if (item.rows > 1 && group < kHeadsOfTile && !spec.relative_bias && sinks.empty()) {
    AttentionTask task = TaskFor(spec, window, seen);
    scratch.visible.clear();
    for (std::size_t r = item.row; r < item.row + item.rows; ++r) {
      const VisibleRange visible = Visible(spec, *item.entry, r);
      scratch.visible.push_back({.begin = visible.begin - window.skipped, .end = visible.end - window.skipped});
    }
    task.visible = scratch.visible;
    return AttendAtOnce(task, item, kv_head, spec, queries, out);
  }
  for (std::size_t r = item.row; r < item.row + item.rows; ++r) {
    const VisibleRange visible = Visible(spec, *item.entry, r);
    const std::size_t row = item.entry->first_row + r;
    AttentionTask task = TaskFor(spec, window, visible);
    task.queries = {queries.row(row).data() + head * dim, group, dim};
    task.bias = PositionBias(layer, item.entry->first_position + r, head, group, window, visible, scratch);
    if (!sinks.empty()) task.sinks = std::span(sinks).subspan(head, group);
    task.out = {out.row(row).data() + head * dim, group, dim};
    kernels_.Attention(task);
  }
}

void CpuAttention::AttendAtOnce(AttentionTask task, const Item& item, std::size_t kv_head, const AttentionSpec& spec,
                                MatrixView<const float> queries, MatrixView<float> out) const {
  const std::size_t group = Size(spec.num_heads / spec.num_kv_heads);
  const std::size_t dim = Size(spec.head_dim);
  const std::size_t first = item.entry->first_row + item.row;
  for (std::size_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    task.queries = queries.Rows(first, item.rows).Columns(head * dim, dim);
    task.out = out.Rows(first, item.rows).Columns(head * dim, dim);
    kernels_.Attention(task);
  }
}

void CpuAttention::StoreCross(std::size_t layer, MatrixView<const float> key_value) {
  const std::size_t keys = key_value.cols() / 2;
  ShareOut(pool_, items_.size(), key_value.rows() * key_value.cols(), [&](std::size_t index, int) {
    StoreHeads(layer, KvCache::Use::kCross, *config_.layers[layer].cross_attention, items_[index],
               key_value.Columns(0, keys), key_value.Columns(keys, keys));
  });
}

void CpuAttention::Cross(std::size_t layer, MatrixView<const float> queries, MatrixView<float> out) {
  const AttentionSpec& spec = *config_.layers[layer].cross_attention;
  const std::size_t kv_heads = Size(spec.num_kv_heads);
  std::size_t positions = 0;
  for (const StepBatch::Entry& entry : batch_->entries) positions += entry.rows * entry.source_positions;
  const std::size_t work = positions * Size(spec.num_heads * spec.head_dim) * 2;
  ShareOut(pool_, items_.size() * kv_heads, work, [&](std::size_t index, int thread) {
    const Item& item = items_[index / kv_heads];
    const std::size_t kv_head = index % kv_heads;
    Scratch& scratch = scratch_[static_cast<std::size_t>(thread)];
    const VisibleRange visible{.begin = 0, .end = item.entry->source_positions};
    const Window window = FindPages(layer, KvCache::Use::kCross, *item.entry, kv_head, visible, scratch);
    AttendAtOnce(TaskFor(spec, window, visible), item, kv_head, spec, queries, out);
  });
}

MatrixView<float> CpuAttention::LatentQueries(std::size_t layer, MatrixView<float> projected) {
  const AttentionSpec& spec = config_.layers[layer].attention;
  const AttentionWeights& weights = weights_.layers[layer].attention;
  const std::size_t width = Size(spec.num_heads * spec.head_dim);
  if (spec.latent->query_rank == 0) return projected.Columns(0, width);
  const MatrixView<float> low = projected.Columns(0, Size(spec.latent->query_rank));
  const MatrixView<float> queries(latent_queries_.data(), projected.rows(), width);
  ShareOut(pool_, low.rows(), low.rows() * low.cols() * 4, [&](std::size_t row, int) {
    kernels_.RmsNorm(low.row(row), weights.query_down_norm, spec.latent->norm_eps, low.row(row));
  });
  matmul_.Run(low, weights.query_up, {}, queries);
  return queries;
}

void CpuAttention::SelfLatent(std::size_t layer, MatrixView<float> projected, MatrixView<float> out) {
  const AttentionSpec& spec = config_.layers[layer].attention;
  const LatentSpec& latent = *spec.latent;
  const std::size_t kv_rank = Size(latent.kv_rank);
  const MatrixView<float> cached = projected.Columns(projected.cols() - LatentWidth(latent), LatentWidth(latent));
  const MatrixView<float> queries = LatentQueries(layer, projected);
  ShareOut(pool_, items_.size(), queries.rows() * queries.cols() * 4, [&](std::size_t index, int) {
    const Item& item = items_[index];
    const std::size_t first = item.entry->first_row + item.row;
    for (std::size_t row = first; row < first + item.rows; ++row) {
      const std::span<float> ckv = cached.row(row).first(kv_rank);
      kernels_.RmsNorm(ckv, weights_.layers[layer].attention.kv_down_norm, latent.norm_eps, ckv);
      Rotate({cached.row(row).data() + kv_rank, 1, Size(latent.rope_dim)}, row);
      Rotate(
          {queries.row(row).data() + latent.nope_dim, Size(spec.num_heads), Size(latent.rope_dim), Size(spec.head_dim)},
          row);
    }
    StoreLatent(layer, item, cached);
  });
  const std::size_t blocks = (Size(spec.num_heads) + kItemHeads - 1) / kItemHeads;
  ShareOut(pool_, items_.size() * blocks, Work(spec) * 4, [&](std::size_t index, int thread) {
    AttendLatent(layer, items_[index / blocks], index % blocks, scratch_[static_cast<std::size_t>(thread)], queries,
                 out);
  });
}

void CpuAttention::StoreLatent(std::size_t layer, const Item& item, MatrixView<const float> latent) {
  const KvCache::Use use = KvCache::Use::kSelf;
  const std::size_t row_bytes = latent.cols() * BytesPerElement(cache_.type());
  ForEachPage(item, cache_.group_of(layer, use), [&](const RowRange& rows, PageId page, std::size_t slot) {
    StoreKvRows(latent.Rows(rows.first, rows.count), cache_.type(),
                cache_.keys(layer, use, page, 0).subspan(slot * row_bytes));
  });
}

void CpuAttention::AttendLatent(std::size_t layer, const Item& item, std::size_t head_block, Scratch& scratch,
                                MatrixView<const float> queries, MatrixView<float> out) {
  const AttentionSpec& spec = config_.layers[layer].attention;
  const AttentionWeights& weights = weights_.layers[layer].attention;
  const LatentSpec& latent = *spec.latent;
  const std::size_t nope = Size(latent.nope_dim);
  const std::size_t rope = Size(latent.rope_dim);
  const std::size_t rank = Size(latent.kv_rank);
  const std::size_t width = rank + rope;
  const std::size_t first = head_block * kItemHeads;
  const std::size_t heads = std::min(kItemHeads, Size(spec.num_heads) - first);
  const std::size_t first_row = item.entry->first_row + item.row;
  const MatrixView<float> absorbed(scratch.latent.data(), item.rows, heads * width);
  const MatrixView<float> sums(scratch.latent.data() + kItemRows * kItemHeads * width, item.rows, heads * rank);

  for (std::size_t h = 0; h < heads; ++h) {
    const MatrixView<const float> q =
        queries.Rows(first_row, item.rows).Columns((first + h) * (nope + rope), nope + rope);
    const PackedMatrix& up = weights.key_up[first + h];
    kernels_.MatMulPanels(q.Columns(0, nope), up, 0, up.panels(), absorbed.Columns(h * width, rank));
    for (std::size_t r = 0; r < item.rows; ++r) {
      std::ranges::copy(q.row(r).subspan(nope),
                        absorbed.row(r).begin() + static_cast<std::ptrdiff_t>(h * width + rank));
    }
  }
  const Window window = FindPages(layer, KvCache::Use::kSelf, *item.entry, 0, VisibleToAll(spec, item), scratch);
  for (std::size_t r = 0; r < item.rows; ++r) {
    AttentionTask task = TaskFor(spec, window, Visible(spec, *item.entry, item.row + r));
    task.key_layout = KeyLayout::kRows;
    task.value_stride = width;
    task.queries = {absorbed.row(r).data(), heads, width};
    task.out = {sums.row(r).data(), heads, rank};
    kernels_.Attention(task);
  }
  for (std::size_t h = 0; h < heads; ++h) {
    const PackedMatrix& up = weights.value_up[first + h];
    const MatrixView<float> y = out.Rows(first_row, item.rows).Columns((first + h) * up.rows(), up.rows());
    kernels_.MatMulPanels(sums.Columns(h * rank, rank), up, 0, up.panels(), y);
  }
}

}  // namespace moe
