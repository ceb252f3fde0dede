// Which part of a model is held in which weight type.
#pragma once

#include <optional>

#include "kernels/weight_type.h"
#include "model/tensor_specs.h"

namespace moe {

struct WeightTypes {
  WeightType mlps = WeightType::kF32;       // of experts, routed and shared, and of dense layers
  WeightType attention = WeightType::kF32;  // its projections, and the head

  WeightTypes() = default;
  /// What `--weight-type` stands for. int4 leaves attention and head in int8: they are a small part of the bytes and a
  /// large one of the loss (docs/quantisation.md).
  /// `attention_type` is that of `--attention-weight-type`.
  WeightTypes(WeightType type,  // NOLINT(google-explicit-constructor)
              std::optional<WeightType> attention_type = std::nullopt)
      : mlps(type), attention(attention_type.value_or(type == WeightType::kInt4 ? WeightType::kInt8 : type)) {}
  bool operator==(const WeightTypes&) const = default;
};

/// The type that a weight is held in: fp32 for all that is small or decides routes (HeldInWeightType). Tables of which
/// a row is read at a time (embedding, learnt positions), and latent attention's up-projection, which is applied head
/// by head, are bf16 where the rest is quantized.
WeightType HeldType(const TensorSpec& spec, const WeightTypes& types);

}  // namespace moe
