// The router's life: takes sequences from service threads, runs steps on one engine thread, ends each sequence exactly
// once, drains.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "core/clock.h"
#include "core/status.h"
#include "model/kv_cache.h"
#include "placement/move_meter.h"
#include "placement/routing_health.h"
#include "placement/step_cost.h"
#include "router/engine.h"
#include "router/migrator.h"
#include "router/router_metrics.h"
#include "router/scheduler.h"
#include "router/sequence.h"
#include "router/step_recovery.h"

namespace moe {

class Router {
 public:
  struct Options {
    SchedulerLimits limits;
    std::size_t max_queued = 0;  // sequences waiting
    std::chrono::milliseconds drain_timeout{0};
    std::function<void(const RoutingHealth::Change&)> on_health = {};  // may be empty; by the engine thread
    std::size_t cost_steps = 1024;  // that what a step costs, and what moves made of it, is measured over
    Migrator::Options migration = {};
    /// What a placement that has been in force for as many steps made of them; by the engine thread. May be empty.
    std::function<void(const MoveOutcome&)> on_move_measured = {};
  };
  /// Without `recovery`, a step that fails ends everything that was accepted, and the router.
  Router(Options options, Engine& engine, KvCache& cache, RouterMetrics& metrics, StepRecovery* recovery = nullptr);

  // --- by any thread

  /// Accepts the batch whole or not at all: UNAVAILABLE while draining, RESOURCE_EXHAUSTED when the queue has no room
  /// for it or a sequence needs more KV than there is. What is accepted ends exactly once through its output.
  Status Submit(std::vector<std::unique_ptr<Sequence>> batch);

  /// Begins a drain: nothing more is accepted, what is accepted finishes for at most drain_timeout. A second call, with
  /// `now`, ends what is left at once.
  void Drain();
  void StopNow();
  bool draining() const;

  /// Runs `inspect` on the engine thread between two steps; false, and not run, when the engine has ended.
  bool OnEngineThread(std::function<void()> inspect);

  /// Begins to move experts to `placement` in the background, and returns the generation that it will have; as
  /// Migrator::Begin. UNAVAILABLE while draining. May also be called on the engine thread.
  Result<std::uint64_t> BeginMigration(Placement placement, std::optional<double> expected_gain = std::nullopt);
  MigrationProgress migration() const { return migrator_.progress(); }
  /// The placement in force; null for a model without experts.
  std::shared_ptr<const Placement> placement() const { return migrator_.placement(); }
  /// What the workers said of themselves after the last migration, by worker; empty before the first.
  std::vector<WorkerDescription> migrated_workers() const { return migrator_.workers(); }

  // --- by the engine thread

  /// Serves until drained. OK when everything accepted since has finished or was cancelled; otherwise why not.
  Status Run();

  const Engine& engine() const { return engine_; }
  const Scheduler& scheduler() const { return scheduler_; }
  const RoutingHealth& health() const { return health_; }
  /// Of a step now.
  StepCost cost() const;
  const MoveMeter& moves() const { return moves_; }

 private:
  /// Moves what service threads left into the scheduler; waits for something when nothing runs. False to end.
  bool TakeIn();
  void Admit();
  /// What there is to do for a migration between two steps.
  Status Migrate();
  Status Step();
  /// The engine's step, again where that helps. False when it does not: then the step's own sequences cannot go on.
  Result<bool> RunStep(std::span<const Chunk> chunks);
  void NoteCost(const StepReport& report);
  void NoteMoves(const StepReport& report);
  /// Notes when a sequence's token came, before anybody hears of it.
  void NoteToken(Sequence& sequence, TimePoint now);
  /// Shows what a step brought for one sequence; whether it has ended is RetireEnded's business.
  void Publish(Sequence& sequence);
  /// Ends sequences that are finished, cancelled or, with `failure`, all of them.
  void RetireEnded();
  void FailAll(const Status& failure);
  void End(Sequence& sequence, FinishKind finish, Status status);
  QueueState queue_state() const;
  /// Brings what is said about the sliding window up to date.
  void ShowWindow();

  const Options options_;
  Engine& engine_;
  KvCache& cache_;
  RouterMetrics& metrics_;
  StepRecovery* const recovery_;
  Scheduler scheduler_;
  RoutingHealth health_;
  StepCostMeter cost_;
  MoveMeter moves_;
  Migrator migrator_;
  TimePoint window_published_{};
  std::size_t failed_ = 0;  // sequences that did not finish
  Status failure_;          // the first reason

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Sequence>> inbox_;
  std::vector<std::function<void()>> inspections_;
  std::size_t waiting_ = 0;  // in the inbox or the scheduler's queue
  bool draining_ = false;
  bool stop_now_ = false;
  bool ended_ = false;
  Deadline drain_deadline_ = kNoDeadline;
};

}  // namespace moe
