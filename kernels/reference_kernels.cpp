// The reference: the formulas as a textbook has them, in double precision, with the C library's functions. It shares
// no arithmetic with the SIMD code that it checks.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "core/check.h"
#include "kernels/kernels.h"

namespace moe {
namespace {

/// x / scale as an integer in [lowest, highest], ties to even.
int Quantized(float x, float scale_reciprocal, int lowest, int highest) {
  const double rounded = std::nearbyint(static_cast<double>(x) * scale_reciprocal);
  return static_cast<int>(std::clamp<double>(rounded, lowest, highest));
}

/// The value of largest magnitude, the positive one of two; NaN when any is not finite.
float Extreme(std::span<const float> values) {
  float extreme = 0;
  for (const float value : values) {
    if (!std::isfinite(value)) return std::numeric_limits<float>::quiet_NaN();
    if (std::abs(value) > std::abs(extreme) || value == std::abs(extreme)) extreme = value;
  }
  return extreme;
}

/// What is lost when `values` become int4 with this scale.
double SquaredError(std::span<const float> values, float scale) {
  double error = 0;
  for (const float value : values) {
    const double left = value - static_cast<double>(scale) * Quantized(value, 1 / scale, -8, 7);
    error += left * left;
  }
  return error;
}

std::uint16_t Int4Scale(std::span<const float> values, float extreme) {
  std::uint16_t best = F32ToBf16(extreme / -8);
  for (const float factor : kInt4Factors) {
    const std::uint16_t scale = F32ToBf16(extreme / -8 * factor);
    if (SquaredError(values, Bf16ToF32(scale)) < SquaredError(values, Bf16ToF32(best))) best = scale;
  }
  return best;
}

double PageElement(KvType type, const std::byte* page, std::size_t index) {
  const std::byte* element = page + index * BytesPerElement(type);
  if (type == KvType::kF32) {
    float value;
    std::memcpy(&value, element, sizeof(value));
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, element, sizeof(bits));
  return Bf16ToF32(bits);
}

float Limited(float value, float lowest, float highest) {
  return std::isnan(value) ? value : std::clamp(value, lowest, highest);
}

/// y(row, col) = the sum over k of in(row, k) and the weights of output col of the panels from `panel_begin` on.
template <typename In>
void Multiply(const In& in, const PackedMatrix& w, std::size_t panel_begin, MatrixView<float> y) {
  // Some rows at a time, so that a weight is unpacked once for all of them: that is most of the work.
  std::array<double, 16> sums;
  for (std::size_t first = 0; first < y.rows(); first += sums.size()) {
    const std::size_t rows = std::min(sums.size(), y.rows() - first);
    for (std::size_t col = 0; col < y.cols(); ++col) {
      sums.fill(0);
      for (std::size_t k = 0; k < w.cols(); ++k) {
        const double weight = w.at(panel_begin * PackedMatrix::kPanelWidth + col, k);
        for (std::size_t row = 0; row < rows; ++row) sums[row] += in(first + row, k) * weight;
      }
      for (std::size_t row = 0; row < rows; ++row) y(first + row, col) = static_cast<float>(sums[row]);
    }
  }
}

class Reference final : public Kernels {
 public:
  std::string_view name() const override { return "reference"; }

  void MatMulPanels(MatrixView<const float> x, const PackedMatrix& w, std::size_t panel_begin, std::size_t panel_end,
                    MatrixView<float> y) const override {
    MOE_CHECK(x.cols() == w.cols() && x.rows() == y.rows() && y.cols() == w.Outputs(panel_begin, panel_end));
    Multiply([x](std::size_t row, std::size_t k) { return static_cast<double>(x(row, k)); }, w, panel_begin, y);
  }

  void MatMulPanels(const QuantizedView& x, const PackedMatrix& w, std::size_t panel_begin, std::size_t panel_end,
                    MatrixView<float> y) const override {
    MOE_CHECK(x.cols == w.cols() && x.rows == y.rows() && y.cols() == w.Outputs(panel_begin, panel_end));
    const auto in = [x](std::size_t row, std::size_t k) {
      return static_cast<double>(x.scales[k / x.group * x.stride + row]) * x.values[row * x.groups * x.group + k];
    };
    Multiply(in, w, panel_begin, y);
  }

