// Attention of made-up queries over made-up pages in every form that kernels.h describes: the arithmetic it promises,
// and how far fp32 may be from the reference.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <span>
#include <vector>

#include "kernels/exp.h"
#include "kernels/kernels.h"
#include "tests/kernels/kernel_cases.h"

namespace moe {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
inline constexpr std::size_t kGap = 3;  // between one head and the next, of queries, outputs and biases

struct Shape {
  std::size_t heads, key_dim, value_dim, begin, end;
  KeyLayout layout = KeyLayout::kColumns;
  bool latent = false;        // the values are the first columns of the keys, which are rows
  std::size_t value_gap = 0;  // from one row of values to the next, when they lie apart
  bool biased = false;
  std::vector<float> sinks = {};  // one a head, or none
  float hidden_bias = kNan;       // what the bias holds at invisible positions
  KvType type = KvType::kF32;     // of the pages

  std::size_t value_stride() const { return latent ? key_dim : value_dim + value_gap; }
  std::size_t pages() const { return (end + kPageTokens - 1) / kPageTokens; }
};

inline std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << s.heads << " heads, " << s.key_dim << "/" << s.value_dim << ", [" << s.begin << ", " << s.end << ") "
             << (s.layout == KeyLayout::kRows ? "rows" : "columns") << (s.latent ? ", latent" : "") << ", "
             << Name(s.type) << (s.biased ? ", biased" : "") << (s.sinks.empty() ? "" : ", sinks");
}

/// What a page of that type holds of a value.
inline float Held(KvType type, float value) { return type == KvType::kF32 ? value : Bf16ToF32(F32ToBf16(value)); }

/// Elements of a page, NaN where nothing was put.
class Page {
 public:
  void Resize(KvType type, std::size_t elements) {
    if (!bytes_.empty()) return;
    type_ = type;
    bytes_.resize(elements * BytesPerElement(type));
    for (std::size_t i = 0; i < elements; ++i) Put(i, kNan);
  }
  void Put(std::size_t index, float value) {
    StoreRow({&value, 1}, type_ == KvType::kF32 ? WeightType::kF32 : WeightType::kBf16,
             std::span(bytes_).subspan(index * BytesPerElement(type_), BytesPerElement(type_)));
  }
  const std::byte* pointer() const { return bytes_.empty() ? nullptr : bytes_.data(); }

 private:
  KvType type_ = KvType::kF32;
  std::vector<std::byte> bytes_;
};

