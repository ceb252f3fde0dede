// Whether two copies of an expert are the same.
#pragma once

#include <cstdint>

#include "model/weights.h"

namespace moe {

/// XXH3 of the packed weights, their types and shapes, and the biases. The packed layout does not depend on the
/// instruction set, so two workers that hold the same expert in the same type have the same sum.
std::uint64_t Checksum(const MlpWeights& weights);

}  // namespace moe
