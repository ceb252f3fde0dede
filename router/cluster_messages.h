// What a router knows of its cluster as messages of moe.v1.Cluster, and placements back.
#pragma once

#include <vector>

#include "model/config.h"
#include "model/dispatch_format.h"
#include "placement/load_window.h"
#include "placement/move_meter.h"
#include "placement/placement.h"
#include "placement/routing_health.h"
#include "placement/step_cost.h"
#include "router/balancer.h"
#include "router/cluster_service.h"
#include "router/migrator.h"
#include "router/trace_recorder.h"

namespace moe::v1 {
class ClusterState;
class MigrationState;
class MoveOutcome;
class Placement;
class StepCost;
class TraceState;
class Verdict;
}  // namespace moe::v1

namespace moe {

/// All but what changes with every call: the load, who is there, what moves.
v1::ClusterState StateOf(const ClusterSetup& setup, const Placement& placement,
                         const std::vector<WorkerDescription>& workers);
/// Appends one LayerLoad per sparse layer, and sets the window.
void WriteLoad(const ModelConfig& config, const LoadWindow& window, const RoutingHealth& health,
               v1::ClusterState& state);
/// The parts of the window, for the layers that WriteLoad has appended.
void WriteParts(const ModelConfig& config, const LoadWindow& window, v1::ClusterState& state);
void WriteMigration(const MigrationProgress& progress, v1::MigrationState& state);
void WriteMove(const MoveOutcome& outcome, v1::MoveOutcome& message);
void WriteCost(const StepCost& cost, v1::StepCost& message);
void WriteVerdict(const BalanceAdvice& advice, v1::Verdict& message);
void WriteTrace(const TraceProgress& progress, v1::TraceState& state);
void WritePlacement(const Placement& placement, v1::Placement& message);
/// Numbers over any int of ours become the largest, as CheckPlacement wants to name them. The generation is not read.
Placement ReadPlacement(const v1::Placement& message);

}  // namespace moe
