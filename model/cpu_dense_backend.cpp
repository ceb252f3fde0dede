// The dense part on the CPU. Work is cut over panels, rows or (rows, head) items; the cut never changes a result,
// because each output element has one order of summation (kernels/kernels.h).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/check.h"
#include "core/parallel.h"
#include "kernels/panel_bias.h"
#include "model/dense_backend.h"
#include "model/gate.h"

namespace moe {
namespace {

// Query rows of one attention item: enough to reuse the pointers to pages, few enough to share a prefill chunk out.
constexpr std::size_t kAttentionRows = 16;

class CpuDenseBackend final : public DenseBackend {
 public:
  CpuDenseBackend(const ModelConfig& config, DenseWeights weights, const Kernels& kernels, ThreadPool& pool,
                  CpuDenseOptions options)
      : config_(config),
        weights_(std::move(weights)),
        kernels_(kernels),
        pool_(pool),
        cache_(config, options.kv_pages),
        frequencies_(config.rope.Frequencies()),
        cos_(options.max_step_tokens * frequencies_.size()),
        sin_(options.max_step_tokens * frequencies_.size()),
        page_pointers_(static_cast<std::size_t>(pool.threads())) {
    const std::size_t context_pages = KvCache::PagesFor(static_cast<std::size_t>(config.context_length));
    for (auto& pointers : page_pointers_) pointers.resize(2 * std::min(context_pages, options.kv_pages));
    // An item covers one KV head of one entry's rows; entries and the 16-row cuts are at most the rows of a step.
    attention_items_.reserve(options.max_step_tokens);
  }

  Tensor Allocate(std::size_t rows, std::size_t cols) override {
    buffers_.emplace_back(rows * cols);
    return {MemorySpace::kHost, {buffers_.back().data(), rows, cols}};
  }

  KvCache& cache() override { return cache_; }

  void BeginStep(const StepBatch& batch) override {
    batch_ = &batch;
    const std::size_t half = frequencies_.size();
    ShareOut(pool_, batch.positions.size(), batch.positions.size() * half * 40, [&](std::size_t row, int) {
      for (std::size_t i = 0; i < half; ++i) {
        const double angle = batch.positions[row] * frequencies_[i];
        cos_[row * half + i] = static_cast<float>(std::cos(angle));
        sin_[row * half + i] = static_cast<float>(std::sin(angle));
      }
    });
    attention_items_.clear();
    for (std::size_t e = 0; e < batch.entries.size(); ++e)
      for (std::size_t row = 0; row < batch.entries[e].rows; row += kAttentionRows)
        attention_items_.push_back({e, row, std::min(kAttentionRows, batch.entries[e].rows - row)});
  }

  void Embed(Tensor x) override {
    const auto hidden = static_cast<std::size_t>(config_.hidden);
    const std::size_t row_bytes = hidden * BytesPerWeight(weights_.type);
    for (std::size_t row = 0; row < batch_->token_ids.size(); ++row) {
      const std::byte* source = weights_.embedding.data() + batch_->token_ids[row] * row_bytes;
      const WeightView stored{.type = weights_.type, .data = source, .rows = 1, .cols = hidden};
      for (std::size_t i = 0; i < hidden; ++i) x.view(row, i) = stored.at(0, i);
    }
  }

  void Norm(NormRole role, std::size_t layer, Tensor x, Tensor y) override {
    const std::vector<float>& weight = role == NormRole::kFinal       ? weights_.final_norm
                                       : role == NormRole::kAttention ? weights_.layers[layer].attention_norm
                                                                      : weights_.layers[layer].ffn_norm;
    ShareOut(pool_, x.view.rows(), x.view.rows() * x.view.cols() * 4, [&](std::size_t row, int) {
      kernels_.RmsNorm(x.view.row(row), weight, config_.rms_norm_eps, y.view.row(row));
    });
  }

