// What the tests of products share, whatever the rows are held in: shapes, weights and room for the result, and what
// holds for every product.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <ostream>
#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "tests/kernels/kernel_cases.h"

namespace moe {

/// T rows of k inputs, and n outputs.
struct ProductShape {
  std::size_t rows, k, n;
};

inline std::ostream& operator<<(std::ostream& out, const ProductShape& shape) {
  return out << "T=" << shape.rows << " k=" << shape.k << " n=" << shape.n;
}

/// A product whose rows are `Case::x()`. The rows of its result are further apart than they are long.
template <typename Case>
class ProductCase {
 public:
  static constexpr std::size_t kGap = 5;
  static constexpr float kUntouched = 12345.0f;

  ProductCase(const ProductShape& shape, WeightType type, std::span<const float> weights)
      : shape_(shape),
        packed_(PackedMatrix::Pack({.type = WeightType::kF32,
                                    .data = reinterpret_cast<const std::byte*>(weights.data()),
                                    .rows = shape.n,
                                    .cols = shape.k},
                                   type)) {}

  const ProductShape& shape() const { return shape_; }
  const PackedMatrix& packed() const { return packed_; }

  /// All of y with its gaps.
  std::vector<float> Run(const Kernels& kernels, std::size_t panel_begin, std::size_t panel_end) const {
    std::vector<float> y(shape_.rows * (shape_.n + kGap), kUntouched);
    const std::size_t begin = std::min(panel_begin * PackedMatrix::kPanelWidth, shape_.n);
    kernels.MatMulPanels(static_cast<const Case&>(*this).x(), packed_, panel_begin, panel_end,
                         View(y).Columns(begin, packed_.Outputs(panel_begin, panel_end)));
    return y;
  }
  std::vector<float> Run(const Kernels& kernels) const { return Run(kernels, 0, packed_.panels()); }

  MatrixView<float> View(std::vector<float>& y) const { return {y.data(), shape_.rows, shape_.n, shape_.n + kGap}; }

 private:
  ProductShape shape_;
  PackedMatrix packed_;
};

template <typename Case>
void ExpectRowsDoNotDependOnRowsBesideThem(const Kernels& kernels, const Case& c) {
  std::vector<float> all = c.Run(kernels);
  for (std::size_t row = 0; row < c.shape().rows; ++row) {
    std::vector<float> alone(c.shape().n);
    kernels.MatMulPanels(c.x().Rows(row, 1), c.packed(), 0, c.packed().panels(), {alone.data(), 1, alone.size()});
    ASSERT_TRUE(SameBits(alone, c.View(all).row(row))) << Name(c.packed().type()) << " " << c.shape() << " row " << row;
  }
}

template <typename Case>
void ExpectPanelsMayBeSplitAnyhowAndTheRestIsUntouched(const Kernels& kernels, const Case& c) {
  std::vector<float> all = c.Run(kernels);
  for (std::size_t begin = 0; begin <= c.packed().panels(); ++begin) {
    for (std::size_t end = begin; end <= c.packed().panels(); ++end) {
      std::vector<float> expected(all.size(), Case::kUntouched);
      for (std::size_t row = 0; row < c.shape().rows; ++row)
        for (std::size_t col = 16 * begin; col < std::min(16 * end, c.shape().n); ++col)
          c.View(expected)(row, col) = c.View(all)(row, col);
      ASSERT_TRUE(SameBits(c.Run(kernels, begin, end), expected))
          << Name(c.packed().type()) << " " << c.shape() << " panels " << begin << " … " << end;
    }
  }
}

}  // namespace moe
