// `moe_bench engine`: how fast an engine prefills and decodes, without a server, and how near the machine's roofs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bench/engine/overlap.h"
#include "bench/engine/roofs.h"
#include "bench/engine/step_work.h"
#include "core/clock.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "ranks/rank_setup.h"
#include "ranks/router_engine.h"
#include "router/trace_recorder.h"

namespace moe {

struct EngineBenchOptions {
  std::vector<std::size_t> prompt_lengths = {512};
  std::vector<std::size_t> generated = {64};
  std::vector<std::size_t> batches = {1, 4, 32};
  /// Every test runs with each of these numbers of micro-batches, and with several its steps are predicted; or with
  /// kEnginesChoice alone.
  std::vector<int> micro_batches = {kEnginesChoice};
  std::size_t repetitions = 3;
  std::uint64_t seed = 1;  // names the tokens

  /// The number, or the choice of one, that the engine is set up with.
  static constexpr int kEnginesChoice = 0;
  bool predicts() const { return micro_batches.size() > 1; }
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

/// INVALID_ARGUMENT for a list that is empty or has a number twice, one that is none, or something beside the choice.
Status CheckMicroBatches(const std::vector<int>& list);
/// INVALID_ARGUMENT naming a list that is empty or a value that the model or a step cannot take.
Status CheckEngineBench(const EngineBenchOptions& options, const RankSetup& setup);
/// The KV cache that the largest test needs.
Result<KvPlan> PlanCache(const EngineBenchOptions& options, const RankSetup& setup);

/// One run of a test.
struct Repetition {
  double tokens_per_s = 0;
  double seconds = 0;
  Work work;
  std::array<std::uint64_t, kMaxMicroBatches> micro_batch_steps = {};  // steps in 1, 2, … micro-batches
  std::uint64_t micro_batch_trials = 0;  // steps that tried how many are best; 0 but in warm-ups
  StepPhases phases;                     // of the steps that were not cut
  std::optional<MachineRates> machine;   // mean of right before and right after; none: not measured

  std::optional<double> s_mbu() const;
  /// Operations of each kind at its own peak; none also when a peak that counts is unknown.
  std::optional<double> s_mfu() const;
};

/// The tokens a second that a step's two roofs would allow, each alone; medians over the repetitions.
struct Binding {
  double bandwidth_tokens_per_s = 0;
  double arithmetic_tokens_per_s = 0;

  bool bandwidth() const { return bandwidth_tokens_per_s <= arithmetic_tokens_per_s; }  // it is what binds
};

struct EngineTestResult {
  EngineTest test;
  int micro_batches_asked = EngineBenchOptions::kEnginesChoice;
  bool traced = false;               // while its routing was recorded
  std::optional<double> trace_cost;  // of a traced one: the share of time that it took more, see TraceCost
  std::vector<Repetition> repetitions;
  ThreadPool::Usage usage;                      // of the pool, of all repetitions
  std::optional<OverlapPrediction> prediction;  // of its steps; none: not asked for, or what runs is never cut

  double seconds() const;  // of all repetitions, like those below
  Work work() const;
  std::array<std::uint64_t, kMaxMicroBatches> micro_batch_steps() const;
  double step_seconds() const { return seconds() / static_cast<double>(work().steps); }
  double bytes_per_token() const { return work().bytes() / static_cast<double>(work().rows); }

  std::vector<double> tokens_per_s() const;  // of each repetition
  double mean_tokens_per_s() const;
  double stddev_tokens_per_s() const;   // of the population
  std::optional<double> s_mbu() const;  // medians over the repetitions
  std::optional<double> s_mfu() const;
  std::optional<Binding> binding() const;
  /// Share by which the predicted step is longer than the measured one; below 0: shorter.
  std::optional<double> prediction_error() const {
    if (!prediction) return std::nullopt;
    return prediction->error(step_seconds());
  }

  /// Of the time of `threads` threads, the share outside the items of parallel loops.
  double idle_share(int threads) const { return 1 - Seconds(usage.busy) / (threads * seconds()); }
  /// The same of the time that parallel loops take: threads that have no item, or no item any more.
  double straggler_share(int threads) const { return 1 - Seconds(usage.busy) / (threads * Seconds(usage.loop_time)); }
};

/// What recording costs: the median, over repetitions, of the traced run's seconds over its twin's, less 1.
double TraceCost(const EngineTestResult& traced, const EngineTestResult& plain);

/// What is measured. `probe` measures the machine around every repetition; null: nobody does. With a recorder, every
/// test runs twice, in turns: without and with it.
struct BenchedEngine {
  const RankSetup& setup;
  RouterEngine& router;
  MachineProbe* probe = nullptr;
  TraceRecorder* recorder = nullptr;
};

/// Runs every test: a warm-up, which also chooses the number of micro-batches where they are measured, then the
/// repetitions. Of several numbers of micro-batches each has a result, and before and after it has one if it is traced;
/// they take turns in every repetition, and so do the steps of the size of their parts, which the predictions come
/// from. `starting` is told of each test before it runs.
Result<std::vector<EngineTestResult>> RunEngineBench(const EngineBenchOptions& options, const BenchedEngine& engine,
                                                     const std::function<void(const EngineTest&)>& starting);

/// Medians over all repetitions of all tests; none when the machine was not measured.
std::optional<MachineRates> MedianMachine(const std::vector<EngineTestResult>& results);

/// The context of the results: what `results` of the JSON repeats on every line.
struct EngineBenchContext {
  std::string model;
  std::string weight_type;
  std::string kv_type;
  std::string transport;
  std::string routing = "gate";  // or what is forced on the model
  int threads = 0;               // of each rank
  int ranks = 1;
  std::size_t sparse_layers = 0;
};

std::string EngineResultsJson(const std::vector<EngineTestResult>& results, const EngineBenchContext& context);
std::string EngineTable(const std::vector<EngineTestResult>& results, const EngineBenchContext& context);

}  // namespace moe
