#include "router/router_metrics.h"

#include <algorithm>
#include <array>
#include <string>

#include "placement/figures.h"

namespace moe {
namespace {

constexpr std::array<const char*, 8> kPhases = {"attention", "gate",    "dispatch", "experts",
                                                "wait",      "combine", "head",     "sample"};

// From the shortest that a machine does to the longest that a client waits for.
std::vector<double> ExchangeBuckets() { return ExponentialBuckets(20e-6, 2, 18); }  // 20 µs … 2.6 s
std::vector<double> StepBuckets() { return ExponentialBuckets(100e-6, 2, 18); }     // 100 µs … 13 s
std::vector<double> RequestBuckets() { return ExponentialBuckets(500e-6, 2, 19); }  // 0.5 ms … 131 s

Counter Outcome(MetricsRegistry& registry, const char* outcome) {
  return registry.AddCounter("moe_requests_total", "Sequences by how they ended.", {{"outcome", outcome}});
}

Counter MigrationOutcome(MetricsRegistry& registry, const char* outcome) {
  return registry.AddCounter("moe_migrations_total", "Migrations of experts by how they ended.",
                             {{"outcome", outcome}});
}

void AddParameters(MetricsRegistry& registry, const ParameterCount& count) {
  const auto add = [&](const char* scope, std::uint64_t value) {
    registry.AddGauge("moe_model_parameters", "Logical parameters of the model.", {{"scope", scope}})
        .Set(static_cast<double>(value));
  };
  add("total", count.total);
  add("active", count.active);
  add("active_without_embedding", count.active_without_embedding);
}

}  // namespace

RouterMetrics::RouterMetrics(const Setup& setup, MetricsRegistry& r, MetricsRegistry* experts)
    : experts_per_token_(setup.config.experts_per_token()),
      num_experts_(static_cast<std::size_t>(setup.config.num_experts())),
      steps_(r.AddCounter("moe_steps_total", "Engine steps.")),
      step_retries_(r.AddCounter("moe_step_retries_total", "Steps run again because a worker was lost.")),
      micro_batches_(r.AddCounter("moe_step_micro_batches_total",
                                  "Micro-batches that steps were cut into; over moe_steps_total, their mean.")),
      touched_(r.AddCounter("moe_step_touched_parameters_total",
                            "Distinct parameters used by a step: the dense part and each expert that any token used.")),
      prompt_tokens_(r.AddCounter("moe_prompt_tokens_total", "Prompt tokens of accepted sequences.")),
      generated_tokens_(r.AddCounter("moe_generated_tokens_total", "Tokens handed to a stream.")),
      finished_(Outcome(r, "finished")),
      cancelled_(Outcome(r, "cancelled")),
      rejected_(Outcome(r, "rejected")),
      failed_(Outcome(r, "failed")),
      migrations_finished_(MigrationOutcome(r, "finished")),
      migrations_failed_(MigrationOutcome(r, "failed")),
      migration_bytes_(r.AddCounter("moe_migration_bytes_total", "Bytes of weights that migrations loaded.")),
      placement_generation_(r.AddGauge("moe_placement_generation", "Placement in force.")),
      trace_steps_(r.AddCounter("moe_trace_steps_total", "Steps recorded in routing traces.")),
      trace_dropped_(r.AddCounter("moe_trace_dropped_steps_total",
                                  "Steps left out of routing traces because the disk did not keep up.")),
      trace_bytes_(r.AddCounter("moe_trace_bytes_total", "Bytes written to routing traces.")),
      trace_recording_(r.AddGauge("moe_trace_recording", "1 while a routing trace is recorded.")),
      window_steps_(r.AddGauge("moe_load_window_steps", "Steps that the figures of layers cover.")),
      window_seconds_(r.AddGauge("moe_load_window_seconds", "Time that the figures of layers cover.")),
      running_(r.AddGauge("moe_requests_running", "Sequences that hold KV pages.")),
      waiting_(r.AddGauge("moe_requests_waiting", "Sequences accepted and not running yet.")),
      kv_used_(r.AddGauge("moe_kv_tokens_used", "Token positions of the KV pages that running sequences hold.")),
      placement_balancedness_(r.AddGauge(
          "moe_placement_balancedness", "Mean over maximum of the workers' rows, mean over layers; of the last look.")),
      rebalance_advised_(r.AddGauge("moe_rebalance_advised", "1 when the last verdict says that experts should move.")),
      rebalance_gain_(r.AddGauge("moe_rebalance_gain_ratio",
                                 "Share of a mean step that the best placement of the last verdict saves.")),
      moved_step_(r.AddGauge("moe_moved_step_seconds", "Mean step since experts moved, of the last move measured.")),
      moved_step_before_(r.AddGauge("moe_moved_step_before_seconds", "What steps of its sizes took before.")),
      moved_step_expected_(r.AddGauge("moe_moved_step_expected_seconds",
                                      "What they were expected to take by the verdict; 0: it was moved for none.")),
      migration_slowdown_(r.AddGauge("moe_migration_slowdown_ratio",
                                     "Share of the throughput that the last migration took while it went on.")),
      step_seconds_(r.AddHistogram("moe_step_seconds", "Duration of an engine step.", StepBuckets())),
      batch_tokens_(r.AddHistogram("moe_batch_tokens", "Tokens of an engine step.", ExponentialBuckets(1, 2, 14))),
      queue_seconds_(r.AddHistogram("moe_request_queue_seconds", "From arrival to admission.", RequestBuckets())),
      first_token_seconds_(r.AddHistogram("moe_request_time_to_first_token_seconds", "From arrival to the first token.",
                                          RequestBuckets())),
      per_token_seconds_(r.AddHistogram("moe_request_time_per_output_token_seconds",
                                        "Mean time between the tokens of a sequence of two or more.",
                                        RequestBuckets())),
      e2e_seconds_(r.AddHistogram("moe_request_e2e_seconds", "From arrival to the end.", RequestBuckets())),
      inter_token_seconds_(
          r.AddHistogram("moe_request_inter_token_seconds", "Between two tokens of a sequence.", RequestBuckets()),
          RequestBuckets()),
      expert_sums_(num_experts_),
      loads_(num_experts_) {
  AddParameters(r, setup.parameters);
  r.AddGauge("moe_kv_tokens_capacity", "Token positions of all KV pages.")
      .Set(static_cast<double>(setup.kv_tokens_capacity));
  r.AddGauge("moe_routing_info", "1; what chooses the experts: the model's gate, or synthetic routing.",
             {{"routing", setup.routing}})
      .Set(1);
  placement_balancedness_.Set(1);  // without load, as the figure's definition says
  placement_generation_.Set(static_cast<double>(setup.placement_generation));
  for (const char* phase : kPhases)
    phases_.push_back(r.AddCounter("moe_step_phase_seconds_total", "Time of steps by phase.", {{"phase", phase}}));
  for (std::size_t e = 0; e < num_experts_; ++e)
    expert_tokens_.push_back(r.AddCounter("moe_expert_tokens_total", "Tokens routed to an expert, over all layers.",
                                          {{"expert", std::to_string(e)}}));
  for (const int layer : setup.config.sparse_layers()) {
    const Labels labels = {{"layer", std::to_string(layer)}};
    layers_.push_back(
        {.balancedness = r.AddGauge("moe_layer_balancedness", "Mean over maximum of an expert's tokens.", labels),
         .imbalance = r.AddGauge("moe_layer_imbalance", "(Maximum - mean) over mean of an expert's tokens.", labels),
         .cv = r.AddGauge("moe_layer_cv", "Standard deviation over mean of an expert's tokens.", labels),
         .jain = r.AddGauge("moe_layer_jain", "Jain's index of the experts' tokens.", labels),
         .entropy = r.AddGauge("moe_layer_entropy", "Normalised entropy of the experts' shares.", labels),
         .gini = r.AddGauge("moe_layer_gini", "Gini coefficient of the experts' tokens.", labels),
         .dead = r.AddGauge("moe_layer_dead_experts", "Experts without a token in the window.", labels),
         .collapsed = r.AddGauge("moe_layer_collapsed", "1 when routing uses a small part of the experts.", labels),
         .dead_alarm = r.AddGauge("moe_layer_dead_experts_alarm", "Dead experts, held until they surely live.", labels),
         .collapsed_alarm =
             r.AddGauge("moe_layer_collapsed_alarm", "1 when a layer collapsed, held until that is over.", labels)});
    layers_.back().balancedness.Set(1);  // without load, as the figures' definitions say
    layers_.back().jain.Set(1);
    layers_.back().entropy.Set(1);
    if (experts == nullptr) continue;
    for (std::size_t e = 0; e < num_experts_; ++e)
      expert_layer_tokens_.push_back(
          experts->AddCounter("moe_expert_layer_tokens_total", "Tokens routed to an expert of a layer.",
                              {{"layer", std::to_string(layer)}, {"expert", std::to_string(e)}}));
  }
  for (int w = 0; setup.transport != nullptr && w < setup.transport->num_workers(); ++w) {
    const std::string rank = std::to_string(setup.transport->rank(WorkerId(w)).value());
    const Labels labels = {{"rank", rank}};
    ranks_.push_back(
        {.rows = r.AddCounter("moe_rank_rows_total", "Expert rows computed by a rank.", labels),
         .busy = r.AddCounter("moe_rank_busy_seconds_total", "Time that a rank spent on dispatches.", labels),
         .returns = r.AddCounter("moe_worker_returns_total", "Times that a lost worker came back.", labels),
         .up = r.AddGauge("moe_worker_up", "1 while a worker answers.", labels),
         .exchange = {r.AddHistogram("moe_exchange_seconds", "From dispatch to a worker's reply.", ExchangeBuckets(),
                                     {{"rank", rank}, {"transport", std::string(setup.transport->name())}}),
                      ExchangeBuckets()}});
    ranks_.back().up.Set(1);
  }
}

void RouterMetrics::OnExchange(WorkerId worker, double seconds) { ranks_[worker.index()].exchange.Add(seconds); }

void RouterMetrics::OnStep(const StepReport& report) {
  steps_.Add();
  micro_batches_.Add(static_cast<double>(report.micro_batches));
  touched_.Add(static_cast<double>(report.touched_parameters));
  step_seconds_.Observe(report.seconds);
  batch_tokens_.Observe(static_cast<double>(report.tokens));
  const ExchangeTimes& x = report.exchange;
  const std::array<double, kPhases.size()> phases = {
      report.attention_seconds, report.gate_seconds, x.dispatch,          x.experts,
      x.wait - x.experts,       x.combine,           report.head_seconds, report.sample_seconds};
  for (std::size_t i = 0; i < phases.size(); ++i) phases_[i].Add(phases[i]);
  for (std::size_t w = 0; w < report.workers.size(); ++w) {
    ranks_[w].rows.Add(static_cast<double>(report.workers[w].rows));
    ranks_[w].busy.Add(report.workers[w].busy_seconds);
    ranks_[w].exchange.Flush();
  }
  inter_token_seconds_.Flush();
  std::fill(expert_sums_.begin(), expert_sums_.end(), 0);
  for (std::size_t i = 0; i < report.expert_tokens.size(); ++i) {
    expert_sums_[i % num_experts_] += report.expert_tokens[i];
    if (!expert_layer_tokens_.empty() && report.expert_tokens[i] > 0)
      expert_layer_tokens_[i].Add(static_cast<double>(report.expert_tokens[i]));
  }
  for (std::size_t e = 0; e < num_experts_; ++e) expert_tokens_[e].Add(static_cast<double>(expert_sums_[e]));
}

void RouterMetrics::OnWindow(const LoadWindow& window, const RoutingHealth& health) {
  window_steps_.Set(static_cast<double>(window.steps()));
  window_seconds_.Set(window.seconds());
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const std::span<const std::uint64_t> tokens = window.layer(i);
    loads_.assign(tokens.begin(), tokens.end());
    layers_[i].balancedness.Set(Balancedness(tokens));
    layers_[i].imbalance.Set(Imbalance(loads_));
    layers_[i].cv.Set(CoefficientOfVariation(loads_));
    layers_[i].jain.Set(JainIndex(loads_));
    layers_[i].entropy.Set(NormalizedEntropy(tokens));
    std::ranges::sort(loads_);
    layers_[i].gini.Set(GiniOfAscending(loads_));
    layers_[i].dead.Set(DeadExperts(tokens));
    layers_[i].collapsed.Set(Collapsed(tokens, experts_per_token_) ? 1 : 0);
    layers_[i].dead_alarm.Set(health.dead_experts(i));
    layers_[i].collapsed_alarm.Set(health.collapsed(i) ? 1 : 0);
  }
}

