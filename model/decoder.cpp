#include "model/decoder.h"

#include "core/check.h"
#include "model/step_buffers.h"

namespace moe {

Decoder::Decoder(const ModelConfig& config, DenseBackend& backend, std::size_t max_step_tokens,
                 std::size_t max_logit_rows, std::size_t max_batches)
    : config_(config), backend_(backend) {
  batches_.reserve(max_batches);
  const auto hidden = static_cast<std::size_t>(config.hidden);
  residual_ = backend.Allocate(max_step_tokens, hidden);
  normed_ = backend.Allocate(max_step_tokens, hidden);
  block_out_ = backend.Allocate(max_step_tokens, hidden);
  projected_ = backend.Allocate(max_step_tokens, Widest(config, ProjectedWidth));
  heads_ = backend.Allocate(max_step_tokens, Widest(config, HeadsWidth));
  gate_ = backend.Allocate(max_step_tokens, static_cast<std::size_t>(config.num_experts()));
  shared_gate_ = backend.Allocate(max_step_tokens, 1);
  last_ = backend.Allocate(max_logit_rows, hidden);
  logits_ = backend.Allocate(max_logit_rows, static_cast<std::size_t>(config.vocab_size));
}

void Decoder::Begin(std::span<const StepBatch> batches) {
  MOE_CHECK(!batches.empty() && batches.size() <= batches_.capacity());
  batches_.clear();
  std::size_t rows = 0;
  for (const StepBatch& batch : batches) {
    batches_.push_back({.first = rows, .count = batch.token_ids.size()});
    rows += batch.token_ids.size();
  }
  MOE_CHECK(rows <= residual_.view.rows());
  backend_.BeginStack(batches);
  for (std::size_t batch = 0; batch < batches.size(); ++batch) {
    Select(batch);
    backend_.Embed(residual());
    if (config_.embedding_scale != 1) backend_.Scale(config_.embedding_scale, residual());
  }
  Select(0);
}

void Decoder::Select(std::size_t batch) {
  mine_ = batches_[batch];
  backend_.Select(batch);
}

void Decoder::AddBlock(Tensor out) { backend_.Add(config_.residual_scale, out, residual()); }

void Decoder::AttentionBlock(std::size_t layer) {
  const LayerSpec& spec = config_.layers[layer];
  const Tensor normed = Mine(normed_);
  const Tensor projected = Mine(projected_).Columns(0, static_cast<std::size_t>(spec.attention.projected_width()));
  const Tensor heads = Mine(heads_).Columns(0, static_cast<std::size_t>(spec.attention.heads_width()));
  const Tensor out = Mine(block_out_);
  backend_.Norm(NormRole::kAttention, layer, residual(), normed);
  backend_.Linear(LinearRole::kProjection, layer, normed, projected);
  backend_.Attention(layer, projected, heads);
  backend_.Linear(LinearRole::kAttentionOut, layer, heads, out);
  AddBlock(out);
  if (spec.cross_attention) CrossAttentionBlock(layer);
}

void Decoder::CrossAttentionBlock(std::size_t layer) {
  const auto width = static_cast<std::size_t>(CrossWidth(*config_.layers[layer].cross_attention));
  const Tensor normed = Mine(normed_);
  const Tensor queries = Mine(projected_).Columns(0, width);
  const Tensor heads = Mine(heads_).Columns(0, width);
  const Tensor out = Mine(block_out_);
  backend_.Norm(NormRole::kCross, layer, residual(), normed);
  backend_.Linear(LinearRole::kCrossQuery, layer, normed, queries);
  backend_.CrossAttention(layer, queries, heads);
  backend_.Linear(LinearRole::kCrossOut, layer, heads, out);
  AddBlock(out);
}

Tensor Decoder::FfnInput(std::size_t layer) {
  const Tensor normed = Mine(normed_);
  backend_.Norm(NormRole::kFfn, layer, residual(), normed);
  return normed;
}

Tensor Decoder::Mlp(std::size_t layer, const MlpSpec& mlp) {
  const Tensor out = Mine(block_out_);
  backend_.Mlp(layer, mlp, Mine(normed_), out);
  return out;
}

void Decoder::DenseFfn(std::size_t layer) { AddBlock(Mlp(layer, config_.layers[layer].dense_mlp)); }

void Decoder::Route(std::size_t layer, MatrixView<std::int32_t> ids, MatrixView<float> weights) {
  backend_.Gate(layer, Mine(normed_), Mine(gate_), ids, weights);
}

Tensor Decoder::SharedExperts(std::size_t layer) {
  const MoeSpec& moe = *config_.layers[layer].moe;
  if (!moe.shared) return {};
  const Tensor out = Mlp(layer, *moe.shared);
  if (moe.shared_gate) {
    const Tensor gate = Mine(shared_gate_);
    backend_.Linear(LinearRole::kSharedGate, layer, Mine(normed_), gate);
    backend_.ScaleRows(gate, out);
  }
  return out;
}

void Decoder::EndStack(const StackSpec& stack) {
  if (!stack.encoder) return;
  MOE_CHECK(batches_.size() == 1, "an encoder's rows are one batch");
  const Tensor normed = Mine(normed_);
  backend_.Norm(NormRole::kEncoder, 0, residual(), normed);
  for (std::size_t layer = 0; layer < config_.layers.size(); ++layer) {
    const auto& cross = config_.layers[layer].cross_attention;
    if (!cross) continue;
    const Tensor key_value = Mine(projected_).Columns(0, static_cast<std::size_t>(CrossKeyValueWidth(*cross)));
    backend_.Linear(LinearRole::kCrossKeyValue, layer, normed, key_value);
    backend_.StoreCross(layer, key_value);
  }
}

MatrixView<const float> Decoder::Logits(std::span<const std::uint32_t> rows) {
  MOE_CHECK(rows.size() <= max_logit_rows());
  for (std::size_t i = 0; i < rows.size(); ++i)
    backend_.Norm(NormRole::kFinal, 0, residual_.Rows(rows[i], 1), last_.Rows(i, 1));
  const Tensor logits = logits_.Rows(0, rows.size());
  backend_.Linear(LinearRole::kHead, 0, last_.Rows(0, rows.size()), logits);
  if (config_.logits_scale != 1) backend_.Scale(config_.logits_scale, logits);
  return logits.view;
}

}  // namespace moe
