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

namespace moe {

class CpuMatMul {
 public:
  /// Room for x of (max_rows, max_inputs) in int8. `pool` and `kernels` must outlive it.
  CpuMatMul(ThreadPool& pool, const Kernels& kernels, std::size_t max_rows, std::size_t max_inputs)
      : pool_(pool), kernels_(kernels), quantized_(max_rows, max_inputs) {}

  /// y = x W^T (+ bias, when it is not empty).
  void Run(MatrixView<const float> x, const PackedMatrix& w, std::span<const float> bias, MatrixView<float> y) {
    const bool quantized = IsQuantized(w.type());
    if (quantized) Quantize(x, w.type());
    const std::size_t panels = w.panels();
    // Several items a thread, so that a late one does not make the others wait long.
    const std::size_t block = std::max<std::size_t>(1, panels / (static_cast<std::size_t>(pool_.threads()) * 4));
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
  void Quantize(MatrixView<const float> x, WeightType type) {
    quantized_.Shape(x.rows(), x.cols(), type);
    ShareOut(pool_, x.rows(), x.rows() * x.cols(), [&](std::size_t row, int) {
      kernels_.QuantizeRow(x.row(row), GroupSize(type), quantized_.Groups(row, 0, x.cols()));
    });
  }

  ThreadPool& pool_;
  const Kernels& kernels_;
  QuantizedRows quantized_;
};

}  // namespace moe
