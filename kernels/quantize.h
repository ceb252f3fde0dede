// Integer weights and activations. A weight is scale * q, an activation scale * a, with one scale for each group of
// inputs; a product is then, group by group, one exact integer dot product and one fp32 multiply-add.
//
// Weights, (rows = n outputs, cols = k inputs), symmetric about zero, a scale for each output and group, in bf16:
//   int8: groups of 64, q in [-127, 127], scale = largest magnitude / 127; 8.25 bits a weight
//   int4: groups of 32, q in [-8, 7], 4.5 bits a weight; the scale, of either sign, is the one of some candidates that
//         leaves the smallest squared error: (the value of largest magnitude) / -8 times 1 and times kInt4Factors
// A scale is rounded to bf16 first and q chosen for the rounded one, so that this rounding costs next to nothing.
// Values are stored unsigned, q + ZeroPoint: the form that the dot instructions of x86 take.
//
// Activations, (rows, k): int8 in groups as wide as those of the weights that they meet, a in [-127, 127], scale =
// largest magnitude / 127 in fp32.
//
// A weight is multiplied by its scale's fp32 reciprocal, an activation by 127 / largest magnitude in fp32, and rounded
// once, to nearest, ties to even. Squared errors are fp32: where they under- or overflow the first scale stays. A group
// that holds an infinity or a NaN has the scale NaN, and all that it takes part in becomes NaN. A group whose largest
// magnitude is below 2^-100 counts as zero.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/aligned_buffer.h"
#include "core/check.h"
#include "kernels/weight_type.h"

namespace moe {

/// Inputs that share a scale. Wide enough that scales cost little, narrow enough that one large value spoils few.
constexpr std::size_t GroupSize(WeightType type) { return type == WeightType::kInt8 ? 64 : 32; }
constexpr std::size_t GroupsOf(std::size_t cols, WeightType type) {
  return (cols + GroupSize(type) - 1) / GroupSize(type);
}

/// Stored bytes of a group of one output, scale included.
constexpr std::size_t GroupBytes(WeightType type) {
  return GroupSize(type) / (type == WeightType::kInt4 ? 2 : 1) + sizeof(std::uint16_t);
}

/// Bytes of a matrix in `type`, scales included, without the padding of panels.
constexpr std::size_t MatrixBytes(std::size_t rows, std::size_t cols, WeightType type) {
  if (!IsQuantized(type)) return rows * cols * BytesPerWeight(type);
  return rows * GroupsOf(cols, type) * GroupBytes(type);
}

/// Those of them that are scales.
constexpr std::size_t ScaleBytes(std::size_t rows, std::size_t cols, WeightType type) {
  return IsQuantized(type) ? rows * GroupsOf(cols, type) * sizeof(std::uint16_t) : 0;
}

/// What is added to q where it is stored.
constexpr int ZeroPoint(WeightType type) { return type == WeightType::kInt8 ? 128 : 8; }

/// Largest magnitudes below this count as zero: 127 divided by them must not overflow.
inline constexpr float kSmallestMagnitude = 0x1p-100f;

/// Below 1 the largest value is clipped a little and the others lie closer; above, all are kept and the value 7 steps
/// on the other side too.
inline constexpr std::array<float, 7> kInt4Factors = {0.8f, 0.85f, 0.9f, 0.95f, 1.05f, 1.1f, 1.15f};

/// Rows of activations in int8. Owns nothing. What belongs to a group lies by group, so that a tile of rows finds its
/// rows' side by side.
struct QuantizedView {
  const std::int8_t* values = nullptr;    // (rows, groups * group), zeros past cols
  const float* scales = nullptr;          // (groups, stride), of which the first `rows` of each
  const std::int32_t* offsets = nullptr;  // the same; -ZeroPoint * sum of the group's values: what a dot product with
                                          // stored weights lacks to be one with the weights
  std::size_t stride = 0;
  std::size_t rows = 0;
  std::size_t cols = 0;
  std::size_t group = 0;   // inputs in a group
  std::size_t groups = 0;  // of a row

  QuantizedView Rows(std::size_t begin, std::size_t count) const {
    MOE_CHECK(begin + count <= rows);
    return {.values = values + begin * groups * group,
            .scales = scales + begin,
            .offsets = offsets + begin,
            .stride = stride,
            .rows = count,
            .cols = cols,
            .group = group,
            .groups = groups};
  }
};

/// Some groups of one row, to be written.
struct QuantizedGroups {
  std::span<std::int8_t> values;  // whole groups
  float* scales = nullptr;        // of group g at [g * stride]
  std::int32_t* offsets = nullptr;
  std::size_t stride = 1;
};

/// Room for rows of activations, shaped anew for each product.
class QuantizedRows {
 public:
  QuantizedRows() = default;
  QuantizedRows(std::size_t max_rows, std::size_t max_cols);

  /// (rows, cols) in the groups of weights of `type`; at most max_rows and max_cols. What was written is lost.
  void Shape(std::size_t rows, std::size_t cols, WeightType type);
  /// The groups of inputs [begin, begin + count) of a row; begin is a group's first.
  QuantizedGroups Groups(std::size_t row, std::size_t begin, std::size_t count);
  const QuantizedView& view() const { return view_; }

 private:
  AlignedBuffer<std::int8_t> values_;
  AlignedBuffer<float> scales_;
  AlignedBuffer<std::int32_t> offsets_;
  QuantizedView view_;
};

}  // namespace moe