void RouterMetrics::OnVerdict(const Verdict& verdict) const {
  placement_balancedness_.Set(verdict.balancedness);
  rebalance_advised_.Set(verdict.rebalance() ? 1 : 0);
  const CandidateVerdict* best = verdict.best_candidate();
  rebalance_gain_.Set(best == nullptr ? 0 : best->gain);
}

void RouterMetrics::OnMoveMeasured(const MoveOutcome& outcome) const {
  moved_step_.Set(outcome.steps.seconds);
  moved_step_before_.Set(outcome.steps.seconds_before);
  moved_step_expected_.Set(outcome.expected_seconds().value_or(0));
}

void RouterMetrics::OnTraced(std::uint64_t steps, std::uint64_t dropped, std::uint64_t bytes) const {
  trace_steps_.Add(static_cast<double>(steps));
  trace_dropped_.Add(static_cast<double>(dropped));
  trace_bytes_.Add(static_cast<double>(bytes));
}

void RouterMetrics::OnQueue(const QueueState& state) {
  running_.Set(static_cast<double>(state.running));
  waiting_.Set(static_cast<double>(state.waiting));
  kv_used_.Set(static_cast<double>(state.kv_tokens_used));
}

void RouterMetrics::OnWorkersDown() {
  for (const RankSeries& rank : ranks_) rank.up.Set(0);
}

