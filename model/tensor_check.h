// A checkpoint against its configuration, before any weight is read.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"
#include "model/checkpoint.h"
#include "model/config.h"

namespace moe {

/// The tensors of the checkpoint that repeat the embedding: a tied model's head, an encoder's or decoder's own table.
std::vector<std::string> EmbeddingCopies(const ModelConfig& config, const Checkpoint& checkpoint);

/// What a checkpoint that agrees with its configuration is like.
struct CheckedTensors {
  /// The narrowest type that holds every large matrix exactly.
  WeightType exact_type = WeightType::kF32;
};

/// Checks the names, shapes and types of every tensor of `checkpoint` against `config`, experts included, without
/// reading data: missing, unknown and mis-shaped tensors are errors that name them; a difference from CountParameters
/// is an error that gives it. A checkpoint that is made up agrees, with the type that the configuration says.
Result<CheckedTensors> CheckTensors(const ModelConfig& config, const Checkpoint& checkpoint);

}  // namespace moe
