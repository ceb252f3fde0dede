// Exchanges through memory that a router and a worker share, be they threads or processes. Nothing is copied: each end
// reads a frame where the other wrote it, and no system call is made but to wake one who sleeps.
//
// A lane is one exchange slot between one router and one worker. Its state says whose it is: the worker's from
// kRequested on, the router's from kReplied on. Each sets it with release after writing; the other reads it with
// acquire. The two classes are the two ends of all lanes between one router and one worker.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/clock.h"
#include "core/ids.h"
#include "core/status.h"
#include "transport/doorbell.h"
#include "transport/frame_tap.h"
#include "transport/transport.h"

namespace moe {

enum class LaneState : std::uint32_t { kIdle, kRequested, kTaken, kReplied };

/// All-zero memory is an idle lane, so it may lie in a fresh shared mapping.
struct alignas(64) LaneControl {
  std::atomic<LaneState> state{LaneState::kIdle};
  // Written before the state and read after it; each may be anything where the other end is another process.
  std::atomic<std::uint64_t> request_frame_bytes{0};
  std::atomic<std::uint64_t> reply_frame_bytes{0};
  std::atomic<TimePoint> replied_at{TimePoint()};  // of a clock that all processes of a machine share
};
static_assert(std::atomic<LaneState>::is_always_lock_free && std::atomic<TimePoint>::is_always_lock_free,
              "they may be shared with another process");
static_assert(sizeof(LaneControl) == 64 && offsetof(LaneControl, request_frame_bytes) == 8 &&
                  offsetof(LaneControl, reply_frame_bytes) == 16 && offsetof(LaneControl, replied_at) == 24,
              "docs/wire-format.md has these");

/// As one end sees it; frames are a header and room for the largest payload, 64-byte aligned.
struct Lane {
  LaneControl* control = nullptr;
  std::span<std::byte> request;
  std::span<std::byte> reply;
};

/// What both ends know of the connection.
struct LaneTerms {
  TransportLimits limits;
  std::uint64_t epoch = 1;
  FrameTap* tap = nullptr;  // outlives the end
  WorkerId worker;          // for the tap
};

/// The router's end.
class RouterLanes {
 public:
  /// `lanes` by slot; `peer`: the worker; `bell`: the worker's. The memory of both outlives this.
  RouterLanes(std::vector<Lane> lanes, const LaneTerms& terms, Rank peer, Doorbell& bell);

  /// Where a request's payload is written, max_request_bytes.
  std::span<std::byte> request(std::size_t slot) const { return lanes_[slot].request.subspan(kFrameHeaderBytes); }
  void Send(std::size_t slot, std::uint64_t sequence, std::size_t bytes);
  /// Whether the reply to that sequence has just been found; UNAVAILABLE, naming the peer, for a wrong frame.
  Result<bool> TakeReply(std::size_t slot, std::uint64_t sequence);
  /// The payload of the reply that was taken last; until the next Send.
  std::span<const std::byte> reply(std::size_t slot) const { return replies_[slot]; }
  /// When it was written.
  TimePoint replied_at(std::size_t slot) const {
    return lanes_[slot].control->replied_at.load(std::memory_order_relaxed);  // after TakeReply, which has paired
  }

 private:
  const std::vector<Lane> lanes_;
  const LaneTerms terms_;
  const Rank peer_;
  Doorbell& bell_;
  std::vector<std::span<const std::byte>> replies_;
};

/// The worker's end.
class WorkerLanes {
 public:
  /// `peer`: the router; `bell`: the router's. The memory of both outlives this.
  WorkerLanes(std::vector<Lane> lanes, const LaneTerms& terms, Rank peer, Doorbell& bell);

  struct Request {
    std::size_t slot = 0;
    std::span<const std::byte> payload;
  };
  /// The request started first of those that have arrived; nothing when there is none. INTERNAL for a wrong frame,
  /// which the router has been told of.
  Result<std::optional<Request>> Take();
  /// Of a request that has been taken: where its reply is written, max_reply_bytes.
  std::span<std::byte> reply_buffer(std::size_t slot) const { return lanes_[slot].reply.subspan(kFrameHeaderBytes); }
  /// INVALID_ARGUMENT over max_reply_bytes; the request stays open.
  Status Reply(std::size_t slot, std::size_t bytes);
  /// How many requests have been taken and not replied to.
  std::size_t open() const { return static_cast<std::size_t>(std::ranges::count(taken_, 1)); }

 private:
  std::optional<std::size_t> Oldest() const;
  Result<std::optional<Request>> TakeFrom(std::size_t slot);
  void HandOver(std::size_t slot, FrameKind kind, std::size_t bytes);

  const std::vector<Lane> lanes_;
  const LaneTerms terms_;
  const Rank peer_;
  Doorbell& bell_;
  std::vector<std::uint64_t> last_sequences_;  // by slot: of the newest request seen there
  std::vector<std::uint8_t> taken_;            // by slot: a request that waits for its reply
};

}  // namespace moe
