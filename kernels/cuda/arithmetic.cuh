// The arithmetic that a device has in common with the CPU, operation by operation: exp, the activations, the rounding
// to integers (kernels/exp.h, kernels/kernels.h, kernels/quantize.h). The same bits come out as on the CPU.
#pragma once

#include "kernels/cuda/execution.cuh"
#include "kernels/cuda/expert_kernels.h"
#include "kernels/exp.h"

namespace moe::cuda {

/// kernels/exp.h's Exp.
MOE_DEVICE float Exp(float x) {
  using namespace exp_constants;
  const float clamped = x > kExpHighest ? kExpHighest : x;
  const float shifted = Fma(clamped, kLog2E, kRound);
  const float n = shifted - kRound;
  const float r = Fma(n, -kLn2Low, Fma(n, -kLn2High, clamped));
  const float q = Fma(Fma(Fma(Fma(kQ4, r, kQ3), r, kQ2), r, kQ1), r, kQ0);
  const float e = Fma(r * r, q, r) + 1.0f;
  const float result = (e + e) * FloatOf((BitsOf(shifted) + kExponentBias) << kExponentShift);
  return x < kExpLowest ? 0.0f : result;
}

// NaN stays NaN.
MOE_DEVICE float AtMost(float x, float limit) { return x > limit ? limit : x; }
MOE_DEVICE float AtLeast(float x, float limit) { return x < limit ? limit : x; }

/// What the down-projection reads: `first` is the gate's output, or the only one of an expert that is not gated.
MOE_DEVICE float Activate(ExpertActivation activation, float limit, float first, float up) {
  switch (activation) {
    case ExpertActivation::kSiluGated: return first / (1.0f + Exp(-first)) * up;
    case ExpertActivation::kClampedSwiGlu: {
      const float z = AtMost(first, limit);
      const float other = AtLeast(AtMost(up, limit), -limit);
      const float swish = z / (1.0f + Exp(-1.702f * z));
      return Fma(other, swish, swish);
    }
    case ExpertActivation::kRelu: break;
  }
  return AtLeast(first, 0.0f);
}

/// Rows of 16-bit floats and back.
template <bool kIsBf16>
MOE_DEVICE std::uint16_t Narrow(float value) {
  if constexpr (kIsBf16) return NarrowBf16(value);
  return NarrowF16(value);
}
template <bool kIsBf16>
MOE_DEVICE float Widen(std::uint16_t bits) {
  if constexpr (kIsBf16) return WidenBf16(bits);
  return WidenF16(bits);
}

}  // namespace moe::cuda