void RouterMetrics::OnWorker(WorkerId worker, bool up) {
  const RankSeries& rank = ranks_[worker.index()];
  rank.up.Set(up ? 1 : 0);
  if (up) rank.returns.Add();
}

void RouterMetrics::OnMigration(const MigrationProgress& progress) {
  const std::uint64_t before = progress.generation == migration_.generation ? migration_.loaded_bytes : 0;
  migration_bytes_.Add(static_cast<double>(progress.loaded_bytes - before));
  migrations_finished_.Add(static_cast<double>(progress.finished - migration_.finished));
  migrations_failed_.Add(static_cast<double>(progress.failed - migration_.failed));
  if (progress.phase == MigrationPhase::kDropOld) placement_generation_.Set(static_cast<double>(progress.generation));
  migration_ = progress;
}

void RouterMetrics::OnStepFailed() {
  for (RankSeries& rank : ranks_) rank.exchange.Discard();
}

void RouterMetrics::OnFinish(const SequenceResult& result, SequenceKind kind, std::size_t generated) {
  if (kind != SequenceKind::kGenerate) return;
  switch (result.finish) {
    case FinishKind::kStop:
    case FinishKind::kLength: finished_.Add(); break;
    case FinishKind::kCancelled: cancelled_.Add(); return;
    case FinishKind::kFailed: failed_.Add(); return;
  }
  queue_seconds_.Observe(result.queue_seconds);
  e2e_seconds_.Observe(result.total_seconds);
  first_token_seconds_.Observe(result.time_to_first_token_seconds);
  if (generated > 1)
    per_token_seconds_.Observe((result.total_seconds - result.time_to_first_token_seconds) /
                               static_cast<double>(generated - 1));
}

void RouterMetrics::OnRejected(std::size_t sequences) const { rejected_.Add(static_cast<double>(sequences)); }

}  // namespace moe