/// Queries and pages. Whatever may not be seen is NaN, and pages that hold nothing visible do not exist.
class Case {
 public:
  explicit Case(const Shape& shape)
      : shape_(shape),
        queries_(RandomValues(shape.heads * (shape.key_dim + kGap), 20)),
        keys_(RandomValues(shape.end * shape.key_dim, 21)),
        values_(RandomValues(shape.end * shape.value_dim, 22)),
        key_pages_(shape.pages()),
        value_pages_(shape.latent ? 0 : shape.pages()) {
    for (std::size_t at = shape.begin; at < shape.end; ++at) {
      for (std::size_t i = 0; i < shape.key_dim; ++i) SetKey(at, i, key(at, i));
      if (shape.latent) continue;
      for (std::size_t i = 0; i < shape.value_dim; ++i) SetValue(at, i, value(at, i));
    }
    if (!shape.biased) return;
    const std::vector<float> biases = RandomValues(shape.heads * shape.end, 23);
    bias_.assign(shape.heads * bias_stride(), shape.hidden_bias);
    for (std::size_t head = 0; head < shape.heads; ++head) {
      for (std::size_t at = shape.begin; at < shape.end; ++at) SetBias(head, at, 3 * biases[head * shape.end + at]);
    }
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.key_dim)); }
  MatrixView<const float> queries() const {
    return {queries_.data(), shape_.heads, shape_.key_dim, shape_.key_dim + kGap};
  }
  /// As the page holds it.
  float key(std::size_t at, std::size_t i) const { return Held(shape_.type, keys_[at * shape_.key_dim + i]); }
  float value(std::size_t at, std::size_t i) const {
    return shape_.latent ? key(at, i) : Held(shape_.type, values_[at * shape_.value_dim + i]);
  }
  void SetKey(std::size_t at, std::size_t i, float to) {
    keys_[at * shape_.key_dim + i] = to;
    const std::size_t slot = at % kPageTokens;
    Page& page = key_pages_[at / kPageTokens];
    page.Resize(shape_.type, shape_.key_dim * kPageTokens);
    page.Put(shape_.layout == KeyLayout::kRows ? slot * shape_.key_dim + i : i * kPageTokens + slot, to);
  }
  void SetValue(std::size_t at, std::size_t i, float to) {
    values_[at * shape_.value_dim + i] = to;
    Page& page = value_pages_[at / kPageTokens];
    page.Resize(shape_.type, shape_.value_stride() * kPageTokens);
    page.Put(at % kPageTokens * shape_.value_stride() + i, to);
  }
  /// 0 when there is none.
  float bias(std::size_t head, std::size_t at) const { return shape_.biased ? bias_[head * bias_stride() + at] : 0.0f; }
  void SetBias(std::size_t head, std::size_t at, float value) { bias_[head * bias_stride() + at] = value; }

  /// The outputs of heads [first, first + count), (count, value_dim); the pages are followed by `extra` null ones.
  /// `visible` as AttentionTask has it.
  std::vector<float> Run(const Kernels& kernels, std::size_t first, std::size_t count, std::size_t extra = 0,
                         std::span<const VisibleRange> visible = {}) const {
    const std::vector<const std::byte*> keys = Pointers(key_pages_, extra);
    const std::vector<const std::byte*> values = Pointers(shape_.latent ? key_pages_ : value_pages_, extra);
    const std::size_t stride = shape_.value_dim + kGap;
    std::vector<float> padded(count * stride, kNan);  // what `out` holds before must not matter
    const MatrixView<float> out(padded.data(), count, shape_.value_dim, stride);
    AttentionTask task{.queries = queries().Rows(first, count),
                       .type = shape_.type,
                       .key_pages = keys,
                       .key_layout = shape_.layout,
                       .value_pages = values,
                       .value_stride = shape_.value_stride(),
                       .begin = shape_.begin,
                       .end = shape_.end,
                       .visible = visible,
                       .scale = scale(),
                       .out = out};
    if (shape_.biased) task.bias = {&bias_[first * bias_stride()], count, shape_.pages() * kPageTokens, bias_stride()};
    if (!shape_.sinks.empty()) task.sinks = std::span(shape_.sinks).subspan(first, count);
    kernels.Attention(task);
    std::vector<float> result;
    for (std::size_t head = 0; head < count; ++head) {
      result.insert(result.end(), out.row(head).begin(), out.row(head).end());
      for (std::size_t i = shape_.value_dim; i < stride; ++i) {
        EXPECT_TRUE(std::isnan(padded[head * stride + i])) << "wrote past the row of head " << head;
      }
    }
    return result;
  }
  std::vector<float> Run(const Kernels& kernels) const { return Run(kernels, 0, shape_.heads); }

 private:
  std::size_t bias_stride() const { return shape_.pages() * kPageTokens + kGap; }
  static std::vector<const std::byte*> Pointers(const std::vector<Page>& pages, std::size_t extra) {
    std::vector<const std::byte*> pointers;
    for (const Page& page : pages) pointers.push_back(page.pointer());
    pointers.resize(pointers.size() + extra);
    return pointers;
  }

  Shape shape_;
  std::vector<float> queries_;
  std::vector<float> keys_;        // (end, key_dim)
  std::vector<float> values_;      // (end, value_dim)
  std::vector<float> bias_;        // (heads, bias_stride())
  std::vector<Page> key_pages_;    // by page: as the layout says
  std::vector<Page> value_pages_;  // by page: (kPageTokens, value_stride())
};

