// The reference: the formulas as a textbook has them, in double precision, with the C library's functions. It shares
// no arithmetic with the SIMD code that it checks.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "core/check.h"
#include "kernels/kernels.h"

namespace moe {
namespace {

double PackedElement(const PackedMatrix& w, std::size_t row, std::size_t col) {
  constexpr std::size_t kWidth = PackedMatrix::kPanelWidth;
  const std::byte* element = w.panel(row / kWidth) + (col * kWidth + row % kWidth) * BytesPerWeight(w.type());
  if (w.type() == WeightType::kF32) {
    float value;
    std::memcpy(&value, element, sizeof(value));
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, element, sizeof(bits));
  return w.type() == WeightType::kBf16 ? Bf16ToF32(bits) : F16ToF32(bits);
}

float Limited(float value, float lowest, float highest) {
  return std::isnan(value) ? value : std::clamp(value, lowest, highest);
}

class Reference final : public Kernels {
 public:
  std::string_view name() const override { return "reference"; }

  void MatMulPanels(MatrixView<const float> x, const PackedMatrix& w, std::size_t panel_begin, std::size_t panel_end,
                    MatrixView<float> y) const override {
    MOE_CHECK(x.cols() == w.cols() && y.cols() == w.rows() && x.rows() == y.rows());
    MOE_CHECK(panel_begin <= panel_end && panel_end <= w.panels());
    const std::size_t begin = panel_begin * PackedMatrix::kPanelWidth;
    const std::size_t end = std::min(panel_end * PackedMatrix::kPanelWidth, w.rows());
    for (std::size_t row = 0; row < x.rows(); ++row) {
      for (std::size_t col = begin; col < end; ++col) {
        double sum = 0;
        for (std::size_t k = 0; k < x.cols(); ++k) sum += x(row, k) * PackedElement(w, col, k);
        y(row, col) = static_cast<float>(sum);
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
    std::vector<double> weights(task.end - task.begin);
    for (std::size_t head = 0; head < task.queries.rows(); ++head) {
      const double sum = Weigh(task, head, weights);
      for (std::size_t col = 0; col < task.out.cols(); ++col) {
        double value = 0;
        for (std::size_t at = task.begin; at < task.end; ++at) {
          const float* page = task.value_pages[at / kPageTokens];
          value += weights[at - task.begin] * page[(at % kPageTokens) * task.value_stride + col];
        }
        task.out(head, col) = static_cast<float>(value / sum);
      }
    }
  }

 private:
  static double Score(const AttentionTask& task, std::size_t head, std::size_t at) {
    const std::size_t key_dim = task.queries.cols();
    const float* page = task.key_pages[at / kPageTokens];
    const std::size_t slot = at % kPageTokens;
    double score = 0;
    for (std::size_t i = 0; i < key_dim; ++i) {
      const float key = task.key_layout == KeyLayout::kRows ? page[slot * key_dim + i] : page[i * kPageTokens + slot];
      score += static_cast<double>(task.queries(head, i)) * key;
    }
    return score * task.scale + (task.bias.rows() > 0 ? task.bias(head, at) : 0.0);
  }

  /// Sets weights[position - begin] to exp(score - highest score) and returns their sum, with the sink's.
  static double Weigh(const AttentionTask& task, std::size_t head, std::vector<double>& weights) {
    for (std::size_t at = task.begin; at < task.end; ++at) {
      weights[at - task.begin] = Score(task, head, at);
    }
    const double sink = task.sinks.empty() ? -std::numeric_limits<double>::infinity() : task.sinks[head];
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
