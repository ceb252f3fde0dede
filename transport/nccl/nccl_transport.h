// The data plane over NCCL: between the router and each worker a lane each way (nccl_lane.h), frames in messages of a
// fixed first part and, if need be, an exact second one (nccl_message.h).
//
// Payloads are host memory on both sides for now, because the router's dense part and the contract of WorkerEndpoint
// are: they are staged through pinned buffers and device memory (docs/gpu.md says what device payloads would change).
// Every rank, the router too, needs a device of its own: NCCL refuses two ranks on one. All calls on one thread an end.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "transport/backoff.h"
#include "transport/frame_tap.h"
#include "transport/nccl/nccl_api.h"
#include "transport/transport.h"

namespace moe {

/// Payload that a message's fixed part holds, unless the limits are smaller. A second part costs another launch and a
/// look by the host on either side, together about 10 µs, in which PCIe 4.0 moves 250 KB; padding costs its bytes. Half
/// of that, because most messages of a decode step are much smaller than the largest.
inline constexpr std::size_t kNcclSmallBytes = std::size_t{128} << 10;

struct NcclTransportOptions {
  TransportLimits limits;  // the same on every rank, as small_bytes
  std::size_t small_bytes = kNcclSmallBytes;
  int rank = 0;       // of this process in the job
  int num_ranks = 0;  // the router is rank 0, worker w is rank w + 1
  int device = 0;     // that DeviceApi::SetDevice takes
  /// Gives rank 0's bytes to everyone; collective, called once by each rank. MpiWorld::Broadcast, for one.
  std::function<Result<std::string>(const std::string& bytes)> share;
  std::chrono::milliseconds connect_timeout{60'000};
  BackoffOptions waiting;
  FrameTap* tap = nullptr;  // outlives the end
};

/// The router's end, on rank 0, while every other rank calls MakeNcclEndpoint. `nccl` and `device` outlive it.
/// INVALID_ARGUMENT, at both ends, when a worker's limits differ; DEADLINE_EXCEEDED naming the ranks that did not come.
Result<std::unique_ptr<Transport>> MakeNcclTransport(NcclApi& nccl, DeviceApi& device,
                                                     const NcclTransportOptions& options);

/// The worker's end on ranks 1, 2, …
Result<std::unique_ptr<WorkerEndpoint>> MakeNcclEndpoint(NcclApi& nccl, DeviceApi& device,
                                                         const NcclTransportOptions& options);

}  // namespace moe
