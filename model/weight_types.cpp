#include "model/weight_types.h"

namespace moe {

WeightType HeldType(const TensorSpec& spec, const WeightTypes& types) {
  if (!HeldInWeightType(spec)) return WeightType::kF32;
  switch (spec.role) {
    case TensorRole::kMlpGate:
    case TensorRole::kMlpUp:
    case TensorRole::kMlpDown: return types.mlps;
    case TensorRole::kEmbedding:
    case TensorRole::kPositions:
    case TensorRole::kKvUp: return IsQuantized(types.attention) ? WeightType::kBf16 : types.attention;
    default: return types.attention;
  }
}

}  // namespace moe
