// `moe_bench replay`: the sparse layers of a recorded trace, over a placement and a transport: dispatch plan, exchange,
// the workers' experts and combine, as the engine has them, without the dense part. Beside it, what the cost model says
// without computing anything. docs/benchmarks.md defines the figures.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bench/engine/replay_cost.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "core/worker_mask.h"
#include "placement/trace_loads.h"
#include "ranks/rank_setup.h"
#include "transport/transport.h"

namespace moe {

struct ReplayOptions {
  std::filesystem::path trace;
  std::size_t steps = 0;        // the first so many of the trace; 0: all
  std::size_t repetitions = 3;  // passes over them
  std::size_t calibrate = 4;    // one step in so many tells what things cost, and is not predicted
  std::uint64_t seed = 1;       // names the rows
  WorkerMask local = {};        // the workers on the router's machine; empty: none
};

/// INVALID_ARGUMENT naming the flag whose value nothing can be measured with.
Status CheckReplay(const ReplayOptions& options);

/// Seconds of the sparse layers of some steps, of each its median over the passes.
struct StepSeconds {
  double mean = 0;
  double p50 = 0;
  double p95 = 0;
};

/// The cost model beside what it was not made from.
struct ReplayPrediction {
  CostModel model;
  std::size_t calibration_steps = 0;
  std::size_t calibration_exchanges = 0;
  std::size_t steps = 0;  // predicted
  StepSeconds measured;
  StepSeconds predicted;
  double mean_absolute_error = 0;  // of a step: |predicted − measured| / measured

  /// Share by which the mean predicted step is longer than the measured one; below 0: shorter.
  double error() const { return predicted.mean / measured.mean - 1; }
};

struct ReplayLayer {
  int layer = 0;                             // absolute index
  std::vector<std::uint64_t> expert_tokens;  // (experts)
  std::vector<std::uint64_t> worker_rows;    // (workers): (token, expert) pairs
};

struct ReplayResult {
  TraceSummary trace;
  std::size_t steps = 0;   // replayed in a pass
  std::uint64_t rows = 0;  // of them: tokens, counted once for each step
  StepSeconds step_seconds;
  double seconds = 0;         // of a pass: the sum of the steps' medians
  double wait_share = 0;      // of all passes
  double dispatch_share = 0;  // planning and copying rows out
  double combine_share = 0;
  double plan_seconds = 0;  // of an exchange, planning alone; mean
  std::vector<ReplayLayer> layers;
  double exchange_balancedness = 1;  // mean / max of the workers' rows, averaged over all exchanges
  std::uint64_t request_bytes = 0;   // payload in a pass, to all workers
  std::uint64_t reply_bytes = 0;     // and back
  std::uint64_t messages = 0;        // in a pass, one way
  /// None when no step is left to be predicted.
  std::optional<ReplayPrediction> prediction;

  double tokens_per_s() const { return static_cast<double>(rows) / seconds; }
  std::vector<std::uint64_t> worker_rows() const;  // (workers), all layers
  double slowest_over_mean() const;                // of worker_rows
  double balancedness() const;                     // per layer over all steps, then averaged over layers
};

/// Over workers that have loaded their shards and serve the other ends of `transport`. `starting` is told of every
/// pass, from 0 on. INVALID_ARGUMENT for a trace of other layers or experts than the model's, or with a step of more
/// rows than setup.exchange.max_tokens.
Result<ReplayResult> RunReplay(const ReplayOptions& options, const RankSetup& setup, ThreadPool& pool,
                               Transport& transport, const std::function<void(std::size_t)>& starting);

/// What the figures are of.
struct ReplayContext {
  std::string model;
  std::string weight_type;
  std::string exchange_type;
  std::string placement;  // as asked for
  int slots = 0;          // of a layer, over all workers; of the layer with the most
  std::string transport;
  int threads = 0;  // of each rank
  int ranks = 1;
  int workers = 1;
};

std::string ReplayResultsJson(const ReplayResult& result, const ReplayContext& context);
std::string ReplayTable(const ReplayResult& result, const ReplayContext& context);

}  // namespace moe
