// What keeps a router going when workers come and go.
#pragma once

#include <span>

#include "core/status.h"
#include "model/dispatch_format.h"
#include "placement/placement.h"

namespace moe {

/// Used by the engine thread alone.
class StepRecovery {
 public:
  virtual ~StepRecovery() = default;

  /// Between two steps: takes in workers that have come back. Costs next to nothing when there are none.
  virtual void BeforeStep() = 0;

  /// After a step has failed: finds out who is lost and goes on without them. OK when the same step may be run again;
  /// otherwise why not, and what runs has to end.
  virtual Status Recover(const Status& failure) = 0;

  /// How often a step may be run again: each time with other workers.
  virtual int max_retries() const = 0;

  /// Between two steps: workers that come back host their part of this from here on.
  virtual void OnPlacement(const Placement& placement) = 0;
  /// What the workers say of themselves since, by worker; a host that is empty: nothing.
  virtual void OnHosted(std::span<const WorkerDescription> workers) = 0;
};

}  // namespace moe
