// What both ends of the MPI transport share: how a connection starts, how a frame is sent, how an end takes its leave.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>

#include "core/aligned_buffer.h"
#include "transport/frame.h"
#include "transport/mpi/mpi_operations.h"
#include "transport/mpi/mpi_transport.h"

namespace moe {

inline constexpr Rank kMpiRouter{0};

// A slot is the number of an exchange; both ends match its messages by tag.
inline constexpr int kCloseTag = 0;
inline int RequestTag(std::size_t slot) { return 1 + 2 * static_cast<int>(slot); }
inline int ReplyTag(std::size_t slot) { return 2 + 2 * static_cast<int>(slot); }

/// How long an end that is destroyed waits for transfers that a live peer finishes within microseconds.
inline constexpr std::chrono::milliseconds kFarewell{500};

/// A frame as it travels: header, then payload.
using FrameBuffer = AlignedBuffer<std::byte>;

/// Frames without a payload, one for each of several messages.
struct ClosingMessages {
  ClosingMessages(int communicator, std::size_t count)
      : frames(count * kFrameHeaderBytes), operations(communicator, count) {}
  std::span<std::byte> frame(std::size_t i) { return frames.span().subspan(i * kFrameHeaderBytes, kFrameHeaderBytes); }
  FrameBuffer frames;
  MpiOperations operations;
};

struct OutgoingFrame {
  FrameHeader header;          // all but epoch and checksum
  std::span<std::byte> frame;  // room for the header, then the payload in place
  Rank peer;
  int tag = 0;
  WorkerId worker;        // for the tap
  std::size_t place = 0;  // in the sender's MpiOperations
};

/// One end's side of the connection.
class MpiLink {
 public:
  /// Collective. INVALID_ARGUMENT, on all ranks, for limits that do not fit or differ.
  static Result<MpiLink> Connect(MpiWorld& world, const MpiTransportOptions& options);

  MpiWorld& world() const { return *world_; }
  std::uint64_t epoch() const { return communicator_.epoch; }
  int communicator() const { return communicator_.handle; }
  const BackoffOptions& waiting() const { return waiting_; }
  Doorbell* own_bell() const { return world_->bell(world_->rank()); }

  /// Seals and sends a frame, unless the tap takes it away, and wakes its receiver.
  Status Send(MpiOperations& operations, OutgoingFrame out) const;

 private:
  MpiWorld* world_ = nullptr;
  MpiCommunicator communicator_;
  bool payload_checksums_ = false;
  FrameTap* tap_ = nullptr;
  BackoffOptions waiting_;
};

}  // namespace moe
