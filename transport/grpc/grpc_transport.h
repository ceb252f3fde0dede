// The router's end of the data plane over gRPC: one bidirectional stream to each attached worker, frames as raw bytes.
// Where every attached worker runs on the router's machine, as the same user, frames lie in memory that they share, and
// the streams tell who comes and goes.
//
// All of gRPC's completions are handled on the thread that calls Poll and Wait; no other thread of ours is involved.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "transport/frame_tap.h"
#include "transport/grpc/grpc_channels.h"
#include "transport/transport.h"

namespace moe {

struct GrpcTransportOptions {
  /// Per worker, 0 to leave it out: it is known to be down. Start with bytes for such a worker is UNAVAILABLE, names
  /// its rank and is not terminal: nothing has been sent. Empty: all are attached.
  std::vector<std::uint8_t> attached;
  std::chrono::milliseconds connect_timeout{10'000};  // to connect to, and be accepted by, all attached workers
  bool shared_memory = true;                          // where it can be had
  FrameTap* tap = nullptr;                            // outlives the transport
};

/// A transport of a new epoch; `channels` outlives it. One transport at a time on the same channels: opening a new one
/// makes the workers drop what the last one left. Returns when every attached worker has accepted. Errors name the rank
/// and address, and the failure is also put down at channels.failure(): UNAVAILABLE for a worker that cannot be
/// reached, DEADLINE_EXCEEDED for one that does not answer, else the refusal with the worker's own sentence
/// (INVALID_ARGUMENT: another protocol, or limits over the worker's; RESOURCE_EXHAUSTED: too many routers).
Result<std::unique_ptr<Transport>> MakeGrpcTransport(GrpcChannels& channels, const GrpcTransportOptions& options);

}  // namespace moe
