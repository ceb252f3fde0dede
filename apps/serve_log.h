// What a router says in the log of what its parts tell.
#pragma once

#include "apps/serve_options.h"
#include "placement/move_meter.h"
#include "placement/routing_health.h"
#include "router/micro_batch_choice.h"
#include "router/migrator.h"
#include "router/trace_recorder.h"

namespace moe {

/// The ranks that host no expert, if there are any.
void LogIdleRanks(const ServeSetup& setup);
void LogMicroBatches(const MicroBatchDecision& decision);
void LogHealth(const ModelConfig& config, const RoutingHealth::Change& change);
void LogMigration(const MigrationProgress& progress);
void LogMoveOutcome(const MoveOutcome& outcome);
/// Of a trace that has ended.
void LogTrace(const TraceProgress& trace);

}  // namespace moe
