// Waiting on a gRPC completion queue, and messages to and from gRPC's buffers; shared by both ends.
#pragma once

#include <memory>

#include "core/clock.h"
#include "transport/grpc/envelope.h"
#include "transport/grpc/frame_memory.h"
#include "transport/grpc/ring.h"

namespace grpc {
class ByteBuffer;
class CompletionQueue;
}  // namespace grpc

namespace moe {

struct Completion {
  void* tag = nullptr;  // nullptr: nothing before the deadline, or the queue has been shut down and is empty
  bool ok = false;
};

/// The next completion; sleeps until there is one. gRPC counts its deadlines in milliseconds and rounds up. Events are
/// handled on this thread while it looks and sleeps.
Completion NextCompletion(grpc::CompletionQueue& queue, Deadline deadline);

/// A frame to be sent: the first `bytes` of `memory`.
struct OutgoingFrame {
  std::size_t slot = 0;  // its sender's name for it
  FrameMemory* memory = nullptr;
  std::size_t bytes = 0;
};

/// The frames of a stream that gRPC has not taken yet; it takes one at a time, which is the first.
using SendQueue = Ring<OutgoingFrame>;

/// A message of the frame, which it refers to and does not copy.
grpc::ByteBuffer MessageOf(const OutgoingFrame& frame);

/// Reads messages, one after the other, without an allocation for each.
class ArrivedMessage final : public FrameMessage {
 public:
  ArrivedMessage();
  ~ArrivedMessage() override;

  /// Reads `message` from its start; it outlives the reading.
  void Open(grpc::ByteBuffer& message);

 protected:
  std::span<const std::byte> NextPiece() override;

 private:
  struct Reader;
  std::unique_ptr<Reader> reader_;
};

}  // namespace moe
