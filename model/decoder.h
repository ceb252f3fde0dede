// One pass of a decoder-only model over a step's rows, in the pieces between which a router exchanges rows with
// workers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/matrix.h"
#include "model/config.h"
#include "model/dense_backend.h"

namespace moe {

/// Holds the residual stream of one step. Call order: Begin, then for each layer AttentionBlock, FfnInput and either
/// DenseMlp or (Route and whatever adds the experts' rows to `residual`), then Logits for the rows wanted.
class Decoder {
 public:
  Decoder(const ModelConfig& config, DenseBackend& backend, std::size_t max_step_tokens, std::size_t max_logit_rows);

  /// x = embedding of the batch's tokens.
  void Begin(const StepBatch& batch);
  /// x += Attn(rms(x)).
  void AttentionBlock(std::size_t layer);
  /// rms(x) of the FFN, (rows, hidden): what the experts read.
  Tensor FfnInput(std::size_t layer);
  /// x += MLP(FfnInput).
  void DenseMlp(std::size_t layer);
  /// Experts of FfnInput's rows: ids and weights (rows, experts_per_token).
  void Route(std::size_t layer, MatrixView<std::int32_t> ids, MatrixView<float> weights);
  /// x (rows, hidden).
  Tensor residual() const { return residual_.Rows(0, rows_); }
  /// Logits (rows.size(), vocab) of the given rows of the step, at most max_logit_rows; overwritten by the next call.
  MatrixView<const float> Logits(std::span<const std::uint32_t> rows);

  std::size_t max_logit_rows() const { return logits_.view.rows(); }

 private:
  const ModelConfig& config_;
  DenseBackend& backend_;
  std::size_t rows_ = 0;

  Tensor residual_;   // (max_step_tokens, hidden)
  Tensor normed_;     // (max_step_tokens, hidden)
  Tensor block_out_;  // (max_step_tokens, hidden)
  Tensor qkv_;        // (max_step_tokens, widest q + k + v)
  Tensor heads_;      // (max_step_tokens, widest heads * head_dim)
  Tensor mlp_;        // (max_step_tokens, widest 2 * intermediate of the dense layers)
  Tensor gate_;       // (max_step_tokens, num_experts)
  Tensor last_;       // (max_logit_rows, hidden)
  Tensor logits_;     // (max_logit_rows, vocab)
};

}  // namespace moe
