// A worker's side of the memory that routers share with it (lane_memory.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "core/clock.h"
#include "transport/backoff.h"
#include "transport/grpc/lane_memory.h"
#include "transport/lanes.h"

namespace moe {

/// What one router shares with this worker: its frames lie there.
class AttachedMemory {
 public:
  /// None when `offer` is not one, or what it names is out of reach.
  static std::unique_ptr<AttachedMemory> Take(const std::string& offer, const LaneTerms& terms, Rank peer);

  WorkerLanes& lanes() { return lanes_; }

 private:
  AttachedMemory(LaneMemory memory, SharedBell bell, const LaneTerms& terms, Rank peer);

  const LaneMemory memory_;
  const SharedBell bell_;  // the router's
  WorkerLanes lanes_;
};

/// Which of the attached routers ring; what the others send has to be looked for in the streams.
enum class Ringing : std::uint8_t { kNone, kSome, kAll };

/// The worker's bell, and how it waits for it.
class WorkerBell {
 public:
  /// With `shared_memory` false, or where the machine gives none, nobody can ring.
  explicit WorkerBell(bool shared_memory);

  /// For routers; empty when nobody can ring.
  std::string name() const { return bell_ ? bell_->name() : ""; }
  /// From any thread: Pause ends soon.
  void Ring();

  /// Whether it is time to look at the streams; notes that it has been done.
  bool LookIsDue(Ringing who);
  /// Something arrived.
  void Progress();
  /// After a look that found nothing; never past the deadline.
  void Pause(Ringing who, Deadline deadline) { (who == Ringing::kAll ? all_ : some_).Pause(deadline); }

 private:
  std::optional<SharedBell> bell_;
  Backoff all_;
  Backoff some_;
  TimePoint looked_at_;
};

}  // namespace moe
