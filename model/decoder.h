// One pass of a model over a step's rows, in the pieces between which a router exchanges rows with workers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/matrix.h"
#include "model/config.h"
#include "model/dense_backend.h"

namespace moe {

/// Holds the residual stream of one stack in one step. Call order: Begin, then for each layer of the stack
/// AttentionBlock, FfnInput and either DenseFfn or (Route, SharedExperts and whatever adds the experts' rows to
/// `residual`), then EndStack; after the last stack, Logits for the rows wanted. A stack's rows may come in several
/// batches, which lie one after the other: each takes the layers at its own pace, and between two calls another may be
/// selected.
class Decoder {
 public:
  /// `max_batches`: of a stack, as many as the backend takes.
  Decoder(const ModelConfig& config, DenseBackend& backend, std::size_t max_step_tokens, std::size_t max_logit_rows,
          std::size_t max_batches = 1);

  /// x = embedding of the batches' tokens; the first is selected.
  void Begin(std::span<const StepBatch> batches);
  void Begin(const StepBatch& batch) { Begin(std::span(&batch, 1)); }
  /// What follows, up to the next Select, is about this batch's rows alone, and what it has returned stays as it is
  /// meanwhile. A layer's attention runs for the batches in their order.
  void Select(std::size_t batch);
  /// x += Attn(rms(x)), and where the layer has it, x += CrossAttn(rms(x)).
  void AttentionBlock(std::size_t layer);
  /// rms(x) of the FFN, (rows, hidden): what the experts read.
  Tensor FfnInput(std::size_t layer);
  /// x += MLP(FfnInput) of a dense layer.
  void DenseFfn(std::size_t layer);
  /// Experts of FfnInput's rows: ids and weights (rows, experts_per_token).
  void Route(std::size_t layer, MatrixView<std::int32_t> ids, MatrixView<float> weights);
  /// What every row adds to its experts' sum, (rows, hidden); no rows when the layer has no shared experts.
  Tensor SharedExperts(std::size_t layer);
  /// x (rows, hidden).
  Tensor residual() const { return Mine(residual_); }
  /// After an encoder's last layer: its output, normalised, as keys and values of every cross-attention.
  void EndStack(const StackSpec& stack);
  /// Logits (rows.size(), vocab) of the given rows of the step, at most max_logit_rows; overwritten by the next call.
  MatrixView<const float> Logits(std::span<const std::uint32_t> rows);

  std::size_t max_logit_rows() const { return logits_.view.rows(); }

 private:
  /// Rows [first, first + count) of each of the tensors below.
  struct Rows {
    std::size_t first = 0;
    std::size_t count = 0;
  };
  /// The selected batch's rows.
  Tensor Mine(const Tensor& all) const { return all.Rows(mine_.first, mine_.count); }
  /// x += block_out, as the model scales it.
  void AddBlock(Tensor out);
  /// out = MLP(FfnInput).
  Tensor Mlp(std::size_t layer, const MlpSpec& mlp);
  void CrossAttentionBlock(std::size_t layer);

  const ModelConfig& config_;
  DenseBackend& backend_;
  std::vector<Rows> batches_;  // of the stack
  Rows mine_;                  // of the selected batch

  Tensor residual_;     // (max_step_tokens, hidden)
  Tensor normed_;       // (max_step_tokens, hidden)
  Tensor block_out_;    // (max_step_tokens, hidden)
  Tensor projected_;    // (max_step_tokens, widest projection, or cross-attention's keys and values)
  Tensor heads_;        // (max_step_tokens, widest heads_width)
  Tensor gate_;         // (max_step_tokens, num_experts)
  Tensor shared_gate_;  // (max_step_tokens, 1)
  Tensor last_;         // (max_logit_rows, hidden)
  Tensor logits_;       // (max_logit_rows, vocab)
};

}  // namespace moe