  void QuantizeRow(std::span<const float> x, std::size_t group, const QuantizedGroups& out) const override {
    MOE_CHECK(out.values.size() == (x.size() + group - 1) / group * group);
    const int zero_point = ZeroPoint(group == GroupSize(WeightType::kInt8) ? WeightType::kInt8 : WeightType::kInt4);
    std::ranges::fill(out.values, std::int8_t{0});
    for (std::size_t g = 0; g * group < x.size(); ++g) {
      float& scale = out.scales[g * out.stride];
      std::int32_t& offset = out.offsets[g * out.stride];
      offset = 0;
      const std::span<const float> values = x.subspan(g * group, std::min(group, x.size() - g * group));
      const float magnitude = std::abs(Extreme(values));
      scale = magnitude < kSmallestMagnitude ? 0 : magnitude / 127;
      if (!(magnitude >= kSmallestMagnitude)) continue;  // nothing, or NaN
      for (std::size_t i = 0; i < values.size(); ++i) {
        const int value = Quantized(values[i], 127 / magnitude, -127, 127);
        out.values[g * group + i] = static_cast<std::int8_t>(value);
        offset -= zero_point * value;
      }
    }
  }

  void QuantizeWeights(const WeightView& row, WeightType type, std::span<std::uint8_t> stored,
                       std::span<std::uint16_t> scales) const override {
    const bool wide = type == WeightType::kInt8;
    std::ranges::fill(stored, static_cast<std::uint8_t>(ZeroPoint(type)));
    for (std::size_t g = 0; g < scales.size(); ++g) {
      std::vector<float> values;
      for (std::size_t i = g * GroupSize(type); i < std::min(row.cols, (g + 1) * GroupSize(type)); ++i)
        values.push_back(row.at(0, i));
      const float extreme = Extreme(values);
      scales[g] = F32ToBf16(std::abs(extreme) < kSmallestMagnitude ? 0 : extreme);
      if (!(std::abs(extreme) >= kSmallestMagnitude)) continue;  // nothing, or NaN
      scales[g] = wide ? F32ToBf16(std::abs(extreme) / 127) : Int4Scale(values, extreme);
      for (std::size_t i = 0; i < values.size(); ++i) {
        const int q = Quantized(values[i], 1 / Bf16ToF32(scales[g]), wide ? -127 : -8, wide ? 127 : 7);
        stored[g * GroupSize(type) + i] = static_cast<std::uint8_t>(q + ZeroPoint(type));
      }
    }
  }

  void RmsNorm(std::span<const float> x, std::span<const float> weight, float eps, std::span<float> y) const override {
    MOE_CHECK((weight.empty() || weight.size() == x.size()) && y.size() == x.size());
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double root = std::sqrt(squares / static_cast<double>(x.size()) + eps);
    for (std::size_t i = 0; i < x.size(); ++i) {
      y[i] = static_cast<float>((weight.empty() ? 1.0 : weight[i]) * (x[i] / root));
    }
  }

  void Rope(MatrixView<float> heads, std::span<const float> cos, std::span<const float> sin,
            RopePairing pairing) const override {
    const std::size_t half = cos.size();
    MOE_CHECK(sin.size() == half && 2 * half <= heads.cols());
    for (std::size_t head = 0; head < heads.rows(); ++head) {
      for (std::size_t i = 0; i < half; ++i) {
        float& first = heads(head, pairing == RopePairing::kHalfSplit ? i : 2 * i);
        float& second = heads(head, pairing == RopePairing::kHalfSplit ? i + half : 2 * i + 1);
        const double a = first;
        const double b = second;
        const double c = cos[i];
        const double s = sin[i];
        first = static_cast<float>(a * c - b * s);
        second = static_cast<float>(b * c + a * s);
      }
    }
  }

  void SiluMul(std::span<float> gate, std::span<const float> up) const override {
    MOE_CHECK(gate.size() == up.size());
    for (std::size_t i = 0; i < gate.size(); ++i) {
      const double z = gate[i];
      gate[i] = static_cast<float>(z / (1 + std::exp(-z)) * up[i]);
    }
  }

