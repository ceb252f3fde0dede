// A weight matrix laid out once, at load, so that matmul reads it strictly forward. The layout is the same on every
// instruction set.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/aligned_buffer.h"
#include "core/check.h"
#include "core/function_ref.h"
#include "core/matrix.h"
#include "kernels/weight_type.h"

namespace moe {

/// A stored weight matrix as a checkpoint has it: (rows, cols) row-major, rows = outputs, cols = inputs.
/// `data` need not be aligned to the element, whose type is not quantized.
struct WeightView {
  WeightType type = WeightType::kF32;
  const std::byte* data = nullptr;
  std::size_t rows = 0;
  std::size_t cols = 0;

  float at(std::size_t row, std::size_t col) const;
};

/// Of what Pack makes of given weights, bit by bit: grows with any change of a panel's layout or of the values that
/// quantization chooses (kernels/quantize.h), so that what an earlier version kept on a disk is not taken for its own.
inline constexpr std::uint32_t kPackingVersion = 1;

/// W of shape (rows = n outputs, cols = k inputs), as ceil(n / 16) panels of 16 outputs, 64-byte aligned, the last one
/// padded with zeros. 16 fp32 outputs are one AVX-512 register or two AVX2 registers. A panel is, by type,
///   f32, bf16, f16: [k][16] elements;
///   int8: [ceil(k / 64) * 16][16][4], four consecutive inputs of each output, then the scales;
///   int4: [ceil(k / 32) * 4][16][4], eight consecutive inputs of each output, the first four in the low halves of the
///         bytes, then the scales;
/// scales are [groups][16] in bf16, and inputs past k are zeros (kernels/quantize.h).
class PackedMatrix {
 public:
  static constexpr std::size_t kPanelWidth = 16;

  PackedMatrix() = default;

  /// Packs `parts` one below the other (their cols agree), converted to `type`; rounds to nearest even when narrowing.
  static PackedMatrix Pack(std::span<const WeightView> parts, WeightType type);
  static PackedMatrix Pack(const WeightView& source, WeightType type) { return Pack({&source, 1}, type); }

  /// Zeros, for storage() to be filled.
  static PackedMatrix Zeros(std::size_t rows, std::size_t cols, WeightType type) { return {type, rows, cols}; }

  /// Fills `out` (a few rows, cols) with rows first, first + 1, …
  using ReadRows = FunctionRef<void(std::size_t first, MatrixView<float> out)>;
  /// Packs a matrix that is read 16 rows at a time, so that it never lies in memory whole in another form.
  static PackedMatrix Pack(std::size_t rows, std::size_t cols, WeightType type, ReadRows read);

  WeightType type() const { return type_; }
  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }
  std::size_t panels() const { return (rows_ + kPanelWidth - 1) / kPanelWidth; }
  std::size_t bytes() const { return data_.size(); }
  bool empty() const { return rows_ == 0; }

  /// Outputs of panels [begin, end).
  std::size_t Outputs(std::size_t begin, std::size_t end) const {
    MOE_CHECK(begin <= end && end <= panels());
    return std::min(end * kPanelWidth, rows_) - std::min(begin * kPanelWidth, rows_);
  }

  /// The panel of outputs 16 * index … 16 * index + 15.
  const std::byte* panel(std::size_t index) const { return data_.data() + index * panel_bytes_; }
  /// (groups, 16) scales of a panel in bf16; of quantized types.
  const std::byte* scales(std::size_t index) const { return panel(index) + value_bytes_; }
  /// All panels, one after the other, for whoever keeps them: what another process of this kPackingVersion has there.
  std::span<const std::byte> storage() const { return data_.span(); }
  std::span<std::byte> storage() { return data_.span(); }
  /// One weight, as it counts in a product.
  float at(std::size_t row, std::size_t col) const;

 private:
  class RowCursor;
  class PanelPacker;

  PackedMatrix(WeightType type, std::size_t rows, std::size_t cols);

  WeightType type_ = WeightType::kF32;
  std::size_t rows_ = 0;
  std::size_t cols_ = 0;
  std::size_t value_bytes_ = 0;  // of a panel, before its scales
  std::size_t panel_bytes_ = 0;
  AlignedBuffer<std::byte> data_;
};

}  // namespace moe
