// The router's metrics by name (docs/metrics.md). Counters and gauges are observed once a step or a request.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "metrics/metrics.h"
#include "model/config.h"
#include "model/parameter_count.h"
#include "placement/load_window.h"
#include "placement/move_meter.h"
#include "placement/routing_health.h"
#include "placement/verdict.h"
#include "router/engine.h"
#include "router/expert_exchange.h"
#include "router/migrator.h"
#include "router/sequence.h"
#include "transport/transport.h"

namespace moe {

struct QueueState {
  std::size_t running = 0;
  std::size_t waiting = 0;
  std::size_t kv_tokens_used = 0;
};

class RouterMetrics final : public ExchangeObserver {
 public:
  struct Setup {
    const ModelConfig& config;
    const ParameterCount& parameters;
    const Transport* transport = nullptr;  // null for a model without experts
    std::uint64_t placement_generation = 0;
    std::size_t kv_tokens_capacity = 0;
    std::string routing = "gate";
  };
  /// `experts`, when not null, gets the metrics of /metrics/experts.
  RouterMetrics(const Setup& setup, MetricsRegistry& registry, MetricsRegistry* experts);

  // By the engine thread.
  void OnExchange(WorkerId worker, double seconds) override;
  void OnStep(const StepReport& report);
  void OnWindow(const LoadWindow& window, const RoutingHealth& health);
  void OnQueue(const QueueState& state);
  void OnWorkersDown();
  void OnWorker(WorkerId worker, bool up);
  void OnMigration(const MigrationProgress& progress);
  void OnMoveMeasured(const MoveOutcome& outcome) const;
  void OnSlowdown(double slowdown) const { migration_slowdown_.Set(slowdown); }
  /// Forgets what the attempt has observed.
  void OnStepFailed();
  void OnStepRetried() { step_retries_.Add(); }
  /// `generated`: tokens that came out of the sequence.
  void OnFinish(const SequenceResult& result, SequenceKind kind, std::size_t generated);
  /// Seconds between the last two tokens of a sequence; shown with the step.
  void OnInterToken(double seconds) { inter_token_seconds_.Add(seconds); }

  // By a trace's own thread, and whoever starts one.
  void OnTraceStarted() const { trace_recording_.Set(1); }
  void OnTraceEnded() const { trace_recording_.Set(0); }
  void OnTraced(std::uint64_t steps, std::uint64_t dropped, std::uint64_t bytes) const;

  // By the balancer's thread.
  void OnVerdict(const Verdict& verdict) const;

  // By service threads.
  void OnRejected(std::size_t sequences) const;
  void OnTokensSent(std::size_t tokens) const { generated_tokens_.Add(static_cast<double>(tokens)); }
  void OnPromptTokens(std::size_t tokens) const { prompt_tokens_.Add(static_cast<double>(tokens)); }

 private:
  struct LayerGauges {
    Gauge balancedness, imbalance, cv, jain, entropy, gini, dead, collapsed, dead_alarm, collapsed_alarm;
  };
  struct RankSeries {
    Counter rows, busy, returns;
    Gauge up;
    HistogramBatch exchange;
  };

  const int experts_per_token_;
  const std::size_t num_experts_;

  Counter steps_, step_retries_, micro_batches_, touched_, prompt_tokens_, generated_tokens_;
  Counter finished_, cancelled_, rejected_, failed_;
  Counter migrations_finished_, migrations_failed_, migration_bytes_;
  Gauge placement_generation_;
  MigrationProgress migration_;  // as counted so far
  Counter trace_steps_, trace_dropped_, trace_bytes_;
  Gauge trace_recording_, window_steps_, window_seconds_;
  Gauge running_, waiting_, kv_used_;
  Gauge placement_balancedness_, rebalance_advised_, rebalance_gain_;
  Gauge moved_step_, moved_step_before_, moved_step_expected_, migration_slowdown_;
  Histogram step_seconds_, batch_tokens_;
  Histogram queue_seconds_, first_token_seconds_, per_token_seconds_, e2e_seconds_;
  HistogramBatch inter_token_seconds_;
  std::vector<Counter> phases_;               // in the order of kPhases
  std::vector<Counter> expert_tokens_;        // by expert, summed over layers
  std::vector<Counter> expert_layer_tokens_;  // (sparse layers, experts), only on /metrics/experts
  std::vector<LayerGauges> layers_;           // by sparse layer
  std::vector<RankSeries> ranks_;             // by worker
  std::vector<std::uint64_t> expert_sums_;    // scratch of a step, by expert
  std::vector<double> loads_;                 // scratch of a layer's figures, by expert
};

}  // namespace moe
