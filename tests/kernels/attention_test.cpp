#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/exp.h"
#include "kernels/kernels.h"
#include "tests/kernels/kernel_cases.h"

namespace moe {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr std::size_t kGap = 3;  // between one head and the next, of queries and outputs

struct Shape {
  std::size_t heads, key_dim, value_dim, begin, end;
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << s.heads << " heads, " << s.key_dim << "/" << s.value_dim << ", [" << s.begin << ", " << s.end << ")";
}

/// Queries and pages. Whatever may not be seen is NaN, and pages that hold nothing visible do not exist.
class Case {
 public:
  explicit Case(const Shape& shape) : shape_(shape), queries_(RandomValues(shape.heads * (shape.key_dim + kGap), 20)) {
    const std::vector<float> keys = RandomValues(shape.end * shape.key_dim, 21);
    const std::vector<float> values = RandomValues(shape.end * shape.value_dim, 22);
    const std::size_t pages = (shape.end + kPageTokens - 1) / kPageTokens;
    keys_.resize(pages);
    values_.resize(pages);
    for (std::size_t page = shape.begin / kPageTokens; page < pages; ++page) {
      keys_[page].assign(shape.key_dim * kPageTokens, kNan);
      values_[page].assign(shape.value_dim * kPageTokens, kNan);
    }
    for (std::size_t at = shape.begin; at < shape.end; ++at) {
      const std::size_t slot = at % kPageTokens;
      for (std::size_t i = 0; i < shape.key_dim; ++i) {
        keys_[at / kPageTokens][i * kPageTokens + slot] = keys[at * shape.key_dim + i];
      }
      std::copy_n(&values[at * shape.value_dim], shape.value_dim,
                  values_[at / kPageTokens].begin() + static_cast<std::ptrdiff_t>(slot * shape.value_dim));
    }
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.key_dim)); }
  MatrixView<const float> queries() const {
    return {queries_.data(), shape_.heads, shape_.key_dim, shape_.key_dim + kGap};
  }
  float key(std::size_t at, std::size_t i) const { return keys_[at / kPageTokens][i * kPageTokens + at % kPageTokens]; }
  float value(std::size_t at, std::size_t i) const {
    return values_[at / kPageTokens][at % kPageTokens * shape_.value_dim + i];
  }

  /// The outputs of heads [first, first + count), (count, value_dim); the pages are followed by `extra` null ones.
  std::vector<float> Run(const Kernels& kernels, std::size_t first, std::size_t count, std::size_t extra = 0) const {
    std::vector<const float*> key_pages, value_pages;
    for (const auto& page : keys_) key_pages.push_back(page.empty() ? nullptr : page.data());
    for (const auto& page : values_) value_pages.push_back(page.empty() ? nullptr : page.data());
    key_pages.resize(key_pages.size() + extra);
    value_pages.resize(value_pages.size() + extra);
    const std::size_t stride = shape_.value_dim + kGap;
    std::vector<float> padded(count * stride, kNan);  // what `out` holds before must not matter
    const MatrixView<float> out(padded.data(), count, shape_.value_dim, stride);
    kernels.Attention({.queries = queries().Rows(first, count),
                       .key_pages = key_pages,
                       .value_pages = value_pages,
                       .value_stride = shape_.value_dim,
                       .begin = shape_.begin,
                       .end = shape_.end,
                       .scale = scale(),
                       .out = out});
    std::vector<float> result;
    for (std::size_t head = 0; head < count; ++head) {
      result.insert(result.end(), out.row(head).begin(), out.row(head).end());
      for (std::size_t i = shape_.value_dim; i < stride && head + 1 < count; ++i) {
        EXPECT_TRUE(std::isnan(padded[head * stride + i])) << "wrote past the row of head " << head;
      }
    }
    return result;
  }
  std::vector<float> Run(const Kernels& kernels) const { return Run(kernels, 0, shape_.heads); }

 private:
  Shape shape_;
  std::vector<float> queries_;
  std::vector<std::vector<float>> keys_;    // by page: (key_dim, kPageTokens)
  std::vector<std::vector<float>> values_;  // by page: (kPageTokens, value_dim)
};

/// The arithmetic of kernels.h, value by value, for one head.
std::vector<float> Promised(const Case& c, const Shape& shape, std::size_t head) {
  std::vector<float> out(shape.value_dim, 0.0f);
  float highest = -std::numeric_limits<float>::infinity();
  float total = 0;
  for (std::size_t start = shape.begin / kPageTokens * kPageTokens; start < shape.end; start += kPageTokens) {
    std::vector<float> weights(kPageTokens, -std::numeric_limits<float>::infinity());
    const std::size_t first = std::max(start, shape.begin);
    const std::size_t last = std::min(start + kPageTokens, shape.end);
    for (std::size_t at = first; at < last; ++at) {
      float score = 0;
      for (std::size_t i = 0; i < shape.key_dim; ++i) score = std::fma(c.queries()(head, i), c.key(at, i), score);
      weights[at - start] = score * c.scale();
    }
    const float now = std::max(highest, *std::max_element(weights.begin(), weights.end()));
    const float rescale = Exp(highest - now);
    highest = now;
    for (float& weight : weights) weight = Exp(weight - highest);
    total = total * rescale + LaneSum(weights);
    for (std::size_t i = 0; i < shape.value_dim; ++i) {
      out[i] *= rescale;
      for (std::size_t at = first; at < last; ++at) out[i] = std::fma(weights[at - start], c.value(at, i), out[i]);
    }
  }
  for (float& value : out) value *= 1.0f / total;
  return out;
}

