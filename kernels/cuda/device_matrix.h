// Packed weights in the form that a device's kernels read.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/cuda/expert_kernels.h"
#include "kernels/packed_matrix.h"

namespace moe::cuda {

/// How a matrix (outputs, inputs) lies on a device, in panels of 16 outputs:
///   bf16, f16: rows of PaddedInputs, one an output, zeros past the last output and the last input: read as tiles by
///   our
///              kernels, and row by row by cuBLAS;
///   int8, int4: the panels of a PackedMatrix as they are.
struct DeviceMatrixForm {
  std::size_t panels = 0;
  std::size_t panel_bytes = 0;
  std::size_t value_bytes = 0;  // of an integer panel, before its scales

  std::size_t bytes() const { return panels * panel_bytes; }
};

/// Of a matrix whose type is not f32, in which no device computes.
DeviceMatrixForm DeviceForm(const PackedMatrix& matrix);

/// One panel, DeviceForm(matrix).panel_bytes long.
void WriteDevicePanel(const PackedMatrix& matrix, std::size_t panel, std::span<std::byte> out);

/// Matrices of this form, one for each slot, from `weights` on.
inline SlotMatrices SlotsOf(const DeviceMatrixForm& form, const std::byte* weights, const float* bias) {
  return {.weights = weights,
          .slot_bytes = form.bytes(),
          .panel_bytes = form.panel_bytes,
          .value_bytes = form.value_bytes,
          .bias = bias};
}

}  // namespace moe::cuda