  void Linear(LinearRole role, std::size_t layer, Tensor x, Tensor y) override {
    const LinearWeights linear = Weights(role, layer);
    const std::size_t panels = linear.matrix->panels();
    // Several items a thread, so that a late one does not make the others wait long.
    const std::size_t block = std::max<std::size_t>(1, panels / (static_cast<std::size_t>(pool_.threads()) * 4));
    const std::size_t work = x.view.rows() * x.view.cols() * linear.matrix->rows();
    ShareOut(pool_, (panels + block - 1) / block, work, [&](std::size_t item, int) {
      const std::size_t begin = item * block;
      const std::size_t end = std::min(panels, begin + block);
      kernels_.MatMulPanels(x.view, *linear.matrix, begin, end, y.view);
      if (linear.bias != nullptr) AddPanelBias(kernels_, *linear.bias, begin, end, y.view);
    });
  }

  void Attention(std::size_t layer, Tensor qkv, Tensor out) override {
    const AttentionSpec& spec = config_.layers[layer].attention;
    const auto kv_heads = static_cast<std::size_t>(spec.num_kv_heads);
    const auto dim = static_cast<std::size_t>(spec.head_dim);
    const std::size_t rows = qkv.view.rows();
    ShareOut(pool_, rows, rows * qkv.view.cols() * 4,
             [&](std::size_t row, int) { RotateRow(spec, row, qkv.view.row(row)); });
    for (const StepBatch::Entry& entry : batch_->entries) Append(layer, entry, qkv.view);

    std::size_t visible = 0;
    for (const StepBatch::Entry& entry : batch_->entries) visible += entry.rows * (entry.first_position + entry.rows);
    const std::size_t work = visible * static_cast<std::size_t>(spec.num_heads) * dim * 2;
    ShareOut(pool_, attention_items_.size() * kv_heads, work, [&](std::size_t index, int thread) {
      AttendItem(layer, attention_items_[index / kv_heads], index % kv_heads, thread, qkv.view, out.view);
    });
  }

  void SiluMul(Tensor gate_up) override {
    const std::size_t intermediate = gate_up.view.cols() / 2;
    ShareOut(pool_, gate_up.view.rows(), gate_up.view.rows() * intermediate * 10, [&](std::size_t row, int) {
      const std::span<float> both = gate_up.view.row(row);
      kernels_.SiluMul(both.first(intermediate), both.subspan(intermediate));
    });
  }

  void Add(Tensor y, Tensor x) override {
    for (std::size_t row = 0; row < x.view.rows(); ++row) kernels_.Add(y.view.row(row), x.view.row(row));
  }

  void Gate(std::size_t layer, Tensor y, Tensor logits, MatrixView<std::int32_t> ids,
            MatrixView<float> weights) override {
    Linear(LinearRole::kGate, layer, y, logits);
    const GateSpec& spec = config_.layers[layer].moe->gate;
    const std::size_t per_row = static_cast<std::size_t>(spec.num_experts * (spec.experts_per_token + 10));
    ShareOut(pool_, y.view.rows(), y.view.rows() * per_row, [&](std::size_t row, int) {
      SelectExperts(spec, kernels_, logits.view.row(row), ids.row(row), weights.row(row));
    });
  }

 private:
  struct LinearWeights {
    const PackedMatrix* matrix = nullptr;
    const std::vector<float>* bias = nullptr;
  };
  struct AttentionItem {
    std::size_t entry = 0;
    std::size_t row = 0;  // inside the entry
    std::size_t rows = 0;
  };

  LinearWeights Weights(LinearRole role, std::size_t layer) const {
    if (role == LinearRole::kHead) return {&weights_.head, nullptr};
    const LayerWeights& w = weights_.layers[layer];
    switch (role) {
      case LinearRole::kQkv: return {&w.attention.qkv, &w.attention.qkv_bias};
      case LinearRole::kAttentionOut: return {&w.attention.out, &w.attention.out_bias};
      case LinearRole::kGate: return {&w.gate, nullptr};
      case LinearRole::kMlpGateUp: return {&w.dense_mlp.gate_up, &w.dense_mlp.gate_up_bias};
      case LinearRole::kMlpDown: return {&w.dense_mlp.down, &w.dense_mlp.down_bias};
      case LinearRole::kHead: break;
    }
    MOE_CHECK(false, "a linear role without weights");
    return {};
  }

