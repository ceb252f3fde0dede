// A router's side of the memory that it shares with its workers (lane_memory.h), of one connection to all of them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/clock.h"
#include "transport/backoff.h"
#include "transport/grpc/lane_memory.h"
#include "transport/lanes.h"

namespace moe {

class RouterMemory {
 public:
  /// For the workers whose entry is not 0. RESOURCE_EXHAUSTED when the machine does not give it.
  static Result<std::unique_ptr<RouterMemory>> Create(const TransportLimits& limits,
                                                      const std::vector<std::uint8_t>& attached);

  /// By worker, to be sent to it; empty for one that is not attached.
  std::vector<std::string> Offers() const;

  /// The worker has taken the offer and answered with its bell. NOT_FOUND when that cannot be reached.
  Status Join(const LaneTerms& terms, Rank peer, const std::string& bell);

  /// Of a worker that has joined.
  RouterLanes& lanes(WorkerId worker) { return *members_[worker.index()].lanes; }

  /// To be polled beside it, Pause after a look that found nothing: it ends when a worker rings.
  Backoff& backoff() { return backoff_; }

 private:
  struct Member {
    std::optional<LaneMemory> memory;  // of an attached worker
    std::optional<SharedBell> bell;    // the worker's
    std::unique_ptr<RouterLanes> lanes;
  };
  RouterMemory(SharedBell bell, std::vector<Member> members);

  const SharedBell bell_;  // ours
  std::vector<Member> members_;
  Backoff backoff_;
};

}  // namespace moe
