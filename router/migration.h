// One move from a placement to the next, as a state machine without a transport: what to ask the workers next, and what
// follows from their answers. Whatever fails before the switch leaves the old placement in force.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/ids.h"
#include "core/status.h"
#include "model/dispatch_format.h"
#include "placement/placement.h"
#include "router/migration_plan.h"

namespace moe {

enum class MigrationPhase : std::uint8_t {
  kIdle,
  kPrepare,  // workers are told what they shall have
  kLoad,     // and are asked how far they are
  kSwitch,   // all have it: the next step may use it
  kDropOld,  // what nothing is dispatched to any more
  kDropNew,  // after a failure
};

/// "idle", "preparing", "loading", "ready", "dropping the old placement", "abandoning".
std::string_view Name(MigrationPhase phase);

class Migration {
 public:
  struct Options {
    std::chrono::milliseconds timeout{0};    // from Begin until all are ready
    std::chrono::milliseconds interval{10};  // between two questions how far they are
  };
  explicit Migration(Options options) : options_(std::move(options)) {}

  /// From idle. `to.generation` is later than any before; `names`: of the workers, for messages.
  void Begin(Placement to, MigrationPlan plan, std::vector<std::string> names, TimePoint now);

  MigrationPhase phase() const { return phase_; }
  /// The placement that is moved to; while not idle.
  const Placement& to() const { return to_; }

  // A round: a request to some workers, a reply from each of them.

  /// When there is something to ask; kNoDeadline when there is not.
  TimePoint due() const;
  /// Writes the worker's request; its bytes, or 0 when the worker is not asked.
  Result<std::size_t> Write(WorkerId worker, std::span<std::byte> request) const;
  void Read(WorkerId worker, std::span<const std::byte> reply);
  /// After the last reply.
  void EndRound(TimePoint now);

  /// In kSwitch, when the new placement is in force.
  void Switched(TimePoint now);
  /// Something else went wrong. The new generation is dropped; with `workers_forget` the workers do that by themselves.
  void Fail(Status why, bool workers_forget);

  /// Of the last one begun.
  std::uint64_t loaded_bytes() const;
  std::uint64_t moved_experts() const { return plan_.comparisons.size(); }
  /// Why the last one that ended has failed; OK when it has not.
  const Status& failure() const { return failure_; }
  /// What the workers said when they had dropped the old generation; empty after a failure.
  const std::vector<WorkerDescription>& workers() const { return descriptions_; }

 private:
  struct WorkerState {
    bool ready = false;
    std::uint64_t loaded_bytes = 0;
    std::vector<std::uint64_t> checksums;
  };

  bool Complete(std::size_t worker) const;
  Status ReadStatus(std::size_t worker, std::span<const std::byte> reply);
  Status CompareChecksums() const;
  void Note(std::size_t worker, Status status);

  const Options options_;
  MigrationPhase phase_ = MigrationPhase::kIdle;
  Placement to_;
  MigrationPlan plan_;
  std::vector<std::string> names_;
  TimePoint deadline_{};
  TimePoint due_{};
  std::vector<WorkerState> workers_;
  Status failure_;
  std::vector<WorkerDescription> descriptions_;
};

}  // namespace moe