  void RotateRow(const AttentionSpec& spec, std::size_t row, std::span<float> qkv) {
    const std::size_t half = frequencies_.size();
    const auto heads = static_cast<std::size_t>(spec.num_heads + spec.num_kv_heads);  // q, then k, lie side by side
    const auto dim = static_cast<std::size_t>(spec.head_dim);
    kernels_.Rope({qkv.data(), heads, dim}, cos_.span().subspan(row * half, half),
                  sin_.span().subspan(row * half, half), config_.rope.pairing);
  }

  void Append(std::size_t layer, const StepBatch::Entry& entry, MatrixView<const float> qkv) {
    const AttentionSpec& spec = config_.layers[layer].attention;
    const auto heads = static_cast<std::size_t>(spec.num_heads);
    const auto kv_heads = static_cast<std::size_t>(spec.num_kv_heads);
    const auto dim = static_cast<std::size_t>(spec.head_dim);
    for (std::size_t r = 0; r < entry.rows; ++r) {
      const std::size_t position = entry.first_position + r;
      const PageId page = entry.pages[position / kPageTokens];
      const std::size_t column = position % kPageTokens;
      const std::span<const float> row = qkv.row(entry.first_row + r);
      for (std::size_t h = 0; h < kv_heads; ++h) {
        const std::span<const float> key = row.subspan((heads + h) * dim, dim);
        float* keys = cache_.keys(layer, page, h);
        for (std::size_t d = 0; d < dim; ++d) keys[d * kPageTokens + column] = key[d];
        const std::span<const float> value = row.subspan((heads + kv_heads + h) * dim, dim);
        std::memcpy(cache_.values(layer, page, h) + column * dim, value.data(), dim * sizeof(float));
      }
    }
  }

  void AttendItem(std::size_t layer, const AttentionItem& item, std::size_t kv_head, int thread,
                  MatrixView<const float> qkv, MatrixView<float> out) {
    const AttentionSpec& spec = config_.layers[layer].attention;
    const StepBatch::Entry& entry = batch_->entries[item.entry];
    const auto group = static_cast<std::size_t>(spec.num_heads / spec.num_kv_heads);
    const auto dim = static_cast<std::size_t>(spec.head_dim);
    const std::size_t last = entry.first_position + item.row + item.rows;  // one past the last visible position
    const std::size_t pages = KvCache::PagesFor(last);
    const std::span<const float*> pointers(page_pointers_[static_cast<std::size_t>(thread)]);
    const std::span<const float*> keys = pointers.first(pages);
    const std::span<const float*> values = pointers.subspan(pointers.size() / 2, pages);
    for (std::size_t p = 0; p < pages; ++p) {
      keys[p] = cache_.keys(layer, entry.pages[p], kv_head);
      values[p] = cache_.values(layer, entry.pages[p], kv_head);
    }
    for (std::size_t r = item.row; r < item.row + item.rows; ++r) {
      const std::size_t end = entry.first_position + r + 1;
      const auto window = static_cast<std::size_t>(spec.window);
      const std::size_t column = kv_head * group * dim;
      const std::size_t row = entry.first_row + r;
      kernels_.Attention({.queries = {qkv.row(row).data() + column, group, dim},
                          .key_pages = keys,
                          .value_pages = values,
                          .value_stride = dim,
                          .begin = window > 0 && end > window ? end - window : 0,
                          .end = end,
                          .scale = spec.scale,
                          .out = {out.row(row).data() + column, group, dim}});
    }
  }

  const ModelConfig& config_;
  const DenseWeights weights_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  KvCache cache_;
  const std::vector<double> frequencies_;
  AlignedBuffer<float> cos_;  // (max_step_tokens, width / 2)
  AlignedBuffer<float> sin_;
  std::vector<std::vector<const float*>> page_pointers_;  // by thread: keys, then values
  std::vector<AttentionItem> attention_items_;
  std::vector<AlignedBuffer<float>> buffers_;
  const StepBatch* batch_ = nullptr;
};

}  // namespace

std::unique_ptr<DenseBackend> MakeCpuDenseBackend(const ModelConfig& config, DenseWeights weights,
                                                  const Kernels& kernels, ThreadPool& pool, CpuDenseOptions options) {
  return std::make_unique<CpuDenseBackend>(config, std::move(weights), kernels, pool, options);
}

}  // namespace moe
