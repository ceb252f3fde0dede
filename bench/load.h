// One load run against a server: warm-up, then open or closed loop, then figures.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>

#include "bench/arrivals.h"
#include "bench/generate_client.h"
#include "bench/load_figures.h"
#include "bench/workload.h"
#include "core/status.h"

namespace moe {

struct LoadOptions {
  GenerateClient::Options client;
  WorkloadOptions workload;
  std::uint32_t num_requests = 100;  // calls, each with workload.sequences_per_request sequences

  // Closed loop: this many calls are always open. 0: open loop, calls are due at `request_rate` whether or not earlier
  // ones have ended.
  std::uint32_t concurrency = 0;
  double request_rate = std::numeric_limits<double>::infinity();
  Arrival arrival = Arrival::kPoisson;
  std::uint32_t max_concurrency = 0;  // open loop: at most this many calls open, the others wait; 0: no limit

  std::uint32_t warmup = 0;  // calls before the run that no figure contains
  Slo slo;
  bool progress = false;  // a bar on stderr
};

struct WarmupFigures {
  std::uint64_t completed = 0;
  std::uint64_t input_tokens = 0;
  std::uint64_t output_tokens = 0;
};

struct LoadResult {
  ServedModel model;
  LoadFigures figures;
  WarmupFigures warmup;
  std::uint32_t concurrency_limit = 0;        // calls; 0: none
  std::uint64_t max_concurrent_requests = 0;  // sequences of the calls that were open at one time, at most
  bool interrupted = false;

  /// Every request was sent and completed.
  bool clean() const { return figures.failed == 0 && !interrupted; }
};

/// `options.client.interrupted`, when given and set by a signal handler, ends the run early with what there is.
/// INVALID_ARGUMENT: the options fit neither each other nor the model; another failure: the server could not be
/// reached, or the warm-up did not complete.
Result<LoadResult> RunLoad(const LoadOptions& options);

}  // namespace moe
