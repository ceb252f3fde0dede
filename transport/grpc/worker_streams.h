// A worker's streams from its routers on one completion queue: takes them in, sends frames, and tells what has
// happened, one event at a time. Knows nothing of requests.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/clock.h"
#include "core/status.h"
#include "transport/grpc/completions.h"
#include "transport/grpc/stream_hello.h"

namespace grpc {
class ServerBuilder;
class Service;
}  // namespace grpc

namespace moe {

class WorkerStreams {
 public:
  enum class EventKind : std::uint8_t {
    kNone,     // the deadline has passed
    kStopped,  // Stop was called; only once
    kOpening,  // a router asks with `hello`; Accept or Refuse it
    kFrame,    // `message` is there to be read, until ReadNext
    kSent,     // gRPC has taken a frame; `slot` is the frame's
    kClosing,  // the router sends nothing more; replies may still reach it
    kEnded,    // nothing reaches it any more, and the stream is gone
  };
  struct Event {
    EventKind kind = EventKind::kNone;
    std::uint64_t stream = 0;  // its number, never used twice
    std::size_t slot = 0;
    FrameMessage* message = nullptr;
    const Result<StreamHello>* hello = nullptr;
  };

  /// `control` is served through service() and outlives this; null: the data plane alone.
  explicit WorkerStreams(grpc::Service* control);
  /// After CloseQueue.
  ~WorkerStreams();
  WorkerStreams(const WorkerStreams&) = delete;
  WorkerStreams& operator=(const WorkerStreams&) = delete;

  /// Whether `service` implements moe.v1.ExpertWorker by gRPC's callback API.
  static bool IsControl(grpc::Service* service);

  /// moe.v1.ExpertWorker: Exchange, and the control plane's methods.
  grpc::Service* service();
  /// Adds the queue to a server that is about to be built.
  void Prepare(grpc::ServerBuilder& builder);
  /// Takes streams from now on; the server has started.
  void Begin();

  /// The next event; at once when one is there.
  Event Next(Deadline deadline);

  /// At most `max_frames` frames wait to be sent at a time. `memory`: the answer to what was offered, or empty.
  void Accept(std::uint64_t stream, std::size_t max_frames, const std::string& memory);
  void Refuse(std::uint64_t stream, const Status& why);
  void ReadNext(std::uint64_t stream);
  /// After what was sent on the stream before. The memory is not to be touched until kSent.
  void Send(std::uint64_t stream, const OutgoingFrame& frame);
  /// Whether gRPC has not said yet, through Next, that every frame has left.
  bool Unsent(std::uint64_t stream) const;
  /// Ends the stream when everything is sent, with `why` for the router.
  void End(std::uint64_t stream, const Status& why);
  /// Ends it at once; frames that wait to be sent are dropped, and nothing may be sent any more.
  void Cancel(std::uint64_t stream);

  /// From any thread: Next tells kStopped.
  void Stop();
  /// While the server shuts down: takes no stream any more and ends all others with `why`; handles what happens until
  /// `deadline`.
  void WindUp(const Status& why, Deadline deadline);
  /// When the server has shut down, or did not start.
  void CloseQueue();

 private:
  struct Stream;
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace moe
