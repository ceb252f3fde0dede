// What a model's weights take in memory in a weight type, those types included that come with scales.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "model/config.h"
#include "model/tensor_specs.h"
#include "model/weight_types.h"

namespace moe {

/// How matrices of a published checkpoint are kept that the engine widens when it loads them: values of `bits`, and a
/// scale for each block of `block_rows` outputs by `group` inputs. Ragged blocks at the edges have a scale too.
struct BlockFormat {
  int bits = 0;
  int group = 0;        // inputs
  int block_rows = 1;   // outputs
  int scale_bytes = 0;  // of one scale

  std::uint64_t ValueBytes(std::uint64_t outputs, std::uint64_t inputs) const;  // each row rounded up to whole bytes
  std::uint64_t ScaleBytes(std::uint64_t outputs, std::uint64_t inputs) const;
};

/// A weight type of the planner: one of the engine's, held as model/weight_types.h says, or a checkpoint's blocks.
struct WeightScheme {
  std::string name;  // as it was asked for: "int4", "stored"
  WeightTypes types;
  /// mxfp4: of routed experts; fp8: of all matrices but tables and head. What it is not for is of `types`, bf16.
  StoredEncoding blocks = StoredEncoding::kPlain;
};

/// "f32", "bf16", "f16", "int8", "int4", "mxfp4", "fp8", "stored": what the configuration says of the checkpoint.
/// `attention`, if any, is for the engine's types what `--attention-weight-type` is. INVALID_ARGUMENT for another name.
Result<WeightScheme> MakeWeightScheme(std::string_view name, const ModelConfig& config,
                                      std::optional<WeightType> attention = std::nullopt);

/// What is held in what: "experts int4, attention and head int8, embedding bf16".
std::string Describe(const WeightScheme& scheme);

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

/// Of the head that the engine packs from a tied table; 0 where it is not tied.
std::uint64_t TiedHeadBytes(const ModelConfig& config, const WeightScheme& scheme);

WeightBytes CountWeightBytes(const ModelConfig& config, const WeightScheme& scheme);

}  // namespace moe
