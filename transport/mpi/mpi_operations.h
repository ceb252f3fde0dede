// Messages in flight on one communicator. What MPI calls requests and statuses stays behind this header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/clock.h"
#include "core/ids.h"
#include "core/status.h"

namespace moe {

/// A fixed number of places, each of which holds one send or receive at a time. Allocates nothing after construction.
/// Every failure is UNAVAILABLE and names the peer.
class MpiOperations {
 public:
  struct Completion {
    std::size_t place = 0;
    std::size_t bytes = 0;  // received; of a send, undefined
  };

  /// `communicator` as MPI_Comm_c2f gives it.
  MpiOperations(int communicator, std::size_t num_places);
  ~MpiOperations();
  MpiOperations(MpiOperations&& other) noexcept;

  bool active(std::size_t place) const;

  /// The memory is MPI's until the operation completes.
  Status Receive(std::size_t place, std::span<std::byte> into, Rank peer, int tag);
  Status Send(std::size_t place, std::span<const std::byte> frame, Rank peer, int tag);

  /// Makes progress; what has completed since the last time, valid until the next.
  Result<std::span<const Completion>> Test();

  /// Cancels all receives and waits, at most until `deadline`, for the sends. False when something is left that may
  /// still touch its memory: a peer that does not take part any more. Nothing else may be called afterwards.
  bool Finish(Deadline deadline);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moe
