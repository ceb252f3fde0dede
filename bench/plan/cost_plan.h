// Tokens per second of decoding from two roofs, the bytes that a step touches and the operations that it does, and what
// a token then costs. Estimates: every assumption is an option.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "bench/plan/weight_storage.h"
#include "core/status.h"
#include "model/config.h"

namespace moe {

struct CostOptions {
  std::uint64_t context = 0;         // positions that each sequence has behind it
  std::uint64_t encoder_tokens = 0;  // encoder–decoder models: positions of the encoder's output
  std::uint64_t kv_element_bytes = 4;
  double bandwidth = 0;     // bytes/s of a device's memory
  double flops = 0;         // operations/s of a device
  double efficiency = 1;    // share of both roofs that is reached
  int devices = 1;          // share everything evenly, at no cost; only without workers
  int workers = 0;          // each a device with a share of the experts, beside the router's device; 0: no split
  double balancedness = 1;  // mean / max of the workers' loads
  double network = 0;       // bytes/s of the router's link; 0: free
  double latency_s = 0;     // of an exchange, once per sparse layer
  std::uint64_t exchange_bytes = 4;  // of an activation's element
  double price_per_hour = 0;         // of a device; 0: not given
  double watts = 0;                  // of a device; 0: not given
};

/// INVALID_ARGUMENT naming the option and what it may be.
Status CheckCostOptions(const CostOptions& options);

/// E (1 − (1 − k/E)^B): how many of E experts B tokens touch when routing is uniform. Skewed routing touches fewer.
double ExpectedDistinctExperts(int num_experts, int experts_per_token, double tokens);

/// What one decoding step of some tokens, one for each sequence, touches and does.
struct StepWork {
  double dense_bytes = 0;   // all weights that every step reads once, shared experts included
  double expert_bytes = 0;  // the distinct routed experts
  double kv_bytes = 0;
  double dense_flops = 0;  // 2 × parameters × tokens
  double expert_flops = 0;
  double attention_flops = 0;   // scores and sums over values
  double distinct_experts = 0;  // of a sparse layer, the mean over layers
  double exchange_bytes = 0;    // over the router's link, both directions

  double bytes() const { return dense_bytes + expert_bytes + kv_bytes; }
  double flops() const { return dense_flops + expert_flops + attention_flops; }
};

/// What a step's work depends on.
struct WorkShape {
  std::uint64_t tokens = 1;
  std::uint64_t context = 0;
  std::uint64_t encoder_tokens = 0;
  std::uint64_t kv_element_bytes = 4;
  int workers = 0;
  std::uint64_t exchange_bytes = 4;
};
StepWork CountStepWork(const ModelConfig& config, const WeightScheme& scheme, const WorkShape& shape);

enum class Roof : std::uint8_t { kMemory, kCompute, kNetwork };
/// "memory", "compute", "network".
std::string_view Name(Roof roof);

struct CostPoint {
  std::uint64_t batch = 0;
  StepWork work;
  double memory_seconds = 0;   // of a step, if bytes were all
  double compute_seconds = 0;  // if operations were all
  double network_seconds = 0;
  double step_seconds = 0;     // of the router and then the slowest worker: each its larger roof; then the network
  Roof bound = Roof::kMemory;  // where most of step_seconds goes
  double tokens_per_s = 0;
  double tokens_per_s_per_sequence = 0;
  double price_per_million_tokens = 0;  // 0 without a price
  double joules_per_token = 0;          // 0 without watts
};

/// One point for each batch. INVALID_ARGUMENT from the options, or for a batch that is not in 1 … kMostBatch.
Result<std::vector<CostPoint>> PlanCost(const ModelConfig& config, const WeightScheme& scheme,
                                        const CostOptions& options, const std::vector<std::uint64_t>& batches);

/// Devices that are paid for: a router's and the workers', or as many as share the work.
int PaidDevices(const CostOptions& options);

}  // namespace moe
