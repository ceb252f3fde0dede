// The header in front of every payload, and the checks a receiver makes before it believes one.
//
// 64 bytes, little-endian, so that a payload behind it keeps the alignment of its buffer. The header's checksum covers
// the header alone: that is what steers memory (lengths) and matching (epoch, sequence), while payload bytes are
// guarded by what carries them (memory, MPI's fabric, TCP) and a second pass over them would cost as much as copying
// them. Who trusts the carrier less asks for a second checksum, of the payload (TransportLimits::payload_checksums).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "core/ids.h"
#include "core/status.h"

namespace moe {

static_assert(std::endian::native == std::endian::little, "frames are written as the machine has them");

inline constexpr std::uint32_t kFrameMagic = 0x4645'4f4d;  // "MOEF" in memory
inline constexpr std::uint16_t kFrameVersion = 2;

enum class FrameKind : std::uint16_t {
  kRequest = 1,
  kReply = 2,
  kError = 3,  // instead of a reply: the payload is a sentence that says why there is none
  kClose = 4,  // the sender's end is gone; nothing follows
};

inline constexpr std::uint32_t kPayloadChecksumFlag = 1;

struct FrameHeader {
  std::uint32_t magic = kFrameMagic;
  std::uint16_t version = kFrameVersion;
  FrameKind kind = FrameKind::kRequest;
  std::uint64_t epoch = 0;     // which connection between these peers
  std::uint64_t sequence = 0;  // which exchange on it, from 1; a reply carries its request's
  std::uint64_t payload_bytes = 0;
  std::uint32_t flags = 0;             // kPayloadChecksumFlag
  std::uint32_t reserved = 0;          // 0
  std::uint64_t payload_checksum = 0;  // XXH3 of the payload, 64 bits, seed 0; 0 without the flag
  std::uint64_t reserved_too = 0;      // 0
  std::uint64_t checksum = 0;          // FrameChecksum of all before it
};
inline constexpr std::size_t kFrameHeaderBytes = 64;
static_assert(sizeof(FrameHeader) == kFrameHeaderBytes && std::is_trivially_copyable_v<FrameHeader>);

std::uint64_t FrameChecksum(const FrameHeader& header);

/// Fills in the header's checksum.
void Seal(FrameHeader& header);
/// And before that, if `payload_checksum`, the payload's.
void Seal(FrameHeader& header, std::span<const std::byte> payload, bool payload_checksum);

/// Puts `header` at the start of `frame`, whose payload follows at kFrameHeaderBytes.
void WriteFrameHeader(const FrameHeader& header, std::span<std::byte> frame);

enum class FrameVerdict : std::uint8_t { kAccept, kDrop };

struct RequestExpectation {
  Rank peer;  // the router that sent it
  std::uint64_t epoch = 0;
  std::uint64_t last_sequence = 0;  // of the request before it in the same exchange slot
  std::size_t max_payload_bytes = 0;
  bool payload_checksum = false;  // frames must carry one, else they must not
};

/// Whether `frame`, exactly what arrived at a worker, is a new request. A stale one (older epoch, sequence already
/// seen) is to be dropped; a wrong one is INTERNAL, naming the peer and what is wrong.
Result<FrameVerdict> JudgeRequest(std::span<const std::byte> frame, const RequestExpectation& expected);

struct ReplyExpectation {
  Rank peer;  // the worker that sent it
  std::uint64_t epoch = 0;
  std::uint64_t sequence = 0;
  std::size_t max_payload_bytes = 0;
  bool payload_checksum = false;  // frames must carry one, else they must not
};

/// The same at a router. A wrong frame, an error frame (whatever its sequence: the worker could not read ours) and a
/// closed peer are UNAVAILABLE, naming the peer.
Result<FrameVerdict> JudgeReply(std::span<const std::byte> frame, const ReplyExpectation& expected);

/// Reads a header that a Judge function accepted.
FrameHeader ReadFrameHeader(std::span<const std::byte> frame);

}  // namespace moe
