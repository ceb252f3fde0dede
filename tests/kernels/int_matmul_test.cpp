#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/kernels.h"
#include "tests/kernels/product_case.h"

namespace moe {
namespace {

constexpr WeightType kTypes[] = {WeightType::kInt8, WeightType::kInt4};

using Shape = ProductShape;

/// Rows in integers.
class Case : public ProductCase<Case> {
 public:
  Case(const Shape& shape, WeightType type)
      : Case(shape, type, RandomValues(shape.rows * shape.k, 3), RandomValues(shape.n * shape.k, 4)) {}
  Case(const Shape& shape, WeightType type, std::span<const float> x, std::span<const float> weights)
      : ProductCase(shape, type, weights), x_(shape.rows, shape.k) {
    x_.Shape(shape.rows, shape.k, type);
    for (std::size_t row = 0; row < shape.rows; ++row)
      ReferenceKernels().QuantizeRow(x.subspan(row * shape.k, shape.k), GroupSize(type), x_.Groups(row, 0, shape.k));
  }

  const QuantizedView& x() const { return x_.view(); }

  /// y(row, col) as kernels.h defines it, one group after the other, in scalars.
  float InDocumentedOrder(std::size_t row, std::size_t col) const {
    const QuantizedView& in = x();
    float sum = 0;
    for (std::size_t group = 0; group < in.groups; ++group) {
      const std::size_t first = group * in.group;
      int dot = 0;
      for (std::size_t k = first; k < std::min(first + in.group, in.cols); ++k)
        dot += in.values[row * in.groups * in.group + k] *
               (StoredInteger(packed(), col, k) - (packed().type() == WeightType::kInt8 ? 128 : 8));
      const float scale = Bf16ToF32(StoredScale(packed(), col, first)) * in.scales[group * in.stride + row];
      sum = std::fma(static_cast<float>(dot), scale, sum);
    }
    return sum;
  }

