// Where the dense part of a model is computed: the operations that its layers are made of, over tensors that live where
// the backend lives. The CPU backend comes first; a device backend implements the same operations on its stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/matrix.h"
#include "core/memory_space.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/routing_override.h"
#include "model/weights.h"

namespace moe {

/// An fp32 matrix (rows, cols) in the backend's memory.
struct Tensor {
  MemorySpace place = MemorySpace::kHost;
  MatrixView<float> view;  // dereferenced by its backend, or by anybody when place is kHost

  Tensor Rows(std::size_t begin, std::size_t count) const { return {place, view.Rows(begin, count)}; }
  Tensor Columns(std::size_t begin, std::size_t count) const { return {place, view.Columns(begin, count)}; }
};

/// Rows of one stack in one step that pass through the layers together: new tokens of a sequence are consecutive rows,
/// at consecutive positions.
struct StepBatch {
  struct Entry {
    const KvPages* kv = nullptr;  // of the sequence; with pages for the new rows
    std::size_t first_row = 0;    // in the batch
    std::size_t rows = 0;
    std::size_t first_position = 0;
    std::size_t source_positions = 0;  // of the encoder's output that a decoder row may look at
  };
  std::span<const std::uint32_t> token_ids;  // (rows)
  std::span<const std::uint32_t> positions;  // (rows)
  std::span<const Entry> entries;            // in row order, without gaps
};

enum class NormRole : std::uint8_t { kAttention, kCross, kFfn, kEncoder, kFinal };
enum class LinearRole : std::uint8_t {
  kProjection,
  kAttentionOut,
  kCrossQuery,
  kCrossKeyValue,
  kCrossOut,
  kSharedGate,
  kHead,
};

class DenseBackend {
 public:
  virtual ~DenseBackend() = default;

  /// Memory for (rows, cols), zeroed, owned by the backend and living as long. For start-up only.
  virtual Tensor Allocate(std::size_t rows, std::size_t cols) = 0;
  virtual KvCache& cache() = 0;

  /// Prepares what all layers of a stack share (rotary angles) for the stack's rows, which come in one or more batches
  /// (none but the first with more than half of max_step_tokens, rounded up) and must live until its last operation. A
  /// sequence's rows may be in several batches: then a layer's attention runs for the earlier rows first. The first
  /// batch is selected.
  virtual void BeginStack(std::span<const StepBatch> batches) = 0;
  /// The operations that follow are for the rows of this batch of the stack.
  virtual void Select(std::size_t batch) = 0;

  /// x(rows, hidden) = embedding of the batch's tokens.
  virtual void Embed(Tensor x) = 0;
  /// y = rms(x). `layer` counts only for roles that layers have.
  virtual void Norm(NormRole role, std::size_t layer, Tensor x, Tensor y) = 0;
  /// y = x W^T (+ bias).
  virtual void Linear(LinearRole role, std::size_t layer, Tensor x, Tensor y) = 0;
  /// Turns projected(rows, AttentionSpec::projected_width) into queries, keys and values as the layer's spec says,
  /// appends keys and values (or their latent) to the cache, attends, and writes out(rows, heads_width). `projected` is
  /// overwritten.
  virtual void Attention(std::size_t layer, Tensor projected, Tensor out) = 0;
  /// Stores key_value(rows, 2 * kv_heads * head_dim) of the encoder's rows for the decoder layer's cross-attention.
  virtual void StoreCross(std::size_t layer, Tensor key_value) = 0;
  /// out(rows, heads * head_dim) = attention of queries on what StoreCross has stored for their sequences.
  virtual void CrossAttention(std::size_t layer, Tensor queries, Tensor out) = 0;
  /// y = MLP(x) of a dense layer, or of a sparse layer's shared experts.
  virtual void Mlp(std::size_t layer, const MlpSpec& mlp, Tensor x, Tensor y) = 0;
  /// x *= factor.
  virtual void Scale(float factor, Tensor x) = 0;
  /// x += scale * y.
  virtual void Add(float scale, Tensor y, Tensor x) = 0;
  /// Each row of x times sigmoid(gate(row, 0)).
  virtual void ScaleRows(Tensor gate, Tensor x) = 0;
  /// Experts and weights of every row of y(rows, hidden), to host memory (rows, k). `logits` (rows, num_experts) is
  /// scratch.
  virtual void Gate(std::size_t layer, Tensor y, Tensor logits, MatrixView<std::int32_t> ids,
                    MatrixView<float> weights) = 0;
};

struct CpuDenseOptions {
  KvPlan kv;
  std::size_t max_step_tokens = 0;
  std::size_t max_batches = 1;               // of a stack
  const RoutingOverride* routing = nullptr;  // takes the gate's place in choosing; null: nothing does
};

/// `pool`, `kernels`, `config` and `options.routing` must outlive the backend.
std::unique_ptr<DenseBackend> MakeCpuDenseBackend(const ModelConfig& config, DenseWeights weights,
                                                  const Kernels& kernels, ThreadPool& pool, CpuDenseOptions options);

}  // namespace moe
