// Memory that a router and its gRPC workers share where all of them run on one machine, as one user: then frames lie in
// lanes and ring bells, and the streams tell who comes and goes.
//
// Either end names what it has made in the metadata that opens a stream (docs/wire-format.md).
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "core/shared_memory.h"
#include "core/status.h"
#include "transport/backoff.h"
#include "transport/doorbell.h"
#include "transport/lanes.h"
#include "transport/transport.h"

namespace moe {

/// A doorbell that others can be given the name of.
class SharedBell {
 public:
  static Result<SharedBell> Create();
  static Result<SharedBell> Open(std::string_view name);

  Doorbell& bell() const;
  const std::string& name() const { return memory_.name(); }

 private:
  explicit SharedBell(SharedMemory memory) : memory_(std::move(memory)) {}
  SharedMemory memory_;
};

/// The lanes between one router and one worker.
class LaneMemory {
 public:
  /// `limits`: of the connection, the same for both ends.
  static Result<LaneMemory> Create(const TransportLimits& limits);
  static Result<LaneMemory> Open(std::string_view name, const TransportLimits& limits);

  /// By slot; they live as long as this.
  std::vector<Lane> lanes() const;
  const std::string& name() const { return memory_.name(); }

 private:
  LaneMemory(SharedMemory memory, const TransportLimits& limits) : memory_(std::move(memory)), limits_(limits) {}
  SharedMemory memory_;
  TransportLimits limits_;
};

/// How an end waits for rings. What the streams have to tell it then is that a peer has gone, or come: it looks at them
/// no more often than every kLookInterval, and no later than after the sleep that outlasts it.
BackoffOptions WaitingForRings();
inline constexpr std::chrono::milliseconds kLookInterval{1};

/// Names of what a router offers to a worker.
struct MemoryOffer {
  std::string lanes;
  std::string bell;  // the router's own

  /// As a value of metadata: both, with a space between them.
  std::string ToText() const;
  static Result<MemoryOffer> Parse(std::string_view text);
};

}  // namespace moe
