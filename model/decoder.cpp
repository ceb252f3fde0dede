#include "model/decoder.h"

#include <algorithm>

#include "core/check.h"

namespace moe {
namespace {

std::size_t QueryWidth(const AttentionSpec& spec) { return static_cast<std::size_t>(spec.num_heads * spec.head_dim); }

std::size_t QkvWidth(const AttentionSpec& spec) {
  return static_cast<std::size_t>((spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim);
}

std::size_t DenseMlpWidth(const LayerSpec& layer) {
  return layer.moe ? 0 : 2 * static_cast<std::size_t>(layer.dense_mlp.intermediate);
}

// The largest `width` of a layer.
template <typename Width>
std::size_t Widest(const ModelConfig& config, Width&& width) {
  std::size_t widest = 0;
  for (const LayerSpec& layer : config.layers) widest = std::max(widest, width(layer));
  return widest;
}

}  // namespace

Decoder::Decoder(const ModelConfig& config, DenseBackend& backend, std::size_t max_step_tokens,
                 std::size_t max_logit_rows)
    : config_(config), backend_(backend) {
  const auto hidden = static_cast<std::size_t>(config.hidden);
  const auto by_attention = [](auto width) { return [width](const LayerSpec& l) { return width(l.attention); }; };
  residual_ = backend.Allocate(max_step_tokens, hidden);
  normed_ = backend.Allocate(max_step_tokens, hidden);
  block_out_ = backend.Allocate(max_step_tokens, hidden);
  qkv_ = backend.Allocate(max_step_tokens, Widest(config, by_attention(QkvWidth)));
  heads_ = backend.Allocate(max_step_tokens, Widest(config, by_attention(QueryWidth)));
  mlp_ = backend.Allocate(max_step_tokens, Widest(config, DenseMlpWidth));
  gate_ = backend.Allocate(max_step_tokens, static_cast<std::size_t>(config.num_experts()));
  last_ = backend.Allocate(max_logit_rows, hidden);
  logits_ = backend.Allocate(max_logit_rows, static_cast<std::size_t>(config.vocab_size));
}

void Decoder::Begin(const StepBatch& batch) {
  rows_ = batch.token_ids.size();
  MOE_CHECK(rows_ <= residual_.view.rows());
  backend_.BeginStep(batch);
  backend_.Embed(residual());
}

void Decoder::AttentionBlock(std::size_t layer) {
  const AttentionSpec& spec = config_.layers[layer].attention;
  const Tensor normed = normed_.Rows(0, rows_);
  const Tensor qkv = qkv_.Rows(0, rows_).Columns(0, QkvWidth(spec));
  const Tensor heads = heads_.Rows(0, rows_).Columns(0, QueryWidth(spec));
  const Tensor out = block_out_.Rows(0, rows_);
  backend_.Norm(NormRole::kAttention, layer, residual(), normed);
  backend_.Linear(LinearRole::kQkv, layer, normed, qkv);
  backend_.Attention(layer, qkv, heads);
  backend_.Linear(LinearRole::kAttentionOut, layer, heads, out);
  backend_.Add(out, residual());
}

Tensor Decoder::FfnInput(std::size_t layer) {
  const Tensor normed = normed_.Rows(0, rows_);
  backend_.Norm(NormRole::kFfn, layer, residual(), normed);
  return normed;
}

void Decoder::DenseMlp(std::size_t layer) {
  const auto intermediate = static_cast<std::size_t>(config_.layers[layer].dense_mlp.intermediate);
  const Tensor gate_up = mlp_.Rows(0, rows_).Columns(0, 2 * intermediate);
  const Tensor out = block_out_.Rows(0, rows_);
  backend_.Linear(LinearRole::kMlpGateUp, layer, normed_.Rows(0, rows_), gate_up);
  backend_.SiluMul(gate_up);
  backend_.Linear(LinearRole::kMlpDown, layer, gate_up.Columns(0, intermediate), out);
  backend_.Add(out, residual());
}

void Decoder::Route(std::size_t layer, MatrixView<std::int32_t> ids, MatrixView<float> weights) {
  backend_.Gate(layer, normed_.Rows(0, rows_), gate_.Rows(0, rows_), ids, weights);
}

MatrixView<const float> Decoder::Logits(std::span<const std::uint32_t> rows) {
  MOE_CHECK(rows.size() <= max_logit_rows());
  for (std::size_t i = 0; i < rows.size(); ++i)
    backend_.Norm(NormRole::kFinal, 0, residual_.Rows(rows[i], 1), last_.Rows(i, 1));
  const Tensor logits = logits_.Rows(0, rows.size());
  backend_.Linear(LinearRole::kHead, 0, last_.Rows(0, rows.size()), logits);
  return logits.view;
}

}  // namespace moe