/// The score of one position before its scale, as kernels.h promises it.
inline float PromisedScore(const Case& c, const Shape& shape, std::size_t head, std::size_t at) {
  if (shape.layout == KeyLayout::kColumns) {
    float score = 0;
    for (std::size_t i = 0; i < shape.key_dim; ++i) score = std::fma(c.queries()(head, i), c.key(at, i), score);
    return score;
  }
  float partial[16] = {};
  for (std::size_t i = 0; i < shape.key_dim; ++i) {
    partial[i % 16] = std::fma(c.queries()(head, i), c.key(at, i), partial[i % 16]);
  }
  return LaneSum(partial);
}

/// The arithmetic of kernels.h, value by value, for one head.
inline std::vector<float> Promised(const Case& c, const Shape& shape, std::size_t head) {
  std::vector<float> out(shape.value_dim, 0.0f);
  float highest = kMinusInfinity;
  float total = 0;
  for (std::size_t start = shape.begin / kPageTokens * kPageTokens; start < shape.end; start += kPageTokens) {
    std::vector<float> weights(kPageTokens, kMinusInfinity);
    const std::size_t first = std::max(start, shape.begin);
    const std::size_t last = std::min(start + kPageTokens, shape.end);
    for (std::size_t at = first; at < last; ++at) {
      weights[at - start] = PromisedScore(c, shape, head, at) * c.scale();
      if (shape.biased) weights[at - start] += c.bias(head, at);
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
  if (!shape.sinks.empty()) {
    const float now = std::max(highest, shape.sinks[head]);
    const float rescale = Exp(highest - now);
    for (float& value : out) value *= rescale;
    total = total * rescale + Exp(shape.sinks[head] - now);
  }
  for (float& value : out) value *= 1.0f / total;
  return out;
}

/// How far fp32 may be from what double precision gives.
inline double Tolerance(const Case& c, const Shape& shape) {
  const bool rows = shape.layout == KeyLayout::kRows;
  // A running sum rounds at each product; a lane sum in a lane at each sixteenth, and four times more.
  const double sum_roundings =
      rows ? std::ceil(static_cast<double>(shape.key_dim) / 16) + 4 : static_cast<double>(shape.key_dim);
  double score_error = 0, highest_score = -1e30, lowest_score = 1e30, largest_value = 0;
  for (std::size_t at = shape.begin; at < shape.end; ++at) {
    for (std::size_t i = 0; i < shape.value_dim; ++i) {
      largest_value = std::max<double>(largest_value, std::abs(c.value(at, i)));
    }
    for (std::size_t head = 0; head < shape.heads; ++head) {
      double magnitude = 0, score = c.bias(head, at);
      for (std::size_t i = 0; i < shape.key_dim; ++i) {
        const double term = static_cast<double>(c.queries()(head, i)) * c.key(at, i) * c.scale();
        score += term;
        magnitude += std::abs(term);
      }
      // The sum and its scale, and once more, with the bias, when there is one.
      const double biased = shape.biased ? magnitude + std::abs(c.bias(head, at)) : 0;
      score_error = std::max(score_error, kRoundoff * ((sum_roundings + 1) * magnitude + biased));
      highest_score = std::max(highest_score, score);
      lowest_score = std::min(lowest_score, score);
    }
  }
  for (const double sink : shape.sinks) {
    highest_score = std::max(highest_score, sink);
    lowest_score = std::min(lowest_score, sink);
  }
  // A weight is off, relatively, by the error of its score; by u times the range of scores for s - m' and again for the
  // rescalings, whose exponents add up to no more than the range (of which all past 90 leaves nothing to be off); and
  // by exp. Each block rescales (exp and product), the sink too, and the sums have a rounding for each position and the
  // sink. Numerator and denominator alike; then the reciprocal, the product and the reference.
  const double positions = static_cast<double>(shape.end - shape.begin) + (shape.sinks.empty() ? 0 : 1);
  const double range = std::min(highest_score - lowest_score, 90.0);
  const double relative = score_error + kRoundoff * (2 * range + kExpRoundings +
                                                     (kExpRoundings + 1) * (positions / kPageTokens + 3) + positions);
  return (2 * relative + 3 * kRoundoff) * largest_value * 1.001;
}

}  // namespace moe
