// A router's streams to its workers on one completion queue: opens them, sends frames, and tells what has happened, one
// event at a time. Knows nothing of exchanges.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/ids.h"
#include "core/status.h"
#include "transport/grpc/completions.h"
#include "transport/grpc/grpc_channels.h"

namespace moe {

class RouterStreams {
 public:
  enum class EventKind : std::uint8_t {
    kNone,    // the deadline has passed
    kOpened,  // the worker has accepted
    kSent,    // gRPC has taken a frame; `slot` is the frame's
    kFrame,   // `message` is there to be read, until the next call of Send or Next
    kLost,    // the stream has ended; `failure` names the worker, and the channels have been told
  };
  struct Event {
    EventKind kind = EventKind::kNone;
    WorkerId worker;
    std::size_t slot = 0;
    FrameMessage* message = nullptr;
    Status failure;
  };

  /// At most `max_frames` frames to one worker wait to be sent at a time. `channels` outlives this.
  RouterStreams(GrpcChannels& channels, std::size_t max_frames);
  /// Cancels all streams and returns when gRPC has let go of them, at once.
  ~RouterStreams();
  RouterStreams(const RouterStreams&) = delete;
  RouterStreams& operator=(const RouterStreams&) = delete;

  /// Opens a stream to each worker whose entry is not 0, all at a time; the failures as MakeGrpcTransport says.
  /// `memory`: what is offered to each worker, or empty.
  Status Open(std::uint64_t epoch, const std::vector<std::uint8_t>& attached, const std::vector<std::string>& memory,
              Deadline deadline);
  /// What an attached worker has answered to that; empty when it did not take it.
  std::string memory(WorkerId worker) const;

  /// After what was sent to the worker before. The memory is not to be touched until kSent.
  void Send(WorkerId worker, const OutgoingFrame& frame);

  /// Whether gRPC has not said yet, through Next, that every frame has left.
  bool Unsent() const;

  /// One of the answers awaited from the worker is there.
  void Answered(WorkerId worker);

  /// The next event; at once when one is there. Reads from workers of whom an answer is awaited.
  Event Next(Deadline deadline);

 private:
  struct Stream;
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace moe