 private:
  QuantizedRows x_;
};

/// Every size up to 130 in each dimension, a random sample of all three, and more than the kernel's blocks.
std::vector<Shape> Shapes() {
  std::vector<Shape> shapes;
  for (std::size_t size = 1; size <= 130; ++size) {
    shapes.push_back({size, 37, 19});
    shapes.push_back({3, size, 19});
    shapes.push_back({2, 70, size});
  }
  std::mt19937 random(12);
  std::uniform_int_distribution<std::size_t> size(1, 130);
  for (int i = 0; i < 30; ++i) shapes.push_back({size(random), size(random), size(random)});
  for (const std::size_t k : Counts{1023, 1024, 1025, 1088, 2049, 3000}) {  // blocks of 1024 inputs
    shapes.push_back({1, k, 70});                                           // taken whole by a few rows
    shapes.push_back({9, k, 33});
  }
  shapes.push_back({128, 1056, 17});  // blocks of 128 rows
  shapes.push_back({129, 1100, 18});
  shapes.push_back({140, 2112, 35});
  shapes.push_back({257, 64, 16});
  return shapes;
}

using IntMatMul = EachSimdKernels;

TEST_P(IntMatMul, IsTheDocumentedSumExactly) {
  for (const WeightType type : kTypes) {
    for (const Shape& shape : Shapes()) {
      const Case c(shape, type);
      std::vector<float> got = c.Run(kernels());
      std::vector<float> expected(got.size(), Case::kUntouched);
      for (std::size_t row = 0; row < shape.rows; ++row)
        for (std::size_t col = 0; col < shape.n; ++col) c.View(expected)(row, col) = c.InDocumentedOrder(row, col);
      ASSERT_TRUE(SameBits(got, expected)) << Name(type) << " " << shape;
    }
  }
}

TEST_P(IntMatMul, AgreesWithTheReference) {
  for (const WeightType type : kTypes) {
    for (const Shape& shape : {Shape{1, 1, 1}, Shape{5, 61, 35}, Shape{17, 130, 50}, Shape{9, 2051, 18}}) {
      const Case c(shape, type);
      std::vector<float> got = c.Run(kernels());
      std::vector<float> expected = c.Run(ReferenceKernels());
      for (std::size_t row = 0; row < shape.rows; ++row) {
        for (std::size_t col = 0; col < shape.n; ++col) {
          double magnitude = 0;
          const QuantizedView& x = c.x();
          for (std::size_t k = 0; k < shape.k; ++k)
            magnitude += std::abs(static_cast<double>(x.scales[k / x.group * x.stride + row]) *
                                  x.values[row * x.groups * x.group + k] * PackedElement(c.packed(), col, k));
          // A rounding a group, of a partial sum that is at most the magnitude; one of the product of scales; one of
          // the reference's result.
          const double tolerance = (static_cast<double>(x.groups) + 3) * kRoundoff * magnitude;
          ASSERT_NEAR(c.View(got)(row, col), c.View(expected)(row, col), tolerance) << Name(type) << " " << shape;
        }
      }
    }
  }
}

TEST_P(IntMatMul, HasTheBitsOfTheOtherInstructionSets) {
  for (const WeightType type : kTypes) {
    for (const Shape& shape : {Shape{1, 130, 130}, Shape{2, 65, 83}, Shape{7, 97, 47}, Shape{130, 1100, 40}}) {
      const Case c(shape, type);
      ASSERT_TRUE(SameBits(c.Run(kernels()), c.Run(SimdKernels()))) << Name(type) << " " << shape;
    }
  }
}

TEST_P(IntMatMul, LargestIntegersDoNotOverflow) {
  // All stored values at an end of their range, and all activations: pairs of products fill 16 bits nearly.
  for (const WeightType type : kTypes) {
    for (const float w : {1.0f, -1.0f}) {
      for (const float x : {1.0f, -1.0f}) {
        const Shape shape{9, 200, 33};
        std::vector<float> weights(shape.n * shape.k, w);
        for (std::size_t i = 0; i < weights.size(); i += 7) weights[i] = -w;
        const Case c(shape, type, std::vector<float>(shape.rows * shape.k, x), weights);
        std::vector<float> got = c.Run(kernels());
        for (std::size_t row = 0; row < shape.rows; ++row)
          for (std::size_t col = 0; col < shape.n; ++col)
            ASSERT_EQ(c.View(got)(row, col), c.InDocumentedOrder(row, col)) << Name(type) << " " << w << " * " << x;
      }
    }
  }
}

TEST_P(IntMatMul, RowsDoNotDependOnRowsBesideThem) {
  // Rows go in tiles and one block of inputs after the other, one row alone in one go.
  for (const WeightType type : kTypes) {
    for (const Shape& shape : {Shape{23, 70, 50}, Shape{133, 1100, 34}})
      ExpectRowsDoNotDependOnRowsBesideThem(kernels(), Case(shape, type));
  }
}

TEST_P(IntMatMul, PanelsMayBeSplitAnyhowAndTheRestIsUntouched) {
  for (const WeightType type : kTypes) {
    for (const std::size_t rows : Counts{1, 3, 10})
      ExpectPanelsMayBeSplitAnyhowAndTheRestIsUntouched(kernels(), Case({rows, 70, 16 * 11 + 5}, type));
  }
}

TEST_P(IntMatMul, ANumberThatIsNotFiniteSpoilsItsRowOrItsOutputOnly) {
  const Shape shape{11, 130, 37};
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const WeightType type : kTypes) {
    const std::vector<float> x = RandomValues(shape.rows * shape.k, 3);
    const std::vector<float> weights = RandomValues(shape.n * shape.k, 4);
    const Case clean(shape, type, x, weights);
    std::vector<float> expected = clean.Run(kernels());
    for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
      for (const std::size_t at : Counts{0, 63, 64, 129}) {
        std::vector<float> bad_x = x;
        std::vector<float> bad_weights = weights;
        bad_x[5 * shape.k + at] = bad;
        bad_weights[20 * shape.k + at] = bad;
        const Case c(shape, type, bad_x, bad_weights);
        std::vector<float> got = c.Run(kernels());
        for (std::size_t row = 0; row < shape.rows; ++row) {
          for (std::size_t col = 0; col < shape.n; ++col) {
            if (row == 5 || col == 20) {
              ASSERT_TRUE(std::isnan(c.View(got)(row, col))) << row << "," << col;
            } else {
              ASSERT_EQ(c.View(got)(row, col), clean.View(expected)(row, col)) << row << "," << col;
            }
          }
        }
      }
    }
  }
}

TEST_P(IntMatMul, TinyAndHugeScalesAreMultipliedAsDocumented) {
  const Shape shape{9, 100, 33};
  for (const WeightType type : kTypes) {
    for (const float x_factor : {1e-29f, 1e-20f, 1e15f}) {
      for (const float w_factor : {1e-29f, 1e-20f, 1e15f}) {
        std::vector<float> x = RandomValues(shape.rows * shape.k, 5);
        std::vector<float> weights = RandomValues(shape.n * shape.k, 6);
        for (float& value : x) value *= x_factor;
        for (float& value : weights) value *= w_factor;
        const Case c(shape, type, x, weights);
        std::vector<float> got = c.Run(kernels());  // from denormal products of scales to nearly infinite sums
        for (std::size_t row = 0; row < shape.rows; ++row)
          for (std::size_t col = 0; col < shape.n; ++col)
            ASSERT_EQ(c.View(got)(row, col), c.InDocumentedOrder(row, col)) << x_factor << " " << w_factor;
      }
    }
  }
}

TEST_P(IntMatMul, OfNothingDoesNothing) {
  for (const WeightType type : kTypes) {
    const Case no_rows({0, 70, 20}, type);
    EXPECT_TRUE(no_rows.Run(kernels()).empty());
    const PackedMatrix empty = PackedMatrix::Pack(WeightView{.rows = 0, .cols = 4}, type);
    const Case c({2, 4, 1}, type);
    kernels().MatMulPanels(c.x(), empty, 0, 0, {nullptr, 2, 0});
  }
}

INSTANTIATE_TEST_SUITE_P(Simd, IntMatMul, EachAvailable(), NameOf);

}  // namespace
}  // namespace moe
