// The bias of a matmul over some panels.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/kernels.h"

namespace moe {

/// y += bias, the part of it that is for the outputs from panel `first_panel` on; nothing when there is no bias.
inline void AddPanelBias(const Kernels& kernels, std::span<const float> bias, std::size_t first_panel,
                         MatrixView<float> y) {
  if (bias.empty()) return;
  const std::span<const float> part = bias.subspan(first_panel * PackedMatrix::kPanelWidth, y.cols());
  for (std::size_t row = 0; row < y.rows(); ++row) kernels.Add(part, y.row(row));
}

}  // namespace moe
