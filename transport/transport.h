// Moves opaque bytes between a router and its workers. Knows sizes, ranks and memory space, nothing else.
//
// The router's end makes exchanges: a request to some of the workers and one reply from each. The worker's end receives
// requests and replies to them. An error is terminal for a transport: its buffers stay alive until it is destroyed,
// nothing is retried on it. Frames carry (epoch, sequence) and their length; stale ones are dropped, wrong ones are an
// error that names the peer's rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "core/clock.h"
#include "core/ids.h"
#include "core/memory_space.h"
#include "core/status.h"

namespace moe {

struct TransportLimits {
  std::size_t max_request_bytes = 0;  // payload of one request to one worker
  std::size_t max_reply_bytes = 0;    // payload of one reply
  int max_exchanges = 2;              // in flight at a time
  bool payload_checksums = false;     // frames carry a checksum of their payload; the same on both ends
};

/// One fan-out and gather, reusable: buffers are allocated once, Start … Wait may be repeated without allocation.
/// Used by one thread, the one that owns the transport.
class Exchange {
 public:
  virtual ~Exchange() = default;

  /// Where the request to `worker` is written, max_request_bytes, 64-byte aligned. Must not be touched between Start
  /// and the end of the exchange.
  virtual std::span<std::byte> request(WorkerId worker) = 0;

  /// Starts the exchange: request_bytes[w] bytes go to worker w, and one reply is awaited from it; 0 leaves it out.
  /// INVALID_ARGUMENT over the limit, before anything is sent. Waits for no reply; but what it meets while it sends (a
  /// peer that is gone, say) ends the exchange as it would in Wait.
  virtual Status Start(std::span<const std::size_t> request_bytes) = 0;

  /// Makes progress without waiting; true when every reply is there.
  virtual Result<bool> Poll() = 0;

  /// All replies, or one error: DEADLINE_EXCEEDED or UNAVAILABLE naming the rank of a worker that has not answered.
  virtual Status Wait(Deadline deadline) = 0;

  /// The reply of a worker that took part, valid until the next Start; empty for one that was left out.
  virtual std::span<const std::byte> reply(WorkerId worker) const = 0;

  /// When that reply was complete: written, where memory is shared, else seen by Poll or Wait. TimePoint() of a worker
  /// that was left out or has not answered; after a failure too, so it tells whose answers are missing.
  virtual TimePoint completed_at(WorkerId worker) const = 0;
};

/// The router's end.
class Transport {
 public:
  virtual ~Transport() = default;

  /// "inprocess", "mpi", "nccl", "grpc", "grpc_streams" (told not to share memory).
  virtual std::string_view name() const = 0;
  virtual MemorySpace memory_space() const = 0;
  virtual int num_workers() const = 0;
  virtual Rank rank(WorkerId worker) const = 0;
  virtual const TransportLimits& limits() const = 0;

  /// At most limits().max_exchanges of them at a time; must be destroyed before the transport. Destroying one between
  /// Start and its end is an error, terminal like any other.
  virtual std::unique_ptr<Exchange> MakeExchange() = 0;
};

/// A request as a worker sees it; `payload`, 64-byte aligned, is valid until it is replied to.
struct IncomingRequest {
  int router = 0;  // which of the attached routers asks
  std::span<const std::byte> payload;
  std::uint64_t ticket = 0;  // the transport's own
};

/// The worker's end. Used by one thread.
class WorkerEndpoint {
 public:
  virtual ~WorkerEndpoint() = default;

  virtual const TransportLimits& limits() const = 0;

  /// Whether that router's end is still there. A number stands for one end: a router that comes back has another. True
  /// where routers cannot come and go.
  virtual bool attached(int /*router*/) const { return true; }

  /// The next request: the one started first of those that have arrived from a router, routers in turn. Nothing when
  /// `deadline` passed first. UNAVAILABLE when no router is or can be attached any more. INTERNAL for one wrong frame:
  /// its router has been told, and the next Receive goes on with the others.
  virtual Result<std::optional<IncomingRequest>> Receive(Deadline deadline) = 0;

  /// Where the reply is written, max_reply_bytes, 64-byte aligned, one buffer per open request. Requests may be replied
  /// to in any order; a router's deadline runs meanwhile.
  virtual std::span<std::byte> reply_buffer(const IncomingRequest& request) = 0;

  /// Sends the first `bytes` of the reply buffer; INVALID_ARGUMENT over max_reply_bytes, and the request stays open.
  /// The buffer and the request are the transport's again.
  virtual Status Reply(const IncomingRequest& request, std::size_t bytes) = 0;
};

}  // namespace moe
