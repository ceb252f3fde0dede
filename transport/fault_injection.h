// Faults by script, for tests: late, reordered, lost and mangled frames, and a peer that falls silent.
//
// Two places, one script. As a FrameTap it loses and mangles frames inside a transport, so that the transport's own
// checks and deadlines are what reports them. As a Transport around any other one it holds finished exchanges back, so
// that they end late and out of order. Everything depends on (kind, worker, exchange) alone: a run can be repeated.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "transport/frame_tap.h"
#include "transport/transport.h"

namespace moe {

enum class FaultKind : std::uint8_t {
  kDropRequest,
  kDropReply,
  kDeadPeer,              // every reply from this exchange on is lost
  kCorruptRequestLength,  // the header says one byte more than there is, with a right checksum
  kCorruptReplyLength,
  kOversizeReplyLength,  // the header says more than any limit
  kFlipReplyHeaderBit,   // without mending the checksum
  kWrongReplyMagic,
  kWrongReplyVersion,
  kCorruptRequestPayload,  // one bit, without mending anything: only a checksum of the payload can tell
  kCorruptReplyPayload,
  kStaleReply,  // the sequence of the exchange before: dropped on arrival
  kDelayReply,  // held back for `polls` Polls and `duration`, both
};

struct Fault {
  FaultKind kind = FaultKind::kDropReply;
  WorkerId worker;
  std::uint64_t exchange = 0;  // which Start of the transport, from 0
  int polls = 0;
  std::chrono::nanoseconds duration{0};
};

using FaultScript = std::vector<Fault>;

/// A kDelayReply of 0 to max_polls Polls for each of `num_workers` workers in each of the first `num_exchanges`
/// exchanges, so that several in flight end in an order that depends on `seed` alone.
FaultScript RandomDelays(std::uint64_t seed, int num_workers, std::uint64_t num_exchanges, int max_polls);

/// Give it to a transport's options as its tap. Immutable, hence safe from all threads.
class FaultInjector final : public FrameTap {
 public:
  explicit FaultInjector(FaultScript script) : script_(std::move(script)) {}

  bool Pass(FrameHeader& header, std::span<std::byte> payload, WorkerId worker) override;

  /// The delay of a worker's reply in an exchange; polls 0 and duration 0 when the script has none.
  Fault Delay(WorkerId worker, std::uint64_t exchange) const;

 private:
  const FaultScript script_;
};

/// `inner` with the injector's delays. A delay that outlasts Wait's deadline is DEADLINE_EXCEEDED naming the rank.
/// `injector` outlives the result.
std::unique_ptr<Transport> MakeFaultyTransport(std::unique_ptr<Transport> inner, const FaultInjector& injector);

}  // namespace moe
