#include "apps/serve_log.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>
#include <string>

#include "core/text.h"
#include "core/units.h"

namespace moe {

void LogIdleRanks(const ServeSetup& setup) {
  std::string idle;
  for (int w = 0; w < setup.topology.workers; ++w) {
    const auto hosts = [w](const LayerPlacement& layer) { return !layer.slots[static_cast<std::size_t>(w)].empty(); };
    if (std::any_of(setup.placement.layers.begin(), setup.placement.layers.end(), hosts)) continue;
    idle += Cat(idle.empty() ? "" : ", ", setup.topology.rank(WorkerId(w)));
  }
  if (!idle.empty() && !setup.topology.embedded)
    spdlog::warn("{} experts on {} workers: rank(s) {} host none and stay idle", setup.config.num_experts(),
                 setup.topology.workers, idle);
}

void LogMicroBatches(const MicroBatchDecision& decision) {
  spdlog::debug("steps of {} to {} rows: {} micro-batch(es), {:.1f} us a row in one, {:.1f} us in two",
                decision.first_rows, decision.end_rows - 1, decision.count, decision.row_seconds[0] * 1e6,
                decision.row_seconds[1] * 1e6);
}

void LogHealth(const ModelConfig& config, const RoutingHealth::Change& change) {
  const int layer = config.sparse_layers()[change.layer];
  if (change.collapse && change.raised) {
    spdlog::warn("layer {} has collapsed: its gate uses a small part of its {} experts", layer, config.num_experts());
  } else if (change.collapse) {
    spdlog::info("layer {} uses its experts again", layer);
  } else if (change.raised) {
    spdlog::warn("layer {}: {} of its {} experts are dead, no token went to them", layer, change.dead_experts,
                 config.num_experts());
  } else {
    spdlog::info("layer {} has no dead experts any more", layer);
  }
}

void LogMigration(const MigrationProgress& m) {
  spdlog::debug("placement generation {}: {}, {} experts to move, {} bytes loaded", m.generation, Name(m.phase),
                m.moved_experts, m.loaded_bytes);
  if (m.phase == MigrationPhase::kDropOld)
    spdlog::info("placement generation {} is in force: {} experts moved, {} bytes loaded", m.generation,
                 m.moved_experts, m.loaded_bytes);
  if (m.phase == MigrationPhase::kIdle && !m.succeeded)
    spdlog::warn("placement generation {} is given up, the one before stays: {}", m.generation, m.last_failure);
}

void LogMoveOutcome(const MoveOutcome& outcome) {
  const StepComparison& steps = outcome.steps;
  const std::string over =
      Cat("over ", Significant(steps.steps, 3), " steps of ", Significant(steps.rows, 3), " rows, ",
          Significant(steps.rows_before, 3), " before", steps.fair() ? "" : ": too different to be compared");
  const auto ms = [](double seconds) { return Significant(1e3 * seconds, 3); };
  if (const std::optional<double> expected = outcome.expected_seconds()) {
    spdlog::info("placement generation {}: expected step {} ms, measured {} ms, error {:+.1f} % ({} ms before; {})",
                 outcome.generation, ms(*expected), ms(steps.seconds), 100 * outcome.error().value_or(0),
                 ms(steps.seconds_before), over);
  } else {
    spdlog::info("placement generation {}: measured step {} ms, {} ms before ({})", outcome.generation,
                 ms(steps.seconds), ms(steps.seconds_before), over);
  }
}

void LogTrace(const TraceProgress& trace) {
  const std::string dropped =
      trace.dropped == 0 ? "" : Cat("; ", trace.dropped, " left out, because the disk did not keep up");
  if (!trace.failure.ok()) {
    spdlog::error("{}; {} steps are in it{}", trace.failure.message(), trace.steps, dropped);
  } else if (trace.end == TraceEnd::kLimit) {
    spdlog::warn("trace {} has reached its limit and ends: {} steps, {} bytes{}", trace.path, trace.steps, trace.bytes,
                 dropped);
  } else {
    spdlog::info("trace {} ends: {} steps, {} bytes{}", trace.path, trace.steps, trace.bytes, dropped);
  }
}

}  // namespace moe
