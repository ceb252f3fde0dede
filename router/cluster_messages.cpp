#include "router/cluster_messages.h"

#include <moe/v1/cluster.pb.h>

#include <algorithm>
#include <limits>
#include <span>

#include "model/json.h"
#include "placement/figures.h"
#include "router/inference_messages.h"

namespace moe {
namespace {

void WriteRank(const WorkerDescription& description, Rank rank, v1::RankState& state) {
  state.set_rank(static_cast<std::uint32_t>(rank.value()));
  state.set_host(description.host);
  state.set_pid(description.pid);
  state.set_device(description.device);
  state.set_up(true);
  state.set_kernel_target(description.kernel_target);
  state.set_threads(description.threads);
  state.set_weight_bytes(description.weight_bytes);
  state.set_metrics_address(description.metrics_address);
  state.set_control_address(description.control_address);
}

void WriteHosted(const Placement& placement, std::size_t worker, v1::RankState& state) {
  for (const LayerPlacement& layer : placement.layers) {
    v1::HostedExperts& hosted = *state.add_hosted();
    hosted.set_layer(static_cast<std::uint32_t>(layer.layer));
    for (const int expert : layer.slots[worker]) hosted.add_experts(static_cast<std::uint32_t>(expert));
  }
}

v1::MigrationPhase PhaseOf(MigrationPhase phase) {
  switch (phase) {
    case MigrationPhase::kIdle: return v1::MIGRATION_PHASE_IDLE;
    case MigrationPhase::kPrepare:
    case MigrationPhase::kLoad:
    case MigrationPhase::kSwitch: return v1::MIGRATION_PHASE_LOADING;
    case MigrationPhase::kDropOld: return v1::MIGRATION_PHASE_DROPPING;
    case MigrationPhase::kDropNew: return v1::MIGRATION_PHASE_ABANDONING;
  }
  return v1::MIGRATION_PHASE_UNSPECIFIED;
}

void WriteCandidate(const CandidateVerdict& candidate, v1::PlacementCandidate& message) {
  message.set_algorithm(std::string(Name(candidate.algorithm)));
  message.set_balancedness(candidate.balancedness);
  message.set_slowest_gain(candidate.slowest_gain);
  message.set_gain(candidate.gain);
  if (candidate.step_seconds) message.set_step_seconds(*candidate.step_seconds);
  message.set_experts_moved(candidate.experts_moved);
  message.set_bytes_moved(candidate.bytes_moved.value_or(0));
  if (candidate.move_seconds) message.set_move_seconds(*candidate.move_seconds);
  if (candidate.break_even_seconds) message.set_break_even_seconds(*candidate.break_even_seconds);
  if (candidate.break_even_steps) message.set_break_even_steps(*candidate.break_even_steps);
}

v1::TraceEnd EndOf(const TraceProgress& progress) {
  if (progress.recording) return v1::TRACE_END_UNSPECIFIED;
  if (!progress.failure.ok()) return v1::TRACE_END_FAILED;
  return progress.end == TraceEnd::kLimit ? v1::TRACE_END_LIMIT : v1::TRACE_END_STOPPED;
}

// Over any int of ours, as CheckPlacement wants to name it.
int Clamped(std::uint32_t value) {
  return static_cast<int>(std::min<std::uint32_t>(value, std::numeric_limits<int>::max()));
}

}  // namespace

v1::ClusterState StateOf(const ClusterSetup& setup, const Placement& placement,
                         const std::vector<WorkerDescription>& workers) {
  v1::ClusterState state;
  state.set_transport(setup.transport);
  state.set_backend(setup.backend);
  state.set_weight_type(setup.weight_type);
  state.set_routing(setup.routing);
  state.set_expert_bytes(setup.bytes_per_expert);
  state.set_placement_generation(placement.generation);
  WriteParameters(setup.parameters, *state.mutable_parameters());
  v1::RankState& router = *state.add_ranks();
  WriteRank(setup.router, setup.topology.router(), router);
  router.set_role(setup.topology.embedded ? "both" : "router");
  router.set_dense_parameters(setup.router.parameters);
  for (std::size_t w = 0; w < workers.size(); ++w) {
    v1::RankState& rank = setup.topology.embedded ? router : *state.add_ranks();
    const std::uint64_t dense_bytes = rank.weight_bytes();
    if (!setup.topology.embedded) {
      WriteRank(workers[w], setup.topology.rank(WorkerId(static_cast<int>(w))), rank);
      rank.set_role("worker");
    }
    rank.set_weight_bytes(workers[w].weight_bytes + dense_bytes);
    rank.set_expert_parameters(workers[w].parameters);
    WriteHosted(placement, w, rank);
  }
  return state;
}

void WriteMigration(const MigrationProgress& progress, v1::MigrationState& state) {
  state.set_phase(PhaseOf(progress.phase));
  state.set_generation(progress.generation);
  state.set_moved_experts(progress.moved_experts);
  state.set_loaded_bytes(progress.loaded_bytes);
  state.set_finished(progress.finished);
  state.set_failed(progress.failed);
  constexpr std::size_t kMostWords = 1000;
  state.set_last_failure(Printable(progress.last_failure, kMostWords));
}

void WriteLoad(const ModelConfig& config, const LoadWindow& window, const RoutingHealth& health,
               v1::ClusterState& state) {
  const std::vector<int> layers = config.sparse_layers();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::span<const std::uint64_t> tokens = window.layer(i);
    v1::LayerLoad& load = *state.add_layers();
    load.set_layer(static_cast<std::uint32_t>(layers[i]));
    load.mutable_expert_tokens()->Add(tokens.begin(), tokens.end());
    load.set_balancedness(Balancedness(tokens));
    load.set_entropy(NormalizedEntropy(tokens));
    load.set_dead_experts(static_cast<std::uint32_t>(DeadExperts(tokens)));
    load.set_collapsed(Collapsed(tokens, config.experts_per_token()));
    load.set_collapsed_alarm(health.collapsed(i));
    load.set_dead_experts_alarm(static_cast<std::uint32_t>(health.dead_experts(i)));
  }
  state.set_window_steps(window.steps());
  state.set_window_seconds(window.seconds());
}

