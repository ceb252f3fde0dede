// How many parameters a model has, exactly: in all, per token, by part. Counted as logical parameters: a tied table
// once.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/tensor_specs.h"

namespace moe {

/// "embedding", "attention", "router", "experts", "shared_experts", "dense_ffn", "norms", "head".
std::string_view Name(ModelPart part);

/// What the files of a published checkpoint hold, in elements of their tensors. MXFP4's blocks count as stored, two
/// weights an element.
struct CheckpointElements {
  std::uint64_t weights = 0;            // of the model that is served
  std::uint64_t scales = 0;             // of MXFP4 and FP8 blocks, of the prediction layers too
  std::uint64_t prediction_layers = 0;  // beside the main model
  std::uint64_t duplicates = 0;         // tables that prediction layers repeat

  std::uint64_t total() const { return weights + scales + prediction_layers + duplicates; }
};

struct ParameterCount {
  std::uint64_t total = 0;
  /// Every weight that one token's forward pass touches, embedding and output matrices included.
  std::uint64_t active = 0;
  /// `active` minus the embedding table, except where that is also the output matrix, which every token touches.
  std::uint64_t active_without_embedding = 0;

  std::array<std::uint64_t, kNumModelParts> by_part{};  // indexed by ModelPart; their sum is `total`
  /// Of one routed expert of each layer, 0 for dense layers.
  std::vector<std::uint64_t> parameters_each;
  CheckpointElements checkpoint;

  std::uint64_t part(ModelPart part) const { return by_part[static_cast<std::size_t>(part)]; }
  /// Of one routed expert (they agree over the layers), 0 for a dense model.
  std::uint64_t expert_parameters_each() const {
    return parameters_each.empty() ? 0 : *std::max_element(parameters_each.begin(), parameters_each.end());
  }
  /// All but the routed experts: what a router holds.
  std::uint64_t dense() const { return total - part(ModelPart::kExperts); }
  /// Of those, the encoder's layers and its norm; 0 for a decoder-only model.
  std::uint64_t encoder_dense = 0;

  /// What some rows went through.
  struct Passes {
    bool encoder = false;
    bool decoder = false;
    std::uint64_t distinct_experts = 0;  // (layer, expert) pairs
  };
  /// Distinct parameters that they used.
  std::uint64_t Touched(const Passes& passes) const;
};

ParameterCount CountParameters(const ModelConfig& config);

}  // namespace moe
