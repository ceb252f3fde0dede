// A frame as it travels over NCCL (docs/wire-format.md).
//
// NCCL moves bytes whose number both ends know beforehand. So a message begins with a part of fixed length, which each
// end has agreed on at the start: a preamble that tells the length of the frame, and as much of the frame as fits. Only
// if there is more does a second part follow, of exactly that length, which the receiver asks for once it has read the
// first. Small frames, a decode step's, cost one transfer and no word about sizes; large ones, a prefill's, two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "core/ids.h"
#include "core/status.h"
#include "transport/frame.h"

namespace moe {

/// Stands in for the length that other transports tell beside a message.
struct NcclPreamble {
  std::uint64_t frame_bytes = 0;  // header and payload
  std::uint64_t inverted = 0;     // ~frame_bytes
  std::uint64_t reserved[6] = {};
};
inline constexpr std::size_t kNcclPreambleBytes = 64;  // keeps header and payload aligned
static_assert(sizeof(NcclPreamble) == kNcclPreambleBytes);

inline constexpr std::size_t kNcclPayloadOffset = kNcclPreambleBytes + kFrameHeaderBytes;

inline void WriteNcclPreamble(std::size_t frame_bytes, std::span<std::byte> message) {
  const NcclPreamble preamble{.frame_bytes = frame_bytes, .inverted = ~std::uint64_t{frame_bytes}};
  std::memcpy(message.data(), &preamble, sizeof(preamble));
}

/// The length of the frame in `message`, at most `max_frame_bytes`; UNAVAILABLE, naming the peer, for anything else.
inline Result<std::size_t> ReadNcclPreamble(std::span<const std::byte> message, std::size_t max_frame_bytes,
                                            Rank peer) {
  NcclPreamble preamble;
  std::memcpy(&preamble, message.data(), sizeof(preamble));
  if (preamble.inverted != ~preamble.frame_bytes || preamble.frame_bytes > max_frame_bytes) {
    return Unavailable("rank ", peer, " sent a message whose preamble says ", preamble.frame_bytes, " and ~",
                       ~preamble.inverted, " bytes (equal, at most ", max_frame_bytes, ")");
  }
  return static_cast<std::size_t>(preamble.frame_bytes);
}

/// Whether the peer says that it goes, as far as a header can be believed.
inline bool IsCloseFrame(std::span<const std::byte> frame) {
  if (frame.size() < kFrameHeaderBytes) return false;
  const FrameHeader header = ReadFrameHeader(frame);
  return header.kind == FrameKind::kClose && header.checksum == FrameChecksum(header);
}

/// The first thing that travels on each communicator: what both ends must agree on.
struct NcclHello {
  std::uint32_t magic = 0x4843'4e4d;  // "MNCH" in memory
  std::uint32_t version = 1;          // of messages and frames over NCCL
  std::uint64_t max_request_bytes = 0;
  std::uint64_t max_reply_bytes = 0;
  std::uint64_t small_bytes = 0;
  std::uint32_t max_exchanges = 0;
  std::uint32_t payload_checksums = 0;
  std::uint64_t reserved[3] = {};
};
static_assert(sizeof(NcclHello) == kFrameHeaderBytes);
inline constexpr std::size_t kNcclHelloBytes = kNcclPreambleBytes + sizeof(NcclHello);

}  // namespace moe
