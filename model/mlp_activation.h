// What lies between the two products of an MLP, for the dense layers and the experts alike.
#pragma once

#include <span>

#include "core/check.h"
#include "kernels/kernels.h"
#include "model/config.h"

namespace moe {

/// One row of the first product, (MlpSpec::inner_width): its first `intermediate` elements become what the
/// down-projection reads.
inline void Activate(const MlpSpec& mlp, const Kernels& kernels, std::span<float> row) {
  const auto width = static_cast<std::size_t>(mlp.intermediate);
  switch (mlp.activation) {
    case Activation::kSiluGated: return kernels.SiluMul(row.first(width), row.subspan(width, width));
    case Activation::kClampedSwiGlu:
      return kernels.ClampedSwiGlu(row.first(width), row.subspan(width, width), mlp.limit);
    case Activation::kRelu: return kernels.Relu(row.first(width));
    case Activation::kGeluGated:
    case Activation::kGelu: break;
  }
  MOE_CHECK(false, "an activation of families that are only counted");
}

}  // namespace moe
