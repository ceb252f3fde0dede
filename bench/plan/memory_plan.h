// What each rank of a deployment holds, whether it fits, the fewest workers, the longest context.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "bench/plan/activations.h"
#include "bench/plan/kv_storage.h"
#include "bench/plan/weight_storage.h"
#include "core/status.h"
#include "model/config.h"

namespace moe {

struct MemoryOptions {
  KvShape kv;
  StepShape step;
  int workers = 0;                   // 0: router and experts in one process
  std::string placement = "linear";  // linear, round_robin, eplb, auto or a placement file
  std::filesystem::path loads;       // for eplb and auto; empty: uniform
  int redundant_experts = 0;
  std::uint64_t device_bytes = 0;  // of each rank
  double usable_share = 1;         // of device_bytes
};

/// Bounds that keep every sum in 64 bits.
inline constexpr std::uint64_t kMostContext = std::uint64_t{1} << 40;
inline constexpr std::uint64_t kMostBatch = std::uint64_t{1} << 20;
inline constexpr std::uint64_t kMostStepTokens = std::uint64_t{1} << 20;
inline constexpr int kMostWorkers = 1 << 12;
inline constexpr int kMostRedundant = 1 << 14;

/// INVALID_ARGUMENT naming the option and its bounds.
Status CheckMemoryOptions(const MemoryOptions& options);

struct RankMemory {
  int rank = 0;
  std::string role;         // "router", "worker", "router and experts"
  std::uint64_t slots = 0;  // experts that it holds, over all layers
  std::uint64_t weights = 0;
  std::uint64_t kv = 0;
  std::uint64_t activations = 0;
  std::uint64_t exchange = 0;  // buffers of the transport

  std::uint64_t total() const { return weights + kv + activations + exchange; }
};

struct MemoryPlan {
  WeightBytes weights;
  KvBytes kv;
  std::uint64_t usable_bytes = 0;  // of one rank
  std::vector<RankMemory> ranks;   // by rank
  bool fits = false;               // every rank
  std::uint64_t all_ranks = 0;     // bytes of all ranks together
  /// 0: one process holds everything. Absent: no number of workers makes it fit, or a placement file fixes it.
  std::optional<int> smallest_workers;
  /// Positions of each of the batch's sequences, up to kMostContext. Absent: what is there without a cache does not
  /// fit, or not one position does.
  std::optional<std::uint64_t> longest_context;
  /// The same with the smallest number of workers.
  std::optional<std::uint64_t> longest_context_at_smallest;
};

/// NOT_FOUND and INVALID_ARGUMENT from the options and the placement.
Result<MemoryPlan> PlanMemory(const ModelConfig& config, const WeightScheme& scheme, const MemoryOptions& options);

}  // namespace moe
