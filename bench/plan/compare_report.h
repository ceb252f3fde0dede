// Models side by side: what `moe_plan compare` computes and prints.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bench/plan/models.h"
#include "bench/plan/weight_storage.h"
#include "model/parameter_count.h"

namespace moe {

struct CompareOptions {
  std::vector<std::string> weight_types;  // whose memory is shown
  std::string read_type = "stored";       // whose bytes a token reads
  std::vector<std::uint64_t> batches = {1, 64};
  std::uint64_t kv_element_bytes = 4;
  std::optional<WeightType> attention_weight_type;  // as MakeWeightScheme takes it
};

struct ComparedModel {
  std::string name;
  ParameterCount count;
  int experts = 0;
  int experts_per_token = 0;
  std::vector<std::uint64_t> weight_bytes;  // by options.weight_types
  /// By options.batches: bytes of weights that a decoding step of so many tokens reads, over those tokens.
  std::vector<double> bytes_per_token;
  std::uint64_t kv_bytes_per_token = 0;       // of a sequence's early positions
  std::uint64_t kv_bytes_per_late_token = 0;  // once windows and chunks are full

  double active_share() const { return static_cast<double>(count.active) / static_cast<double>(count.total); }
};

/// INVALID_ARGUMENT for an unknown weight type or a batch of 0.
Result<ComparedModel> CompareModel(const NamedModel& model, const CompareOptions& options);

/// JSON with a newline at its end; docs/planner.md has the keys.
std::string CompareJson(std::span<const ComparedModel> models, const CompareOptions& options);
/// A column for each model.
std::string CompareText(std::span<const ComparedModel> models, const CompareOptions& options);

}  // namespace moe
