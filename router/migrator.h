// Moves experts between the workers of a running router: carries a migration's questions to the workers between two
// steps, and puts the new placement in force.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/status.h"
#include "model/config.h"
#include "model/dispatch_format.h"
#include "placement/placement.h"
#include "router/expert_exchange.h"
#include "router/migration.h"
#include "router/step_recovery.h"

namespace moe {

/// Of the migration under way, else of the last one.
struct MigrationProgress {
  MigrationPhase phase = MigrationPhase::kIdle;
  std::uint64_t generation = 0;     // that it leads to; 0: there was none
  std::uint64_t moved_experts = 0;  // slots whose expert comes new to its worker, over all layers
  std::uint64_t loaded_bytes = 0;   // as held in memory
  std::uint64_t finished = 0;       // migrations so far, by how they ended
  std::uint64_t failed = 0;
  bool succeeded = false;    // the last one that ended
  std::string last_failure;  // empty: none has failed
};

class Migrator {
 public:
  struct Options {
    std::uint64_t bytes_per_s = 0;               // that a worker loads at most; 0: no limit
    std::chrono::milliseconds timeout{600'000};  // from its begin until every worker has its experts
    std::chrono::milliseconds interval{10};      // between two questions how far they are
    /// After each change of the phase, by the engine thread. May be empty.
    std::function<void(const MigrationProgress&)> on_change = {};
  };
  /// `exchange` is null for a model without experts, `recovery` where workers do not come and go. All given by
  /// reference outlive this.
  Migrator(Options options, const ModelConfig& config, ExpertExchange* exchange, StepRecovery* recovery);

  // By any thread.

  /// Begins to move to `placement`, whose own generation is not looked at; returns the one that it will have.
  /// INVALID_ARGUMENT when it does not fit the model and the workers, FAILED_PRECONDITION while another migration is
  /// under way, UNIMPLEMENTED for a model without experts. What fails later leaves the placement before in force, and
  /// progress() says why. `expected_gain`: the share of a mean step that it is to save, if anybody has said so.
  Result<std::uint64_t> Begin(Placement placement, std::optional<double> expected_gain = std::nullopt);
  MigrationProgress progress() const;
  /// In force; null for a model without experts.
  std::shared_ptr<const Placement> placement() const;
  /// What the workers said of themselves after the last migration, by worker; empty before the first.
  std::vector<WorkerDescription> workers() const;

  // By the engine thread, between two steps.

  /// Does what can be done without waiting. A failure is the transport's, as that of a step.
  Status Advance(TimePoint now);
  /// When Advance has something to do again: the past for at once, kNoDeadline for never.
  TimePoint due() const;
  /// Whether one has begun that has not ended. By any thread.
  bool under_way() const { return begun_; }
  /// What was said of the generation, if it is the last one that the engine thread has heard of.
  std::optional<double> expected_gain(std::uint64_t generation) const {
    return generation == migration_.to().generation ? expected_gain_ : std::nullopt;
  }

 private:
  void TakeIn(TimePoint now);
  Status StartRound();
  void EndRound(TimePoint now);
  void Switch(TimePoint now);
  void Fail(Status why, bool workers_forget);
  /// Lets other threads see where it stands.
  void Show();

  const Options options_;
  const PlacementShape shape_;
  ExpertExchange* const exchange_;
  StepRecovery* const recovery_;
  Migration migration_;
  MigrationPhase shown_ = MigrationPhase::kIdle;
  std::optional<double> expected_gain_;  // of migration_.to()
  std::uint64_t bindings_ = 0;           // of the exchange, when the round or the migration began

  // Written with mutex_ held; read without, so that a step without a migration holds no lock for it.
  std::atomic<bool> begun_{false};        // and not ended
  std::atomic<bool> handed_over_{false};  // next_ waits for the engine thread

  mutable std::mutex mutex_;  // of what follows
  Placement next_;
  std::optional<double> next_gain_;
  std::uint64_t last_generation_ = 0;
  std::shared_ptr<const Placement> placement_;
  std::vector<WorkerDescription> workers_;
  MigrationProgress progress_;
};

}  // namespace moe
