// `moe_bench engine`: how fast an engine prefills and decodes, without a server, and how near the machine's roofs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bench/engine/roofs.h"
#include "bench/engine/step_work.h"
#include "core/clock.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "ranks/rank_setup.h"
#include "ranks/router_engine.h"

namespace moe {

struct EngineBenchOptions {
  std::vector<std::size_t> prompt_lengths = {512};
  std::vector<std::size_t> generated = {64};
  std::vector<std::size_t> batches = {1, 4, 32};
  std::size_t repetitions = 3;
  std::uint64_t seed = 1;  // names the tokens
};

/// One measurement: prefill of `tokens` tokens, or decode of as many, of each of `batch` sequences.
struct EngineTest {
  enum class Kind : std::uint8_t { kPrefill, kDecode };
  Kind kind = Kind::kPrefill;
  std::size_t tokens = 0;
  std::size_t batch = 0;

  std::string name() const;  // "pp512", "tg64"
};

/// All prefills, then all decodes; lengths of 0 are left out.
std::vector<EngineTest> TestsOf(const EngineBenchOptions& options);

/// INVALID_ARGUMENT naming a list that is empty or a value that the model or a step cannot take.
Status CheckEngineBench(const EngineBenchOptions& options, const RankSetup& setup);
/// The KV cache that the largest test needs.
Result<KvPlan> PlanCache(const EngineBenchOptions& options, const RankSetup& setup);

struct EngineTestResult {
  EngineTest test;
  std::vector<double> tokens_per_s;  // of each repetition
  double seconds = 0;                // of all repetitions
  Work work;                         // of all repetitions
  ThreadPool::Usage usage;           // of the pool, of all repetitions

  double mean_tokens_per_s() const;
  double stddev_tokens_per_s() const;  // of the population
  double step_seconds() const { return seconds / static_cast<double>(work.steps); }
  double bytes_per_token() const { return work.bytes() / static_cast<double>(work.rows); }
  double s_mbu(const Roofs& roofs) const { return work.bytes() / seconds / roofs.read_bandwidth_bytes_per_s; }
  double s_mfu(const Roofs& roofs) const { return work.operations / seconds / roofs.peak_flops; }
  /// Of the time of `threads` threads, the share outside the items of parallel loops.
  double idle_share(int threads) const { return 1 - Seconds(usage.busy) / (threads * seconds); }
  /// The same of the time that parallel loops take: threads that have no item, or no item any more.
  double straggler_share(int threads) const { return 1 - Seconds(usage.busy) / (threads * Seconds(usage.loop_time)); }
};

/// Runs every test: a short warm-up, then the repetitions. `starting` is told of each test before it runs.
Result<std::vector<EngineTestResult>> RunEngineBench(const EngineBenchOptions& options, const RankSetup& setup,
                                                     RouterEngine& router,
                                                     const std::function<void(const EngineTest&)>& starting);

/// The context of the results: what `results` of the JSON repeats on every line.
struct EngineBenchContext {
  std::string model;
  std::string weight_type;
  std::string kv_type;
  std::string transport;
  int threads = 0;  // of each rank
  int ranks = 1;
  std::size_t sparse_layers = 0;
  std::optional<Roofs> roofs;  // none when not measured
};

std::string EngineResultsJson(const std::vector<EngineTestResult>& results, const EngineBenchContext& context);
std::string EngineTable(const std::vector<EngineTestResult>& results, const EngineBenchContext& context);

}  // namespace moe
