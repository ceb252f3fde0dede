// Memory that weights take once they are loaded, from a configuration alone.
#pragma once

#include <cstdint>

#include "model/config.h"
#include "model/tensor_specs.h"
#include "model/weight_types.h"

namespace moe {

/// One weight in the type that HeldType says, scales included, without the padding of panels.
std::uint64_t HeldBytes(const TensorSpec& spec, const WeightTypes& types);

/// What a router holds: all but the routed experts, a tied table twice (rows for the embedding, panels for the head).
std::uint64_t DenseBytes(const ModelConfig& config, const WeightTypes& types);

/// The output matrix, tied or not.
std::uint64_t HeadBytes(const ModelConfig& config, const WeightTypes& types);

/// One routed expert of a sparse layer.
std::uint64_t ExpertBytes(const ModelConfig& config, int layer, const WeightTypes& types);

}  // namespace moe
