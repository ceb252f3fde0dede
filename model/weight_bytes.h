// Memory that weights take once they are loaded, from a configuration alone.
#pragma once

#include <cstdint>

#include "kernels/weight_type.h"
#include "model/config.h"
#include "model/tensor_specs.h"

namespace moe {

/// One weight: in `type` when the engine holds it in that, else in fp32.
std::uint64_t HeldBytes(const TensorSpec& spec, WeightType type);

/// What a router holds: large matrices in `type`, vectors and gates in fp32, a tied table twice (rows for the
/// embedding, panels for the head). Without the padding of panels.
std::uint64_t DenseBytes(const ModelConfig& config, WeightType type);

/// One routed expert of a sparse layer.
std::uint64_t ExpertBytes(const ModelConfig& config, int layer, WeightType type);

}  // namespace moe
