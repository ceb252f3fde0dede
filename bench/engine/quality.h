// `moe_bench quality`: what a model predicts and answers, and what smaller types of weights and cache cost of that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bench/engine/quality_figures.h"
#include "core/status.h"
#include "kernels/weight_type.h"
#include "ranks/rank_setup.h"

namespace moe {

struct QualityOptions {
  RankOptions rank;  // its weight_type is not looked at
  std::string text;  // held-out bytes
  std::size_t window = 256;
  std::size_t max_windows = 0;                          // 0: all
  std::vector<std::optional<WeightType>> weight_types;  // absent: as RankOptions has it
  std::vector<Task> tasks;
};

struct QualityResult {
  WeightType weight_type = WeightType::kF32;
  KvType kv_type = KvType::kF32;
  double mean_nll = 0;       // nats a scored token
  double kl = 0;             // nats a scored token, from the run with f32 weights and cache; 0 for that itself
  std::uint64_t tokens = 0;  // scored
  TaskScores tasks;          // empty without tasks
};

/// One result a weight type, in their order. At most two models are in memory at a time: f32 with a cache of f32, which
/// the divergence is from, and the one judged. INVALID_ARGUMENT: what was asked for does not fit the model;
/// UNIMPLEMENTED for an encoder–decoder, which does not predict the tokens that it is given. `note` is told what runs.
Result<std::vector<QualityResult>> RunQuality(const QualityOptions& options,
                                              const std::function<void(const std::string&)>& note);

std::string QualityResultsJson(const std::vector<QualityResult>& results);
std::string QualityTable(const std::vector<QualityResult>& results);

}  // namespace moe
