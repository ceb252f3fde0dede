// The bias of a matmul over some panels.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "kernels/kernels.h"

namespace moe {

/// y(T, n) += bias (n) in the outputs of panels [panel_begin, panel_end); nothing when there is no bias.
inline void AddPanelBias(const Kernels& kernels, std::span<const float> bias, std::size_t panel_begin,
                         std::size_t panel_end, MatrixView<float> y) {
  if (bias.empty()) return;
  const std::size_t begin = panel_begin * PackedMatrix::kPanelWidth;
  const std::size_t end = std::min(y.cols(), panel_end * PackedMatrix::kPanelWidth);
  for (std::size_t row = 0; row < y.rows(); ++row)
    kernels.Add(bias.subspan(begin, end - begin), y.row(row).subspan(begin, end - begin));
}

}  // namespace moe
