#include "transport/grpc/envelope.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

namespace moe {
namespace {

// Field 1, wire type 2 (length-delimited); see "Encoding" in protobuf's documentation.
constexpr std::byte kTag{0x0a};
constexpr std::size_t kMostLengthBytes = kMaxEnvelopeBytes - 1;

}  // namespace

Envelope::Envelope(std::size_t frame_bytes) {
  MOE_CHECK(frame_bytes <= std::numeric_limits<std::uint32_t>::max(), "a frame that fits no message");
  bytes_[size_++] = kTag;
  for (; frame_bytes >= 0x80; frame_bytes >>= 7) bytes_[size_++] = static_cast<std::byte>(frame_bytes | 0x80);
  bytes_[size_++] = static_cast<std::byte>(frame_bytes);
}

Result<std::size_t> FrameMessage::ReadEnvelope() {
  std::byte tag{};
  if (!Read({&tag, 1})) return InvalidArgument("sent an empty message");
  if (tag != kTag)
    return InvalidArgument("sent a message that starts with byte ", static_cast<int>(tag), " instead of ",
                           static_cast<int>(kTag), ", the tag of its frame");
  std::size_t frame_bytes = 0;
  for (std::size_t i = 0;; ++i) {
    std::byte next{};
    if (i == kMostLengthBytes || !Read({&next, 1}))
      return InvalidArgument("sent a message whose length of a frame does not end");
    frame_bytes |= static_cast<std::size_t>(next & std::byte{0x7f}) << (7 * i);
    if ((next & std::byte{0x80}) == std::byte{0}) break;
  }
  if (frame_bytes != left_)
    return InvalidArgument("sent a message that says ", frame_bytes, " bytes of a frame, but ", left_, " follow");
  return frame_bytes;
}

bool FrameMessage::Read(std::span<std::byte> into) {
  if (into.size() > left_) return false;
  while (!into.empty()) {
    if (piece_.empty()) piece_ = NextPiece();
    if (piece_.empty()) return false;
    const std::size_t bytes = std::min(piece_.size(), into.size());
    std::memcpy(into.data(), piece_.data(), bytes);
    piece_ = piece_.subspan(bytes);
    into = into.subspan(bytes);
    left_ -= bytes;
  }
  return true;
}

}  // namespace moe
