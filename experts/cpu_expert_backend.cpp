// Experts on the CPU in three passes over (slot, block of panels) or row items: gate and up, activation, down. Each
// output element has one writer and one order of summation, so the cut does not show in the bits.
#include <algorithm>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/check.h"
#include "core/parallel.h"
#include "experts/expert_backend.h"
#include "kernels/panel_bias.h"
#include "model/mlp_activation.h"

namespace moe {
namespace {

// Panels of 16 outputs in an item: at hidden 2048 in bf16 a block of 4 streams 256 KiB, long against the few hundred
// nanoseconds that taking an item costs, short against an expert (so that threads finish together).
constexpr std::size_t kBlockPanels = 4;

class CpuExpertBackend final : public ExpertBackend {
 public:
  CpuExpertBackend(const Kernels& kernels, ThreadPool& pool, CpuExpertOptions options)
      : kernels_(kernels), pool_(pool), scratch_(options.max_rows * options.inner_width) {}

  std::string_view device() const override { return "cpu"; }

  void Run(const ExpertShard::Layer& layer, const GroupedRows& rows) override {
    MOE_CHECK(rows.offsets.size() == layer.weights.size() + 1 && rows.offsets.back() == rows.in.rows());
    if (rows.in.rows() == 0) return;
    const std::size_t width = Widest(layer);
    MOE_CHECK(rows.in.rows() * width <= scratch_.size());
    const MatrixView<float> hidden(scratch_.data(), rows.in.rows(), width);

    const std::size_t work = rows.in.rows() * rows.in.cols() * width;
    const auto gate_up = [](const MlpWeights& w) -> const PackedMatrix& { return w.gate_up; };
    const auto down = [](const MlpWeights& w) -> const PackedMatrix& { return w.down; };
    Multiply(layer, rows.offsets, gate_up, rows.in, hidden, work, &MlpWeights::gate_up_bias);
    Activate(layer, rows.offsets, hidden);
    Multiply(layer, rows.offsets, down, hidden, rows.out, work / 2, &MlpWeights::down_bias);
  }

 private:
  static std::size_t Widest(const ExpertShard::Layer& layer) {
    std::size_t widest = 0;
    for (const MlpWeights& weights : layer.weights) widest = std::max(widest, weights.gate_up.rows());
    return widest;
  }

  // out rows of each slot = in rows * matrix(slot)^T + bias. Columns of `in` past the matrix's are not read.
  template <typename Matrix>
  void Multiply(const ExpertShard::Layer& layer, std::span<const std::uint32_t> offsets, const Matrix& matrix,
                MatrixView<const float> in, MatrixView<float> out, std::size_t work,
                std::vector<float> MlpWeights::*bias) {
    std::size_t blocks = 0;  // of the slot with the most, so that an item's slot and block follow from its number
    for (const MlpWeights& weights : layer.weights)
      blocks = std::max(blocks, (matrix(weights).panels() + kBlockPanels - 1) / kBlockPanels);
    const auto item = [&](std::size_t index, int) {
      const std::size_t slot = index / blocks;
      const std::size_t begin = offsets[slot];
      const std::size_t count = offsets[slot + 1] - begin;
      const MlpWeights& weights = layer.weights[slot];
      const PackedMatrix& w = matrix(weights);
      const std::size_t first = index % blocks * kBlockPanels;
      if (count == 0 || first >= w.panels()) return;
      const std::size_t last = std::min(w.panels(), first + kBlockPanels);
      const MatrixView<float> y = out.Rows(begin, count).Columns(0, w.rows());
      kernels_.MatMulPanels(in.Rows(begin, count).Columns(0, w.cols()), w, first, last, y);
      AddPanelBias(kernels_, weights.*bias, first, last, y);
    };
    ShareOut(pool_, layer.weights.size() * blocks, work, item);
  }

  void Activate(const ExpertShard::Layer& layer, std::span<const std::uint32_t> offsets, MatrixView<float> hidden) {
    for (std::size_t slot = 0; slot < layer.weights.size(); ++slot) {
      const auto item = [&](std::size_t i, int) { moe::Activate(layer.mlp, kernels_, hidden.row(offsets[slot] + i)); };
      const std::size_t count = offsets[slot + 1] - offsets[slot];
      ShareOut(pool_, count, count * hidden.cols() * 5, item);
    }
  }

  const Kernels& kernels_;
  ThreadPool& pool_;
  AlignedBuffer<float> scratch_;  // (max_rows, inner_width)
};

}  // namespace

std::unique_ptr<ExpertBackend> MakeCpuExpertBackend(const Kernels& kernels, ThreadPool& pool,
                                                    CpuExpertOptions options) {
  return std::make_unique<CpuExpertBackend>(kernels, pool, options);
}

}  // namespace moe
