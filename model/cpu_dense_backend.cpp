// The dense part on the CPU. Work is cut over panels, rows or (row, head) items; the cut never changes a result,
// because each output element has one order of summation (kernels/kernels.h).
#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/check.h"
#include "core/parallel.h"
#include "model/cpu_attention.h"
#include "model/cpu_matmul.h"
#include "model/cpu_mlp.h"
#include "model/dense_backend.h"
#include "model/gate.h"
#include "model/step_buffers.h"

namespace moe {
namespace {

int OwnIntermediate(const LayerSpec& layer) {
  const MlpSpec* mlp = OwnMlp(layer);
  return mlp == nullptr ? 0 : mlp->intermediate;
}

// The type of the MLPs that the router computes itself, which all have the same.
WeightType OwnMlpType(const DenseWeights& weights) {
  for (const LayerWeights& layer : weights.layers)
    if (!layer.mlp.up.empty()) return layer.mlp.up.type();
  return WeightType::kF32;
}

// The inputs of the widest quantized matrix: 0 when there is none.
std::size_t WidestQuantizedInput(const DenseWeights& weights) {
  std::size_t widest = 0;
  const auto look = [&](const PackedMatrix& matrix) {
    if (IsQuantized(matrix.type())) widest = std::max(widest, matrix.cols());
  };
  look(weights.head);
  for (const LayerWeights& layer : weights.layers) {
    look(layer.attention.projection);
    look(layer.attention.out);
    look(layer.attention.query_up);
    if (!layer.cross) continue;
    look(layer.cross->query);
    look(layer.cross->key_value);
    look(layer.cross->out);
  }
  return widest;
}

class CpuDenseBackend final : public DenseBackend {
 public:
  CpuDenseBackend(const ModelConfig& config, DenseWeights weights, const Kernels& kernels, ThreadPool& pool,
                  const CpuDenseOptions& options)
      : config_(config),
        weights_(std::move(weights)),
        kernels_(kernels),
        pool_(pool),
        matmul_(pool, kernels, options.max_step_tokens, WidestQuantizedInput(weights_)),
        mlp_(kernels, pool,
             {.rows = options.max_step_tokens,
              .mlps = 1,
              .hidden = static_cast<std::size_t>(config.hidden),
              .intermediate = Widest(config, OwnIntermediate),
              .type = OwnMlpType(weights_)}),
        cache_(config, options.kv),
        routing_(options.routing),
        expert_counts_(static_cast<std::size_t>(config.num_experts())) {
    const CpuAttention::Parts parts{
        .config = config_, .weights = weights_, .kernels = kernels_, .pool = pool_, .matmul = matmul_, .cache = cache_};
    // Parts of a step are about equal: the second and later ones have half of it at most.
    for (std::size_t batch = 0; batch < options.max_batches; ++batch) {
      const std::size_t rows = batch == 0 ? options.max_step_tokens : (options.max_step_tokens + 1) / 2;
      attention_.push_back(std::make_unique<CpuAttention>(parts, rows, std::ranges::max(options.kv.pages)));
    }
  }

  Tensor Allocate(std::size_t rows, std::size_t cols) override {
    buffers_.emplace_back(rows * cols);
    return {MemorySpace::kHost, {buffers_.back().data(), rows, cols}};
  }

  KvCache& cache() override { return cache_; }

  void BeginStack(std::span<const StepBatch> batches) override {
    MOE_CHECK(!batches.empty() && batches.size() <= attention_.size());
    batches_ = batches;
    for (std::size_t batch = 0; batch < batches.size(); ++batch) attention_[batch]->BeginStack(batches[batch]);
    Select(0);
  }

  void Select(std::size_t batch) override {
    MOE_CHECK(batch < batches_.size());
    selected_ = batch;
  }

  void Embed(Tensor x) override {
    const auto hidden = static_cast<std::size_t>(config_.hidden);
    const std::size_t row_bytes = hidden * BytesPerWeight(weights_.embedding_type);
    const std::span<const std::uint32_t> tokens = batches_[selected_].token_ids;
    for (std::size_t row = 0; row < tokens.size(); ++row) {
      const std::uint32_t token = tokens[row];
      MOE_CHECK(token < static_cast<std::uint32_t>(config_.vocab_size), "a token id is checked when it comes in");
      const std::byte* source = weights_.embedding.data() + token * row_bytes;
      const WeightView stored{.type = weights_.embedding_type, .data = source, .rows = 1, .cols = hidden};
      for (std::size_t i = 0; i < hidden; ++i) x.view(row, i) = stored.at(0, i);
    }
  }

  void Norm(NormRole role, std::size_t layer, Tensor x, Tensor y) override {
    const std::vector<float>& weight = NormWeights(role, layer);
    ShareOut(pool_, x.view.rows(), x.view.rows() * x.view.cols() * 4, [&](std::size_t row, int) {
      kernels_.RmsNorm(x.view.row(row), weight, config_.rms_norm_eps, y.view.row(row));
    });
  }

  void Linear(LinearRole role, std::size_t layer, Tensor x, Tensor y) override {
    const LinearWeights linear = Weights(role, layer);
    matmul_.Run(x.view, *linear.matrix, linear.bias, y.view);
  }

