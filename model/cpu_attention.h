// Attention on the CPU, of every kind that an AttentionSpec describes. Work is cut over rows or (rows, heads) items;
// the cut never changes a result, because each output element has one order of summation (kernels/kernels.h).
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "model/cpu_matmul.h"
#include "model/dense_backend.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace moe {

class CpuAttention {
 public:
  struct Parts {
    const ModelConfig& config;
    const DenseWeights& weights;
    const Kernels& kernels;
    ThreadPool& pool;
    CpuMatMul& matmul;
    KvCache& cache;
  };
  /// `max_pages`: that a sequence holds of a group at a time. Everything must outlive this.
  CpuAttention(const Parts& parts, std::size_t max_step_tokens, std::size_t max_pages);

  /// As DenseBackend says.
  void BeginStack(const StepBatch& batch);
  void Self(std::size_t layer, MatrixView<float> projected, MatrixView<float> out);
  void StoreCross(std::size_t layer, MatrixView<const float> key_value);
  void Cross(std::size_t layer, MatrixView<const float> queries, MatrixView<float> out);

 private:
  /// Some rows of an entry, in the hands of one thread.
  struct Item {
    const StepBatch::Entry* entry = nullptr;
    std::size_t row = 0;  // inside the entry
    std::size_t rows = 0;
  };
  /// What a thread needs for itself.
  struct Scratch {
    std::vector<const std::byte*> keys;    // pages from the first visible one on
    std::vector<const std::byte*> values;  // the same
    std::vector<VisibleRange> visible;     // by row of an item
    AlignedBuffer<float> bias;             // (query heads of a KV head, positions)
    AlignedBuffer<float> latent;           // queries, then sums, of a block of rows and heads
  };
  /// The pages that an item's rows see, with positions counted from the first of them.
  struct Window {
    std::size_t skipped = 0;  // positions in pages before the first
    std::span<const std::byte* const> keys;
    std::span<const std::byte* const> values;
  };

  static VisibleRange Visible(const AttentionSpec& spec, const StepBatch::Entry& entry, std::size_t row);
  /// From the first position that any row of the item sees to the last.
  static VisibleRange VisibleToAll(const AttentionSpec& spec, const Item& item);
  Window FindPages(std::size_t layer, KvCache::Use use, const StepBatch::Entry& entry, std::size_t kv_head,
                   const VisibleRange& visible, Scratch& scratch);
  /// The task without queries, out, sinks and bias.
  AttentionTask TaskFor(const AttentionSpec& spec, const Window& window, const VisibleRange& visible) const;
  /// (heads, positions of the window), or empty when the layer has none.
  MatrixView<const float> PositionBias(std::size_t layer, std::size_t position, std::size_t first_head,
                                       std::size_t heads, const Window& window, const VisibleRange& visible,
                                       Scratch& scratch) const;
  /// Multiplications of scores and sums over the whole batch, about.
  std::size_t Work(const AttentionSpec& spec) const;

  /// Calls store(rows, page, slot) for the rows of the item, in the batch, that lie in one page, from `slot` on.
  struct RowRange {
    std::size_t first = 0;
    std::size_t count = 0;
  };
  template <typename Store>
  void ForEachPage(const Item& item, std::size_t group, const Store& store) const;

  // Heads with keys and values of their own.
  void PrepareRow(std::size_t layer, std::size_t row, std::span<float> qkv);
  void StoreHeads(std::size_t layer, KvCache::Use use, const AttentionSpec& spec, const Item& item,
                  MatrixView<const float> keys, MatrixView<const float> values);
  void AttendHeads(std::size_t layer, const Item& item, std::size_t kv_head, Scratch& scratch,
                   MatrixView<const float> queries, MatrixView<float> out);
  /// The query heads of a KV head, one after the other at all positions of the item, which fill a tile as the few heads
  /// of one position would not. `task` lacks queries and out.
  void AttendAtOnce(AttentionTask task, const Item& item, std::size_t kv_head, const AttentionSpec& spec,
                    MatrixView<const float> queries, MatrixView<float> out) const;

  // Latent attention.
  void SelfLatent(std::size_t layer, MatrixView<float> projected, MatrixView<float> out);
  MatrixView<float> LatentQueries(std::size_t layer, MatrixView<float> projected);
  void StoreLatent(std::size_t layer, const Item& item, MatrixView<const float> latent);
  void AttendLatent(std::size_t layer, const Item& item, std::size_t head_block, Scratch& scratch,
                    MatrixView<const float> queries, MatrixView<float> out);

  void Rotate(MatrixView<float> heads, std::size_t row);

  const ModelConfig& config_;
  const DenseWeights& weights_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  CpuMatMul& matmul_;
  KvCache& cache_;
  const std::vector<double> frequencies_;
  AlignedBuffer<float> cos_;  // (max_step_tokens, width / 2)
  AlignedBuffer<float> sin_;
  AlignedBuffer<float> latent_queries_;  // (max_step_tokens, widest heads * head_dim of a latent layer)
  std::vector<Scratch> scratch_;         // by thread
  std::vector<Item> items_;
  // Relative bias by head and key position − query position, from −max_distance to max_distance.
  std::vector<float> encoder_bias_;
  std::vector<float> decoder_bias_;
  const StepBatch* batch_ = nullptr;
};

}  // namespace moe
