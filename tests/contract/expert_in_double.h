// An expert by its definition, in double precision, with a bound of what an honest computation may be off by.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "kernels/quantize.h"
#include "model/config.h"
#include "model/weights.h"
#include "tests/kernels/kernel_cases.h"

namespace moe {

/// A value computed in double, and by how much an honest fp32 computation of it may be off.
struct Bounded {
  double value = 0;
  double error = 0;
};

/// Where a backend's arithmetic on 16-bit weights leaves fp32.
struct ExpertRoundings {
  bool inputs = false;  // what a product reads is rounded to the weights' type
  bool sums = false;    // what it gives too, before the bias
};

/// The relative error of rounding to a 16-bit type, half an ulp, and the absolute one where f16 has no more exponents.
inline double NarrowRoundoff(WeightType type) { return type == WeightType::kBf16 ? 0x1p-8 : 0x1p-11; }
inline double NarrowSmallest(WeightType type) { return type == WeightType::kBf16 ? 0 : 0x1p-25; }

inline bool IsNarrow(WeightType type) { return type == WeightType::kBf16 || type == WeightType::kF16; }

/// A value that is known but for its error, rounded.
inline Bounded NarrowInDouble(const Bounded& x, WeightType type) {
  return {.value = x.value,
          .error = x.error + NarrowRoundoff(type) * (std::abs(x.value) + x.error) + NarrowSmallest(type)};
}

/// W x + bias in double. In fp32, n products and n additions (and one for the bias) round; each rounding is at most
/// half an ulp of a partial sum, which is at most Σ |w x| + |bias|. Of quantized weights a group rounds once, the
/// product of scales once, and the reference rounds each x and its sum. What x itself is off by is passed on.
inline Bounded LinearInDouble(const PackedMatrix& w, std::size_t row, std::span<const Bounded> x,
                              const std::vector<float>& bias, const ExpertRoundings& roundings) {
  Bounded sum;
  double magnitude = 0;
  for (std::size_t k = 0; k < w.cols(); ++k) {
    const double weight = PackedElement(w, row, k);
    sum.value += weight * x[k].value;
    sum.error += std::abs(weight) * x[k].error;
    magnitude += std::abs(weight * x[k].value);
  }
  if (roundings.sums && IsNarrow(w.type())) sum = NarrowInDouble(sum, w.type());
  if (!bias.empty()) {
    sum.value += bias[row];
    magnitude += std::abs(bias[row]);
  }
  // A tensor core adds without rounding to nearest, by up to an ulp an addition; its products are exact.
  const std::size_t steps = IsQuantized(w.type()) ? GroupsOf(w.cols(), w.type()) + 3 : 2 * w.cols() + 1;
  sum.error += static_cast<double>(steps) * kRoundoff * magnitude;
  return sum;
}

/// A group of activations as products take them: integers times a scale (kernels/quantize.h). Where x / scale may lie
/// on either side of a tie, or the scale may be anything, the integer may be the next one.
inline void QuantizeGroupInDouble(std::span<Bounded> x) {
  double magnitude = 0;
  double off = 0;
  for (const Bounded& value : x) {
    magnitude = std::max(magnitude, std::abs(value.value));
    off = std::max(off, value.error);
  }
  const double scale = magnitude / 127;
  const double scale_error = off / 127 + kRoundoff * scale;
  for (Bounded& value : x) {
    const double steps = scale > 0 ? value.value / scale : 0;
    const double integer = std::nearbyint(steps);
    // The reciprocal of the scale is rounded, and as far off as the magnitude is.
    const double steps_error = scale > 0 ? value.error / scale + std::abs(steps) * (off / magnitude + kRoundoff) : 0;
    const bool sure = scale > 0 && std::abs(steps - integer) + steps_error < 0.5;
    const double unsure_error = value.error + scale + scale_error;
    value = {.value = integer * scale, .error = std::abs(integer) * scale_error + (sure ? 0 : unsure_error)};
  }
}

/// What a product with `w` takes of x. What is known exactly is rounded exactly.
inline std::vector<Bounded> InputsInDouble(const PackedMatrix& w, std::vector<Bounded> x,
                                           const ExpertRoundings& roundings) {
  if (roundings.inputs && IsNarrow(w.type())) {
    for (Bounded& value : x) {
      const auto known = static_cast<float>(value.value);
      const bool bf16 = w.type() == WeightType::kBf16;
      value = value.error == 0 ? Bounded{.value = bf16 ? Bf16ToF32(F32ToBf16(known)) : F16ToF32(F32ToF16(known))}
                               : NarrowInDouble(value, w.type());
    }
  }
  if (!IsQuantized(w.type())) return x;
  const std::size_t group = GroupSize(w.type());
  for (std::size_t begin = 0; begin < x.size(); begin += group)
    QuantizeGroupInDouble(std::span(x).subspan(begin, std::min(group, x.size() - begin)));
  return x;
}

/// z * sigmoid(slope z), whose own slope is at most 1.1. exp is off by an ulp, by half an ulp of its argument, up to 8
/// here, and by what the product slope * z rounds, as much again; the sum, the quotient and the product round once
/// each.
inline Bounded SwishInDouble(const Bounded& z, double slope) {
  const double value = z.value / (1 + std::exp(-slope * z.value));
  return {.value = value, .error = 1.1 * z.error + (2 + 8 + 8 + 2) * kRoundoff * std::abs(value)};
}

/// a * b, rounded once.
inline Bounded Times(const Bounded& a, const Bounded& b) {
  return {.value = a.value * b.value,
          .error = a.error * (std::abs(b.value) + b.error) + std::abs(a.value) * b.error +
                   kRoundoff * std::abs(a.value * b.value)};
}

/// The activation by its definition: silu(gate) * up, relu(up), or gpt-oss's
/// (clamp(up) + 1) * min(gate, limit) * sigmoid(1.702 min(gate, limit)). A limit passes on no more error than came in.
inline Bounded ActivationInDouble(const MlpSpec& mlp, const Bounded& first, const Bounded& up) {
  switch (mlp.activation) {
    case Activation::kSiluGated: return Times(SwishInDouble(first, 1), up);
    case Activation::kRelu: return {.value = std::max(first.value, 0.0), .error = first.error};
    case Activation::kClampedSwiGlu: {
      const double limit = mlp.limit;
      const Bounded gate = {.value = std::min(first.value, limit), .error = first.error};
      const double clamped = std::clamp(up.value, -limit, limit) + 1;
      return Times(SwishInDouble(gate, 1.702), {.value = clamped, .error = up.error + kRoundoff * std::abs(clamped)});
    }
    case Activation::kGeluGated:
    case Activation::kGelu: break;
  }
  ADD_FAILURE() << "no such expert is served";
  return {};
}

/// down(activation(gate x, up x)) by its definition.
inline std::vector<Bounded> ExpertInDouble(const MlpSpec& mlp, const MlpWeights& w, std::span<const float> in,
                                           const ExpertRoundings& roundings = {}) {
  std::vector<Bounded> x;
  for (const float value : in) x.push_back({.value = value});
  x = InputsInDouble(w.up, std::move(x), roundings);
  std::vector<Bounded> hidden;
  const std::size_t intermediate = w.down.cols();
  for (std::size_t i = 0; i < intermediate; ++i) {
    const Bounded up = LinearInDouble(w.up, i, x, w.up_bias, roundings);
    const Bounded first = mlp.gated() ? LinearInDouble(w.gate, i, x, w.gate_bias, roundings) : up;
    hidden.push_back(ActivationInDouble(mlp, first, up));
  }
  hidden = InputsInDouble(w.down, std::move(hidden), roundings);
  std::vector<Bounded> out;
  for (std::size_t i = 0; i < w.down.rows(); ++i)
    out.push_back(LinearInDouble(w.down, i, hidden, w.down_bias, roundings));
  return out;
}

}  // namespace moe