  void ClampedSwiGlu(std::span<float> gate, std::span<const float> up, float limit) const override {
    MOE_CHECK(gate.size() == up.size());
    for (std::size_t i = 0; i < gate.size(); ++i) {
      const double z = Limited(gate[i], -std::numeric_limits<float>::infinity(), limit);
      gate[i] = static_cast<float>((Limited(up[i], -limit, limit) + 1.0) * z / (1 + std::exp(-1.702 * z)));
    }
  }

  void Relu(std::span<float> x) const override {
    for (float& value : x) value = Limited(value, 0, std::numeric_limits<float>::infinity());
  }

  void Sigmoid(std::span<float> x) const override {
    for (float& value : x) value = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(value))));
  }

  void Clamp(float limit, std::span<float> x) const override {
    MOE_CHECK(limit >= 0);
    for (float& value : x) value = Limited(value, -limit, limit);
  }

  void Scale(float factor, std::span<float> x) const override {
    for (float& value : x) value *= factor;
  }

  void Add(std::span<const float> x, std::span<float> y) const override {
    MOE_CHECK(x.size() == y.size());
    for (std::size_t i = 0; i < x.size(); ++i) y[i] += x[i];
  }

  void AddScaled(float scale, std::span<const float> x, std::span<float> y) const override {
    MOE_CHECK(x.size() == y.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      y[i] = static_cast<float>(y[i] + static_cast<double>(scale) * x[i]);
    }
  }

  void Softmax(std::span<float> x) const override {
    if (x.empty()) return;
    const double highest = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (const double value : x) sum += std::exp(value - highest);
    for (float& value : x) value = static_cast<float>(std::exp(value - highest) / sum);
  }

  float LogSumExp(std::span<const float> x) const override {
    if (x.empty()) return -std::numeric_limits<float>::infinity();
    const double highest = *std::max_element(x.begin(), x.end());
    if (std::isinf(highest)) return static_cast<float>(highest);
    double sum = 0;
    for (const double value : x) sum += std::exp(value - highest);
    return static_cast<float>(highest + std::log(sum));
  }

  void Attention(const AttentionTask& task) const override {
    MOE_CHECK(task.begin < task.end && task.out.rows() == task.queries.rows());
    MOE_CHECK(task.visible.empty() || task.visible.size() == task.queries.rows());
    std::vector<double> weights;
    for (std::size_t query = 0; query < task.queries.rows(); ++query) {
      const VisibleRange seen = task.SeenBy(query);
      const double sum = Weigh(task, query, weights);
      for (std::size_t col = 0; col < task.out.cols(); ++col) {
        double value = 0;
        for (std::size_t at = seen.begin; at < seen.end; ++at) {
          const std::byte* page = task.value_pages[at / kPageTokens];
          value +=
              weights[at - seen.begin] * PageElement(task.type, page, (at % kPageTokens) * task.value_stride + col);
        }
        task.out(query, col) = static_cast<float>(value / sum);
      }
    }
  }

 private:
  static double Score(const AttentionTask& task, std::size_t query, std::size_t at) {
    const std::size_t key_dim = task.queries.cols();
    const std::byte* page = task.key_pages[at / kPageTokens];
    const std::size_t slot = at % kPageTokens;
    double score = 0;
    for (std::size_t i = 0; i < key_dim; ++i) {
      const std::size_t index = task.key_layout == KeyLayout::kRows ? slot * key_dim + i : i * kPageTokens + slot;
      score += static_cast<double>(task.queries(query, i)) * PageElement(task.type, page, index);
    }
    return score * task.scale + (task.bias.rows() > 0 ? task.bias(query, at) : 0.0);
  }

  /// Sets weights[position - first seen] to exp(score - highest score) and returns their sum, with the sink's.
  static double Weigh(const AttentionTask& task, std::size_t query, std::vector<double>& weights) {
    const VisibleRange seen = task.SeenBy(query);
    weights.clear();
    for (std::size_t at = seen.begin; at < seen.end; ++at) weights.push_back(Score(task, query, at));
    const double sink = task.sinks.empty() ? -std::numeric_limits<double>::infinity() : task.sinks[query];
    const double highest = std::max(sink, *std::max_element(weights.begin(), weights.end()));
    double sum = std::exp(sink - highest);
    for (double& weight : weights) {
      weight = std::exp(weight - highest);
      sum += weight;
    }
    return sum;
  }
};

}  // namespace

const Kernels& ReferenceKernels() {
  static const Reference kernels;
  return kernels;
}

}  // namespace moe
