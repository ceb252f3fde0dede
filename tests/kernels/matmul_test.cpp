#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/kernels.h"
#include "tests/kernels/product_case.h"

namespace moe {
namespace {

constexpr WeightType kTypes[] = {WeightType::kF32, WeightType::kBf16, WeightType::kF16};

using Shape = ProductShape;

/// Rows that are further apart than they are long.
class Case : public ProductCase<Case> {
 public:
  Case(const Shape& shape, WeightType type)
      : ProductCase(shape, type, RandomValues(shape.n * shape.k, 4)),
        x_(RandomValues(shape.rows * (shape.k + kGap), 3)) {}

  MatrixView<const float> x() const { return {x_.data(), shape().rows, shape().k, shape().k + kGap}; }

 private:
  std::vector<float> x_;
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
          ASSERT_NEAR(c.View(got)(row, col), c.View(expected)(row, col), tolerance) << Name(type) << " " << shape;
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
      ASSERT_TRUE(SameBits(c.Run(kernels()), c.Run(SimdKernels()))) << Name(type) << " " << shape;
    }
  }
}

TEST_P(MatMul, RowsDoNotDependOnRowsBesideThem) {
  for (const WeightType type : kTypes) ExpectRowsDoNotDependOnRowsBesideThem(kernels(), Case({23, 70, 50}, type));
}

TEST_P(MatMul, PanelsMayBeSplitAnyhowAndTheRestIsUntouched) {
  ExpectPanelsMayBeSplitAnyhowAndTheRestIsUntouched(kernels(), Case({3, 20, 16 * 11 + 5}, WeightType::kBf16));
}

TEST_P(MatMul, OfAnEmptyMatrixDoesNothing) {
  const PackedMatrix empty = PackedMatrix::Pack(WeightView{.rows = 0, .cols = 4}, WeightType::kF32);
  const std::vector<float> x(8, 1.0f);
  kernels().MatMulPanels({x.data(), 2, 4}, empty, 0, 0, {nullptr, 2, 0});
}

INSTANTIATE_TEST_SUITE_P(Simd, MatMul, EachAvailable(), NameOf);

}  // namespace
}  // namespace moe
