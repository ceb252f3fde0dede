// A matrix product shared out over a pool: what both halves of the CPU's dense part are mostly made of.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "core/parallel.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/panel_bias.h"
#include "kernels/quantize.h"
#include "model/quantize_rows.h"

namespace moe {

class CpuMatMul {
 public:
  /// Room for x of (max_rows, max_inputs) in int8. `pool` and `kernels` must outlive it.
  CpuMatMul(ThreadPool& pool, const Kernels& kernels, std::size_t max_rows, std::size_t max_inputs)
      : pool_(pool), kernels_(kernels), quantized_(max_rows, max_inputs) {}

  /// y = x W^T (+ bias, when it is not empty).
  void Run(MatrixView<const float> x, const PackedMatrix& w, std::span<const float> bias, MatrixView<float> y) {
    const bool quantized = IsQuantized(w.type());
    if (quantized) QuantizeRows(pool_, kernels_, x, w.type(), quantized_);
    const std::size_t panels = w.panels();
    const std::size_t block = PanelsOfItem(w, x.rows());
    ShareOut(pool_, (panels + block - 1) / block, x.rows() * x.cols() * w.rows(), [&](std::size_t item, int) {
      const std::size_t begin = item * block;
      const std::size_t end = std::min(panels, begin + block);
      const MatrixView<float> out = y.Columns(begin * PackedMatrix::kPanelWidth, w.Outputs(begin, end));
      if (quantized) {
        kernels_.MatMulPanels(quantized_.view(), w, begin, end, out);
      } else {
        kernels_.MatMulPanels(x, w, begin, end, out);
      }
      AddPanelBias(kernels_, bias, begin, out);
    });
  }

 private:
  // Small items, so that the thread that ends last is not late by much, whatever else its processor does; but long
  // against the 100 ns that taking one costs: 256 KiB of weights are about 10 us of a core's share of the memory, and
  // eight panels are what a tile of one row takes at once. Many rows are long items anyway.
  std::size_t PanelsOfItem(const PackedMatrix& w, std::size_t rows) const {
    constexpr std::size_t kItemBytes = std::size_t{256} << 10;
    constexpr std::size_t kTilePanels = 8;
    constexpr std::size_t kFewRows = 16;
    const std::size_t panels = w.panels();
    const std::size_t shares = static_cast<std::size_t>(pool_.threads()) * (rows > kFewRows ? 4 : 1);
    const std::size_t bytes = kItemBytes * panels / std::max<std::size_t>(1, w.bytes());
    return std::clamp<std::size_t>(panels / shares, 1, (bytes + kTilePanels - 1) / kTilePanels * kTilePanels);
  }

  ThreadPool& pool_;
  const Kernels& kernels_;
  QuantizedRows quantized_;
};

}  // namespace moe
