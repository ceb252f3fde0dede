#include "kernels/cuda/device_matrix.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"

namespace moe::cuda {

DeviceMatrixForm DeviceForm(const PackedMatrix& matrix) {
  if (matrix.empty()) return {};
  MOE_CHECK(matrix.type() != WeightType::kF32, "no kernel of a device takes weights in f32");
  DeviceMatrixForm form{.panels = matrix.panels()};
  if (IsQuantized(matrix.type())) {
    form.panel_bytes = matrix.bytes() / matrix.panels();
    form.value_bytes = static_cast<std::size_t>(matrix.scales(0) - matrix.panel(0));
  } else {
    form.panel_bytes = PackedMatrix::kPanelWidth * RowBytes(matrix.cols(), matrix.type());
  }
  return form;
}

void WriteDevicePanel(const PackedMatrix& matrix, std::size_t panel, std::span<std::byte> out) {
  MOE_CHECK(panel < matrix.panels() && out.size() == DeviceForm(matrix).panel_bytes);
  const std::byte* from = matrix.panel(panel);
  if (IsQuantized(matrix.type())) {
    std::memcpy(out.data(), from, out.size());
    return;
  }
  // A panel holds [inputs][16]; the padding is zeros there for outputs, here for inputs too.
  const std::size_t row_bytes = out.size() / PackedMatrix::kPanelWidth;
  std::ranges::fill(out, std::byte{0});
  for (std::size_t row = 0; row < PackedMatrix::kPanelWidth; ++row) {
    for (std::size_t col = 0; col < matrix.cols(); ++col) {
      const std::byte* element = from + (col * PackedMatrix::kPanelWidth + row) * sizeof(std::uint16_t);
      std::memcpy(out.data() + row * row_bytes + col * sizeof(std::uint16_t), element, sizeof(std::uint16_t));
    }
  }
}

}  // namespace moe::cuda
