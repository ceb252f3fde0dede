// What lies between the two products of an MLP, for the dense layers and the experts alike.
#pragma once

#include <span>

#include "core/check.h"
#include "kernels/kernels.h"
#include "model/config.h"

namespace moe {

/// Some columns of one row of the first product, which become what the down-projection reads: `first` the gate's, or
/// the only ones of an MLP that is not gated; `up` empty then.
inline void Activate(const MlpSpec& mlp, const Kernels& kernels, std::span<float> first, std::span<const float> up) {
  switch (mlp.activation) {
    case Activation::kSiluGated: return kernels.SiluMul(first, up);
    case Activation::kClampedSwiGlu: return kernels.ClampedSwiGlu(first, up, mlp.limit);
    case Activation::kRelu: return kernels.Relu(first);
    case Activation::kGeluGated:
    case Activation::kGelu: break;
  }
  MOE_CHECK(false, "an activation of families that are only counted");
}

}  // namespace moe
