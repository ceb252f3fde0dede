// A matrix product shared out over a pool: what both halves of the CPU's dense part are mostly made of.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "core/parallel.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/panel_bias.h"

namespace moe {

/// y = x W^T (+ bias, when it is not empty).
inline void MatMul(ThreadPool& pool, const Kernels& kernels, MatrixView<const float> x, const PackedMatrix& w,
                   std::span<const float> bias, MatrixView<float> y) {
  const std::size_t panels = w.panels();
  // Several items a thread, so that a late one does not make the others wait long.
  const std::size_t block = std::max<std::size_t>(1, panels / (static_cast<std::size_t>(pool.threads()) * 4));
  ShareOut(pool, (panels + block - 1) / block, x.rows() * x.cols() * w.rows(), [&](std::size_t item, int) {
    const std::size_t begin = item * block;
    const std::size_t end = std::min(panels, begin + block);
    kernels.MatMulPanels(x, w, begin, end, y);
    AddPanelBias(kernels, bias, begin, end, y);
  });
}

}  // namespace moe
