#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/kernels.h"
#include "tests/kernels/kernel_cases.h"

namespace moe {
namespace {

constexpr float kUntouched = 12345.0f;
constexpr WeightType kTypes[] = {WeightType::kF32, WeightType::kBf16, WeightType::kF16};

struct Shape {
  std::size_t rows, k, n;
};

/// Rows, weights and room for the result, rows further apart than they are long.
class Case {
 public:
  Case(const Shape& shape, WeightType type, std::size_t gap = 5)
      : shape_(shape),
        gap_(gap),
        x_(RandomValues(shape.rows * (shape.k + gap), 3)),
        weights_(RandomValues(shape.n * shape.k, 4)),
        packed_(PackedMatrix::Pack({.type = WeightType::kF32,
                                    .data = reinterpret_cast<const std::byte*>(weights_.data()),
                                    .rows = shape.n,
                                    .cols = shape.k},
                                   type)) {}

  MatrixView<const float> x() const { return {x_.data(), shape_.rows, shape_.k, shape_.k + gap_}; }
  const PackedMatrix& packed() const { return packed_; }

  /// All of y with its gaps.
  std::vector<float> Run(const Kernels& kernels, std::size_t panel_begin, std::size_t panel_end) const {
    std::vector<float> y(shape_.rows * (shape_.n + gap_), kUntouched);
    const std::size_t begin = std::min(panel_begin * PackedMatrix::kPanelWidth, shape_.n);
    kernels.MatMulPanels(x(), packed_, panel_begin, panel_end,
                         View(y).Columns(begin, packed_.Outputs(panel_begin, panel_end)));
    return y;
  }
  std::vector<float> Run(const Kernels& kernels) const { return Run(kernels, 0, packed_.panels()); }

  MatrixView<float> View(std::vector<float>& y) const { return {y.data(), shape_.rows, shape_.n, shape_.n + gap_}; }

 private:
  Shape shape_;
  std::size_t gap_;
  std::vector<float> x_;
  std::vector<float> weights_;
  PackedMatrix packed_;
};

std::vector<Shape> Shapes() {
  std::vector<Shape> shapes;
  for (std::size_t rows = 0; rows <= 20; ++rows) shapes.push_back({rows, 37, 83});
  for (const std::size_t n : Counts{1, 15, 16, 17, 32, 47, 64, 129, 255}) {
    for (const std::size_t rows : Counts{1, 2, 3, 7}) shapes.push_back({rows, 1, n});
  }
  shapes.push_back({1, 2048, 33});  // one block of k
  shapes.push_back({3, 2049, 33});  // and a step of the next
  shapes.push_back({2, 4500, 17});
  shapes.push_back({97, 10, 40});  // three blocks of rows
  shapes.push_back({49, 2050, 18});
  return shapes;
}

using MatMul = EachSimdKernels;

TEST_P(MatMul, AgreesWithTheReference) {
  for (const WeightType type : kTypes) {
    for (const Shape& shape : Shapes()) {
      const Case c(shape, type);
      std::vector<float> got = c.Run(kernels());
      std::vector<float> expected = c.Run(ReferenceKernels());
      for (std::size_t row = 0; row < shape.rows; ++row) {
        for (std::size_t col = 0; col < shape.n; ++col) {
          // k fused steps round k times, each by at most half an ulp of a partial sum, which is at most
          // sum |x w| (1 + k u); the reference rounds once.
          double magnitude = 0;
          for (std::size_t k = 0; k < shape.k; ++k) {
            const float w = PackedElement(c.packed(), col, k);
            magnitude += std::abs(static_cast<double>(c.x()(row, k)) * w);
          }
          const double tolerance = (static_cast<double>(shape.k) + 1) * kRoundoff * magnitude;
          ASSERT_NEAR(c.View(got)(row, col), c.View(expected)(row, col), tolerance)
              << Name(type) << " T=" << shape.rows << " k=" << shape.k << " n=" << shape.n;
        }
      }
    }
  }
}

TEST_P(MatMul, IsOneRunningFusedSum) {
  for (const WeightType type : kTypes) {
    for (const Shape& shape : {Shape{5, 61, 35}, Shape{1, 2051, 3}}) {
      const Case c(shape, type);
      std::vector<float> got = c.Run(kernels());
      for (std::size_t row = 0; row < shape.rows; ++row) {
        for (std::size_t col = 0; col < shape.n; ++col) {
          float sum = 0;
          for (std::size_t k = 0; k < shape.k; ++k)
            sum = std::fma(c.x()(row, k), PackedElement(c.packed(), col, k), sum);
          ASSERT_EQ(c.View(got)(row, col), sum);
        }
      }
    }
  }
}

TEST_P(MatMul, HasTheBitsOfTheOtherInstructionSets) {
  for (const WeightType type : kTypes) {
    for (const Shape& shape : Shapes()) {
      const Case c(shape, type);
      ASSERT_TRUE(SameBits(c.Run(kernels()), c.Run(SimdKernels())))
          << Name(type) << " T=" << shape.rows << " k=" << shape.k << " n=" << shape.n;
    }
  }
}

TEST_P(MatMul, RowsDoNotDependOnRowsBesideThem) {
  const Shape shape{23, 70, 50};
  for (const WeightType type : kTypes) {
    const Case c(shape, type);
    std::vector<float> all = c.Run(kernels());
    for (std::size_t row = 0; row < shape.rows; ++row) {
      std::vector<float> alone(shape.n);
      kernels().MatMulPanels(c.x().Rows(row, 1), c.packed(), 0, c.packed().panels(), {alone.data(), 1, shape.n});
      ASSERT_TRUE(SameBits(alone, c.View(all).row(row))) << row;
    }
  }
}

TEST_P(MatMul, PanelsMayBeSplitAnyhowAndTheRestIsUntouched) {
  const Shape shape{3, 20, 16 * 11 + 5};
  const Case c(shape, WeightType::kBf16);
  std::vector<float> all = c.Run(kernels());
  for (std::size_t begin = 0; begin <= c.packed().panels(); ++begin) {
    for (std::size_t end = begin; end <= c.packed().panels(); ++end) {
      std::vector<float> expected(all.size(), kUntouched);
      for (std::size_t row = 0; row < shape.rows; ++row) {
        for (std::size_t col = 16 * begin; col < std::min(16 * end, shape.n); ++col) {
          c.View(expected)(row, col) = c.View(all)(row, col);
        }
      }
      ASSERT_TRUE(SameBits(c.Run(kernels(), begin, end), expected)) << begin << " … " << end;
    }
  }
}

TEST_P(MatMul, OfAnEmptyMatrixDoesNothing) {
  const PackedMatrix empty = PackedMatrix::Pack(WeightView{.rows = 0, .cols = 4}, WeightType::kF32);
  const std::vector<float> x(8, 1.0f);
  kernels().MatMulPanels({x.data(), 2, 4}, empty, 0, 0, {nullptr, 2, 0});
}

INSTANTIATE_TEST_SUITE_P(Simd, MatMul, EachAvailable(), NameOf);

}  // namespace
}  // namespace moe