/// What double precision gives, and how far fp32 may be from it.
void ExpectNearReference(const Case& c, const Shape& shape, const std::vector<float>& got) {
  const std::vector<float> expected = c.Run(ReferenceKernels());
  double score_error = 0, highest_score = -1e30, lowest_score = 1e30, largest_value = 0;
  for (std::size_t at = shape.begin; at < shape.end; ++at) {
    for (std::size_t i = 0; i < shape.value_dim; ++i)
      largest_value = std::max<double>(largest_value, std::abs(c.value(at, i)));
    for (std::size_t head = 0; head < shape.heads; ++head) {
      double magnitude = 0, score = 0;
      for (std::size_t i = 0; i < shape.key_dim; ++i) {
        score += static_cast<double>(c.queries()(head, i)) * c.key(at, i) * c.scale();
        magnitude += std::abs(static_cast<double>(c.queries()(head, i)) * c.key(at, i) * c.scale());
      }
      score_error = std::max(score_error, static_cast<double>(shape.key_dim + 1) * kRoundoff * magnitude);
      highest_score = std::max(highest_score, score);
      lowest_score = std::min(lowest_score, score);
    }
  }
  // A weight is off, relatively, by the error of its score; by u times the range of scores for s - m' and again for the
  // rescalings, whose exponents add up to no more than the range; and by exp. Each block rescales (exp and product),
  // and the sums have a rounding for each position. Numerator and denominator alike; then the reciprocal, the product
  // and the reference.
  const double positions = static_cast<double>(shape.end - shape.begin);
  const double relative = score_error + kRoundoff * (2 * (highest_score - lowest_score) + kExpRoundings +
                                                     (kExpRoundings + 1) * (positions / kPageTokens + 2) + positions);
  const double tolerance = (2 * relative + 3 * kRoundoff) * largest_value * 1.001;
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], tolerance) << shape << " value " << i;
}

std::vector<Shape> Shapes() {
  std::vector<Shape> shapes;
  for (const auto& [begin, end] : std::vector<std::pair<std::size_t, std::size_t>>{{0, 1},
                                                                                   {0, 15},
                                                                                   {0, 17},
                                                                                   {0, 31},
                                                                                   {0, 32},
                                                                                   {0, 33},
                                                                                   {5, 6},
                                                                                   {20, 30},
                                                                                   {31, 33},
                                                                                   {40, 41},
                                                                                   {0, 200},
                                                                                   {37, 170},
                                                                                   {64, 128},
                                                                                   {47, 49},
                                                                                   {15, 300}}) {
    for (const std::size_t heads : Counts{1, 2, 3}) shapes.push_back({heads, 12, 24, begin, end});
  }
  for (std::size_t heads = 1; heads <= 20; ++heads) shapes.push_back({heads, 10, 20, 3, 75});
  for (const std::size_t dim : Counts{1, 7, 8, 10, 12, 15, 16, 17, 24, 31, 32, 33, 40, 64, 80, 100, 128}) {
    shapes.push_back({2, dim, dim, 33, 100});
    shapes.push_back({5, dim, 129 - dim, 0, 70});
  }
  shapes.push_back({128, 16, 8, 0, 40});
  shapes.push_back({1, 1024, 1024, 30, 70});
  shapes.push_back({3, 576, 512, 0, 40});  // absorbed latent attention
  return shapes;
}

using Attention = EachSimdKernels;

TEST_P(Attention, AgreesWithANaiveSoftmaxInDouble) {
  for (const Shape& shape : Shapes()) {
    const Case c(shape);
    ExpectNearReference(c, shape, c.Run(kernels()));
  }
}

TEST_P(Attention, HasThePromisedBits) {
  for (const Shape& shape : Shapes()) {
    const Case c(shape);
    const std::vector<float> got = c.Run(kernels());
    for (std::size_t head = 0; head < shape.heads; ++head) {
      ASSERT_TRUE(SameBits(std::span(got).subspan(head * shape.value_dim, shape.value_dim), Promised(c, shape, head)))
          << shape << " head " << head;
    }
  }
}

TEST_P(Attention, HeadsDoNotDependOnHeadsBesideThem) {
  const Shape shape{11, 24, 40, 9, 140};
  const Case c(shape);
  const std::vector<float> all = c.Run(kernels());
  for (std::size_t first = 0; first < shape.heads; ++first) {
    for (std::size_t count = 1; first + count <= shape.heads; ++count) {
      const auto expected = std::span(all).subspan(first * shape.value_dim, count * shape.value_dim);
      ASSERT_TRUE(SameBits(c.Run(kernels(), first, count), expected)) << first << " + " << count;
    }
  }
}

TEST_P(Attention, DoesNotLookAtPagesPastTheEnd) {
  for (const std::size_t end : Counts{1, 32, 33, 64, 97}) {
    const Case c({3, 16, 16, 0, end});
    ASSERT_TRUE(SameBits(c.Run(kernels(), 0, 3, 7), c.Run(kernels()))) << end;
  }
}

TEST_P(Attention, OfOnePositionIsItsValue) {
  const Case c({2, 8, 20, 70, 71});
  const std::vector<float> got = c.Run(kernels());
  for (std::size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(got[i], c.value(70, i));
    EXPECT_EQ(got[20 + i], c.value(70, i));
  }
}

INSTANTIATE_TEST_SUITE_P(Simd, Attention, EachAvailable(), NameOf);

}  // namespace
}  // namespace moe
