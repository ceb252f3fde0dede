// How a frame lies in a gRPC message: as the one field of message Frame (proto/moe/v1/worker.proto), so that any
// protobuf library can read and write what we send, while we never encode or decode more than these few bytes.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "core/status.h"

namespace moe {

/// The field's tag, and its length in at most five bytes: a gRPC message is below 4 GiB.
inline constexpr std::size_t kMaxEnvelopeBytes = 6;

class Envelope {
 public:
  explicit Envelope(std::size_t frame_bytes);
  std::span<const std::byte> bytes() const { return std::span(bytes_).first(size_); }

 private:
  std::array<std::byte, kMaxEnvelopeBytes> bytes_{};
  std::size_t size_ = 0;
};

/// Reads an arrived message, which lies in pieces. The pieces are the derived class's.
class FrameMessage {
 public:
  virtual ~FrameMessage() = default;

  /// How long the frame is that the message consists of; all further bytes are the frame's. INVALID_ARGUMENT, "sent …",
  /// when the message is anything but an envelope and as many bytes as it says. To be called once, first.
  Result<std::size_t> ReadEnvelope();

  /// Copies the next bytes; false when there are not so many.
  bool Read(std::span<std::byte> into);

 protected:
  /// Another message.
  void Restart(std::size_t message_bytes) {
    left_ = message_bytes;
    piece_ = {};
  }

  /// The next piece, empty after the last one. Valid until the next call.
  virtual std::span<const std::byte> NextPiece() = 0;

 private:
  std::size_t left_ = 0;  // bytes of the message not read yet
  std::span<const std::byte> piece_;
};

}  // namespace moe