void WriteParts(const ModelConfig& config, const LoadWindow& window, v1::ClusterState& state) {
  const std::vector<LayerLoad> loads = LoadsOf(window, config.sparse_layers());
  for (std::size_t i = 0; i < loads.size(); ++i)
    for (const std::vector<double>& sample : loads[i].samples)
      state.mutable_layers(static_cast<int>(i))->add_parts()->mutable_tokens()->Add(sample.begin(), sample.end());
}

void WriteMove(const MoveOutcome& outcome, v1::MoveOutcome& message) {
  message.set_placement_generation(outcome.generation);
  message.set_steps(outcome.steps.steps);
  message.set_steps_left_out(outcome.steps.steps_left_out);
  message.set_rows(outcome.steps.rows);
  message.set_rows_before(outcome.steps.rows_before);
  message.set_step_seconds(outcome.steps.seconds);
  message.set_step_seconds_before(outcome.steps.seconds_before);
  if (const auto expected = outcome.expected_seconds()) message.set_expected_step_seconds(*expected);
  message.set_fair(outcome.steps.fair());
}

void WriteCost(const StepCost& cost, v1::StepCost& message) {
  message.set_steps(cost.steps);
  message.set_step_seconds(cost.step_seconds);
  message.set_exposed_seconds(cost.exposed_seconds);
  message.set_worker_seconds(cost.worker_seconds);
  message.set_row_seconds(cost.row_seconds);
  if (cost.migration_slowdown) message.set_migration_slowdown(*cost.migration_slowdown);
}

void WriteVerdict(const BalanceAdvice& advice, v1::Verdict& message) {
  const Verdict& verdict = advice.verdict;
  message.set_rebalance(verdict.rebalance());
  message.set_sentence(verdict.sentence);
  message.set_reason(std::string(Name(verdict.reason)));
  message.set_placement_generation(advice.generation);
  message.set_window_steps(advice.window_steps);
  message.set_window_seconds(advice.window_seconds);
  message.set_balancedness(verdict.balancedness);
  message.set_lower_bound_balancedness(verdict.lower_bound_balancedness);
  if (verdict.step_seconds) message.set_step_seconds(*verdict.step_seconds);
  message.set_migration_slowdown(verdict.migration_slowdown);
  message.set_slowdown_measured(verdict.slowdown_measured);
  if (const CandidateVerdict* best = verdict.best_candidate()) message.set_best(std::string(Name(best->algorithm)));
  for (const CandidateVerdict& candidate : verdict.candidates) WriteCandidate(candidate, *message.add_candidates());
}

void WriteTrace(const TraceProgress& progress, v1::TraceState& state) {
  state.set_path(progress.path);
  state.set_recording(progress.recording);
  state.set_steps(progress.steps);
  state.set_dropped_steps(progress.dropped);
  state.set_bytes(progress.bytes);
  state.set_end(EndOf(progress));
}

void WritePlacement(const Placement& placement, v1::Placement& message) {
  message.set_generation(placement.generation);
  message.set_num_experts(static_cast<std::uint32_t>(placement.num_experts));
  message.set_workers(static_cast<std::uint32_t>(placement.workers));
  for (const LayerPlacement& layer : placement.layers) {
    v1::PlacementLayer& placed = *message.add_layers();
    placed.set_layer(static_cast<std::uint32_t>(layer.layer));
    for (const std::vector<int>& worker : layer.slots) {
      v1::WorkerSlots& slots = *placed.add_workers();
      for (const int expert : worker) slots.add_experts(static_cast<std::uint32_t>(expert));
    }
  }
}

Placement ReadPlacement(const v1::Placement& message) {
  Placement placement{
      .num_experts = Clamped(message.num_experts()), .workers = Clamped(message.workers()), .layers = {}};
  for (const v1::PlacementLayer& placed : message.layers()) {
    LayerPlacement& layer =
        placement.layers.emplace_back(LayerPlacement{.layer = Clamped(placed.layer()), .slots = {}});
    for (const v1::WorkerSlots& worker : placed.workers()) {
      std::vector<int>& slots = layer.slots.emplace_back();
      for (const std::uint32_t expert : worker.experts()) slots.push_back(Clamped(expert));
    }
  }
  return placement;
}

}  // namespace moe
