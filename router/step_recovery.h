// What keeps a router going when workers come and go.
#pragma once

#include "core/status.h"

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
};

}  // namespace moe
