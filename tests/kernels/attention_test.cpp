#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/kernels.h"
#include "tests/kernels/attention_case.h"
#include "tests/kernels/kernel_cases.h"

namespace moe {
namespace {

const std::vector<std::pair<std::size_t, std::size_t>> kWindows = {{0, 1},   {0, 15},   {0, 17},   {0, 31},  {0, 32},
                                                                   {0, 33},  {5, 6},    {20, 30},  {31, 33}, {40, 41},
                                                                   {0, 200}, {37, 170}, {64, 128}, {47, 49}, {15, 300}};

/// Values by heads, dimensions and windows, as grouped-query attention has them.
std::vector<Shape> ColumnShapes() {
  std::vector<Shape> shapes;
  for (const auto& [begin, end] : kWindows) {
    for (const std::size_t heads : Counts{1, 2, 3}) shapes.push_back({heads, 12, 24, begin, end});
  }
  for (std::size_t heads = 1; heads <= 20; ++heads) shapes.push_back({heads, 10, 20, 3, 75});
  for (const std::size_t dim : Counts{1, 7, 8, 10, 12, 15, 16, 17, 24, 31, 32, 33, 40, 64, 80, 100, 128}) {
    shapes.push_back({2, dim, dim, 33, 100});
    shapes.push_back({5, dim, 129 - dim, 0, 70});
  }
  shapes.push_back({128, 16, 8, 0, 40});
  shapes.push_back({1, 1024, 1024, 30, 70});
  shapes.push_back({3, 576, 512, 0, 40});
  return shapes;
}

/// `plain` with each of the options that a task has.
std::vector<Shape> WithOptions(const Shape& plain) {
  std::vector<Shape> shapes;
  for (const KeyLayout layout : {KeyLayout::kColumns, KeyLayout::kRows}) {
    for (const bool biased : {false, true}) {
      for (const bool sinks : {false, true}) {
        Shape shape = plain;
        shape.layout = layout;
        shape.value_gap = biased == sinks ? 5 : 0;
        shape.biased = biased;
        if (sinks) shape.sinks = RandomValues(shape.heads, 24);
        for (const KvType type : {KvType::kF32, KvType::kBf16}) {
          shape.type = type;
          shapes.push_back(shape);
        }
      }
    }
  }
  return shapes;
}

Shape Latent(std::size_t heads, std::size_t key_dim, std::size_t value_dim, std::size_t begin, std::size_t end) {
  return {heads, key_dim, value_dim, begin, end, KeyLayout::kRows, true};
}

std::vector<Shape> OptionShapes() {
  std::vector<Shape> shapes;
  const auto add = [&](const Shape& plain) {
    const std::vector<Shape> more = WithOptions(plain);
    shapes.insert(shapes.end(), more.begin(), more.end());
  };
  for (const auto& [begin, end] : kWindows) add({3, 20, 24, begin, end});
  for (std::size_t heads = 1; heads <= 9; ++heads) add({heads, 18, 17, 3, 75});
  for (const std::size_t heads : Counts{31, 32, 33, 67}) add({heads, 18, 17, 30, 66});
  for (const std::size_t dim : Counts{1, 7, 15, 16, 17, 31, 32, 33, 47, 48, 64, 100}) add({5, dim, 101 - dim, 1, 70});
  // Sinks that take everything, nothing, and something in between.
  for (const KeyLayout layout : {KeyLayout::kColumns, KeyLayout::kRows}) {
    shapes.push_back({7, 18, 17, 3, 75, layout, false, 0, false, {1e30f, -1e30f, kMinusInfinity, 80, -80, 0, 10}});
  }
  return shapes;
}

std::vector<Shape> Shapes() {
  std::vector<Shape> plain = ColumnShapes();
  for (const std::size_t heads : Counts{1, 2, 5, 16, 33}) plain.push_back(Latent(heads, 72, 64, 20, 100));
  plain.push_back(Latent(40, 576, 512, 10, 70));
  // Every first and last position that a page can have.
  for (std::size_t slot = 0; slot < kPageTokens; ++slot) {
    plain.push_back(Latent(3, 24, 20, slot, 64));
    plain.push_back(Latent(3, 24, 20, 64, 65 + slot));
  }
  std::vector<Shape> shapes = OptionShapes();
  for (const Shape& shape : plain) {
    for (const KvType type : {KvType::kF32, KvType::kBf16}) {
      shapes.push_back(shape);
      shapes.back().type = type;
    }
  }
  return shapes;
}

using Attention = EachSimdKernels;

TEST_P(Attention, AgreesWithANaiveSoftmaxInDouble) {
  for (const Shape& shape : Shapes()) {
    const Case c(shape);
    const std::vector<float> got = c.Run(kernels());
    const std::vector<float> expected = c.Run(ReferenceKernels());
    const double tolerance = Tolerance(c, shape);
    for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], tolerance) << shape << " value " << i;
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
  for (const Shape& shape : WithOptions({11, 24, 40, 9, 140})) {
    const Case c(shape);
    const std::vector<float> all = c.Run(kernels());
    for (std::size_t first = 0; first < shape.heads; ++first) {
      for (std::size_t count = 1; first + count <= shape.heads; ++count) {
        const auto expected = std::span(all).subspan(first * shape.value_dim, count * shape.value_dim);
        ASSERT_TRUE(SameBits(c.Run(kernels(), first, count), expected)) << shape << ": " << first << " + " << count;
      }
    }
  }
}

/// What queries at `count` consecutive positions from `position` on see, the last `window` of them.
std::vector<VisibleRange> CausalRanges(std::size_t position, std::size_t count, std::size_t window) {
  std::vector<VisibleRange> ranges;
  for (std::size_t end = position + 1; end <= position + count; ++end)
    ranges.push_back({.begin = end > window ? end - window : 0, .end = end});
  return ranges;
}

TEST_P(Attention, OfSeveralPositionsIsThatOfEachByItself) {
  for (const std::size_t count : Counts{2, 3, 8, 16, 40}) {
    for (const std::size_t position : Counts{0, 5, 31, 32, 75}) {
      for (const std::size_t window : Counts{1, 7, 40, 1000}) {
        const std::vector<VisibleRange> visible = CausalRanges(position, count, window);
        for (Shape shape : WithOptions({count, 24, 40, visible.front().begin, visible.back().end})) {
          const Case all(shape);
          const std::vector<float> got = all.Run(kernels(), 0, count, 0, visible);
          for (std::size_t query = 0; query < count; ++query) {
            const std::vector<float> alone = all.Run(kernels(), query, 1, 0, std::span(visible).subspan(query, 1));
            ASSERT_TRUE(SameBits(std::span(got).subspan(query * shape.value_dim, shape.value_dim), alone))
                << shape << " query " << query << " at " << position << ", window " << window;
          }
        }
      }
    }
  }
}

TEST_P(Attention, OfSeveralPositionsAgreesWithTheReference) {
  for (const std::size_t window : Counts{9, 1000}) {
    const std::vector<VisibleRange> visible = CausalRanges(50, 20, window);
    for (Shape shape : WithOptions({20, 24, 40, visible.front().begin, visible.back().end})) {
      const Case c(shape);
      const std::vector<float> got = c.Run(kernels(), 0, 20, 0, visible);
      const std::vector<float> expected = c.Run(ReferenceKernels(), 0, 20, 0, visible);
      const double tolerance = Tolerance(c, shape);
      for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_NEAR(got[i], expected[i], tolerance) << shape << " value " << i;
    }
  }
}

TEST_P(Attention, DoesNotLookAtPagesPastTheEnd) {
  for (const std::size_t end : Counts{1, 32, 33, 64, 97}) {
    for (const Shape& shape : WithOptions({3, 16, 16, 0, end})) {
      const Case c(shape);
      ASSERT_TRUE(SameBits(c.Run(kernels(), 0, 3, 7), c.Run(kernels()))) << shape;
    }
  }
}

TEST_P(Attention, OfOnePositionIsItsValue) {
  for (Shape shape : WithOptions({2, 8, 20, 70, 71})) {
    shape.sinks.clear();
    const Case c(shape);
    const std::vector<float> got = c.Run(kernels());
    for (std::size_t i = 0; i < 20; ++i) {
      EXPECT_EQ(got[i], c.value(70, i));
      EXPECT_EQ(got[20 + i], c.value(70, i));
    }
  }
}

TEST_P(Attention, OverRowsAndOverColumnsDiffersByTheOrderOfTheSumsOnly) {
  for (const std::size_t key_dim : Counts{5, 64, 100}) {
    for (const Shape& columns : WithOptions({6, key_dim, 33, 17, 120})) {
      Shape rows = columns;
      rows.layout = KeyLayout::kRows;
      const Case a(columns), b(rows);
      const double tolerance = Tolerance(a, columns) + Tolerance(b, rows);
      const std::vector<float> got = a.Run(kernels()), other = b.Run(kernels());
      for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_NEAR(got[i], other[i], tolerance) << columns << " value " << i;
    }
  }
}

TEST_P(Attention, IgnoresTheBiasOfInvisiblePositions) {
  for (Shape shape : WithOptions({4, 20, 18, 37, 75})) {
    if (!shape.biased) continue;
    const std::vector<float> expected = Case(shape).Run(kernels());
    for (const float hidden : {0.0f, 3e38f, -3e38f, -kMinusInfinity, kMinusInfinity}) {
      shape.hidden_bias = hidden;
      ASSERT_TRUE(SameBits(Case(shape).Run(kernels()), expected)) << shape << " hidden " << hidden;
    }
  }
}

TEST_P(Attention, ABiasOfMinusInfinityHidesAPosition) {
  for (Shape shape : WithOptions({3, 20, 18, 0, 90})) {
    if (!shape.biased) continue;
    Case masked(shape);
    constexpr std::size_t kHidden = 43;  // a whole block and a part of the next
    for (std::size_t head = 0; head < shape.heads; ++head) {
      for (std::size_t at = 0; at < 90; ++at) masked.SetBias(head, at, at < kHidden ? kMinusInfinity : 1.5f);
    }
    shape.begin = kHidden;
    Case shorter(shape);
    for (std::size_t head = 0; head < shape.heads; ++head) {
      for (std::size_t at = kHidden; at < 90; ++at) shorter.SetBias(head, at, 1.5f);
    }
    ASSERT_TRUE(SameBits(masked.Run(kernels()), shorter.Run(kernels()))) << shape;
  }
}

TEST_P(Attention, ASinkTakesItsShare) {
  const float lowest = std::numeric_limits<float>::lowest();
  for (Shape shape : WithOptions({3, 20, 18, 5, 90})) {
    shape.sinks.clear();
    const std::vector<float> without = Case(shape).Run(kernels());
    for (const float none : {kMinusInfinity, lowest, -200.0f}) {
      shape.sinks.assign(3, none);
      EXPECT_TRUE(SameBits(Case(shape).Run(kernels()), without)) << shape << " sink " << none;
    }
    for (const float all : {200.0f, -lowest}) {
      shape.sinks.assign(3, all);
      for (const float value : Case(shape).Run(kernels())) EXPECT_EQ(value, 0.0f) << shape << " sink " << all;
    }
  }
}

TEST_P(Attention, ASinkAsHighAsTheOnlyScoreTakesHalf) {
  Shape shape{1, 8, 20, 70, 71};
  shape.sinks = {0};
  Case c(shape);
  shape.sinks = {PromisedScore(c, shape, 0, 70) * c.scale()};
  const std::vector<float> got = Case(shape).Run(kernels());
  for (std::size_t i = 0; i < 20; ++i) EXPECT_EQ(got[i], c.value(70, i) / 2);
}

// What is not finite stays where it belongs: a value in its column, a key's score in its head's weights.

TEST_P(Attention, PropagatesValuesThatAreNotFinite) {
  const float infinity = -kMinusInfinity;
  for (const float bad : {infinity, kMinusInfinity, kNan}) {
    for (const Shape& shape : WithOptions({3, 20, 24, 5, 90})) {
      Case c(shape);
      const std::vector<float> without = c.Run(kernels());
      constexpr std::size_t kColumn = 18;  // behind the last whole vector
      c.SetValue(70, kColumn, bad);
      const std::vector<float> got = c.Run(kernels());
      for (std::size_t i = 0; i < got.size(); ++i) {
        if (i % 24 == kColumn) {
          EXPECT_TRUE(std::isnan(bad) ? std::isnan(got[i]) : got[i] == bad) << shape << ": " << got[i];
        } else {
          EXPECT_EQ(got[i], without[i]) << shape << " value " << i;
        }
      }
    }
  }
}

TEST_P(Attention, OfAKeyThatIsNotANumberIsNotANumber) {
  for (const Shape& shape : WithOptions({2, 20, 24, 5, 90})) {
    Case c(shape);
    c.SetKey(70, 19, kNan);
    for (const float value : c.Run(kernels())) EXPECT_TRUE(std::isnan(value)) << shape;
  }
}

INSTANTIATE_TEST_SUITE_P(Simd, Attention, EachAvailable(), NameOf);

TEST(AttentionDeath, RejectsTasksThatDoNotFit) {
  const std::vector<float> zeros(64 * 16, 0.0f);
  const std::vector<const std::byte*> pages(2, reinterpret_cast<const std::byte*>(zeros.data()));
  std::vector<float> results(2 * 16);
  const AttentionTask good{.queries = {zeros.data(), 2, 16},
                           .key_pages = pages,
                           .value_pages = pages,
                           .value_stride = 16,
                           .begin = 0,
                           .end = 33,
                           .out = {results.data(), 2, 16}};
  SimdKernels().Attention(good);
  AttentionTask task = good;
  task.value_stride = 15;
  EXPECT_DEATH(SimdKernels().Attention(task), "value_stride");
  task = good;
  task.bias = {zeros.data(), 2, 63};
  EXPECT_DEATH(SimdKernels().Attention(task), "bias");
  task.bias = {zeros.data(), 1, 64};
  EXPECT_DEATH(SimdKernels().Attention(task), "bias");
  task = good;
  task.sinks = std::span(zeros).first(1);
  EXPECT_DEATH(SimdKernels().Attention(task), "sinks");
  task = good;
  const VisibleRange one{.begin = 0, .end = 33};
  task.visible = {&one, 1};
  EXPECT_DEATH(SimdKernels().Attention(task), "visible");
  task = good;
  task.end = 65;
  EXPECT_DEATH(SimdKernels().Attention(task), "pages");
}

}  // namespace
}  // namespace moe