  void Attention(std::size_t layer, Tensor projected, Tensor out) override {
    attention().Self(layer, projected.view, out.view);
  }

  void StoreCross(std::size_t layer, Tensor key_value) override { attention().StoreCross(layer, key_value.view); }

  void CrossAttention(std::size_t layer, Tensor queries, Tensor out) override {
    attention().Cross(layer, queries.view, out.view);
  }

  void Mlp(std::size_t layer, const MlpSpec& mlp, Tensor x, Tensor y) override {
    const std::array<std::uint32_t, 2> offsets = {0, static_cast<std::uint32_t>(x.view.rows())};
    const MlpWeights* const weights = &weights_.layers[layer].mlp;
    mlp_.Run(mlp, {&weights, 1}, {.offsets = offsets, .in = x.view, .out = y.view});
  }

  void Scale(float factor, Tensor x) override {
    for (std::size_t row = 0; row < x.view.rows(); ++row) kernels_.Scale(factor, x.view.row(row));
  }

  void Add(float scale, Tensor y, Tensor x) override {
    for (std::size_t row = 0; row < x.view.rows(); ++row) kernels_.AddScaled(scale, y.view.row(row), x.view.row(row));
  }

  void ScaleRows(Tensor gate, Tensor x) override {
    for (std::size_t row = 0; row < x.view.rows(); ++row) {
      kernels_.Sigmoid(gate.view.row(row));
      kernels_.Scale(gate.view(row, 0), x.view.row(row));
    }
  }

  void Gate(std::size_t layer, Tensor y, Tensor logits, MatrixView<std::int32_t> ids,
            MatrixView<float> weights) override {
    const LayerWeights& w = weights_.layers[layer];
    matmul_.Run(y.view, w.gate, w.gate_bias, logits.view);
    const GateSpec& spec = config_.layers[layer].moe->gate;
    const std::size_t per_row = static_cast<std::size_t>(spec.num_experts * (spec.experts_per_token + 10));
    const StepBatch& batch = batches_[selected_];
    ShareOut(pool_, y.view.rows(), y.view.rows() * per_row, [&](std::size_t row, int) {
      SelectExperts(spec, kernels_, w.correction_bias, logits.view.row(row), ids.row(row), weights.row(row));
      if (routing_ != nullptr) routing_->Choose(layer, batch.token_ids[row], batch.positions[row], ids.row(row));
    });
    for (const StepBatch::Entry& entry : batch.entries) {
      ApplyCapacity(spec, ids.Rows(entry.first_row, entry.rows), expert_counts_,
                    weights.Rows(entry.first_row, entry.rows));
    }
  }

 private:
  struct LinearWeights {
    const PackedMatrix* matrix = nullptr;
    std::span<const float> bias;
  };

  LinearWeights Weights(LinearRole role, std::size_t layer) const {
    if (role == LinearRole::kHead) return {&weights_.head, {}};
    const LayerWeights& w = weights_.layers[layer];
    switch (role) {
      case LinearRole::kProjection: return {&w.attention.projection, w.attention.projection_bias};
      case LinearRole::kAttentionOut: return {&w.attention.out, w.attention.out_bias};
      case LinearRole::kCrossQuery: return {&w.cross->query, {}};
      case LinearRole::kCrossKeyValue: return {&w.cross->key_value, {}};
      case LinearRole::kCrossOut: return {&w.cross->out, {}};
      case LinearRole::kSharedGate: return {&w.shared_gate, {}};
      case LinearRole::kHead: break;
    }
    MOE_CHECK(false, "a linear role without weights");
    return {};
  }

  const std::vector<float>& NormWeights(NormRole role, std::size_t layer) const {
    switch (role) {
      case NormRole::kAttention: return weights_.layers[layer].attention_norm;
      case NormRole::kCross: return weights_.layers[layer].cross->norm;
      case NormRole::kFfn: return weights_.layers[layer].ffn_norm;
      case NormRole::kEncoder: return weights_.encoder_norm;
      case NormRole::kFinal: break;
    }
    return weights_.final_norm;
  }

  CpuAttention& attention() { return *attention_[selected_]; }

  const ModelConfig& config_;
  const DenseWeights weights_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  CpuMatMul matmul_;
  CpuMlp mlp_;
  KvCache cache_;
  std::vector<std::unique_ptr<CpuAttention>> attention_;  // by batch: each keeps its rows' angles and items
  const RoutingOverride* const routing_;
  std::vector<std::uint32_t> expert_counts_;  // (num_experts), for gates with a capacity
  std::vector<AlignedBuffer<float>> buffers_;
  std::span<const StepBatch> batches_;  // of the stack
  std::size_t selected_ = 0;
};

}  // namespace

std::unique_ptr<DenseBackend> MakeCpuDenseBackend(const ModelConfig& config, DenseWeights weights,
                                                  const Kernels& kernels, ThreadPool& pool, CpuDenseOptions options) {
  return std::make_unique<CpuDenseBackend>(config, std::move(weights), kernels, pool, options);
}

}  // namespace moe
