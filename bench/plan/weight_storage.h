// What a model's weights take in memory in a weight type, those types included that come with scales.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "model/config.h"
#include "model/tensor_specs.h"

namespace moe {

/// How the matrices of a kind are kept: values of `bits`, and a scale for each block of `block_rows` outputs by
/// `group` inputs. Ragged blocks at the edges have a scale too.
struct MatrixFormat {
  int bits = 32;
  int group = 0;        // inputs; 0: a whole row
  int block_rows = 1;   // outputs
  int scale_bytes = 0;  // of one scale; 0: there are none

  std::uint64_t ValueBytes(std::uint64_t outputs, std::uint64_t inputs) const;  // each row rounded up to whole bytes
  std::uint64_t ScaleBytes(std::uint64_t outputs, std::uint64_t inputs) const;
};

/// A weight type of the planner. Norms, biases, routers and the other small tables stay f32 in all of them, as the
/// engine holds them.
struct WeightScheme {
  std::string name;       // "int4"
  MatrixFormat experts;   // matrices of routed experts
  MatrixFormat matrices;  // all other matrices, embedding and head included
};

/// What can be chosen about the schemes with scales.
struct QuantizationOptions {
  int int8_group = 0;  // inputs; 0: a scale for each output
  int int8_scale_bytes = 4;
  int int4_group = 32;
  int int4_scale_bytes = 2;
};

/// "f32", "bf16", "f16", "int8", "int4", "mxfp4" (routed experts; the rest bf16), "fp8" (projections in blocks of 128 ×
/// 128 with f32 scales; embedding and head bf16), "stored": what the configuration says of the checkpoint.
/// INVALID_ARGUMENT for another name.
Result<WeightScheme> MakeWeightScheme(std::string_view name, const ModelConfig& config,
                                      const QuantizationOptions& options);

/// A weight, where it is, and how many like it there are.
struct PlacedWeight {
  const TensorSpec& spec;
  int layer = -1;  // -1: outside of the layers
  bool routed = false;
  std::uint64_t copies = 1;  // routed: experts of the layer
};

/// Calls `visit` for every weight of the model; once for all experts of a layer.
void ForEachWeight(const ModelConfig& config, const std::function<void(const PlacedWeight&)>& visit);

/// Bytes of one copy, and how many of them are scales.
struct StoredBytes {
  std::uint64_t bytes = 0;
  std::uint64_t scales = 0;
};
StoredBytes BytesOf(const PlacedWeight& weight, const WeightScheme& scheme);

struct WeightBytes {
  std::uint64_t total = 0;  // every logical weight once
  std::uint64_t scales = 0;
  std::uint64_t dense = 0;  // all but routed experts: what a router holds
  std::array<std::uint64_t, kNumModelParts> by_part{};
  std::vector<std::uint64_t> expert_each;  // by layer, one routed expert; 0: a dense layer
  /// The engine packs a head of its own from a tied table, so that a router holds this much more than `dense`.
  std::uint64_t tied_head_copy = 0;

  std::uint64_t experts() const { return total - dense; }
};

WeightBytes CountWeightBytes(const ModelConfig& config, const WeightScheme& scheme);

}  // namespace moe
