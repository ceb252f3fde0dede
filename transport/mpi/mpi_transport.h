// The data plane over MPI: point-to-point messages on a communicator of its own, one message a frame.
//
// Receives of the largest size are posted before anything is sent that they answer. All calls are non-blocking, on the
// one thread of the MpiWorld. Tags separate exchange slots.
#pragma once

#include <memory>

#include "transport/backoff.h"
#include "transport/frame_tap.h"
#include "transport/mpi/mpi_world.h"
#include "transport/transport.h"

namespace moe {

struct MpiTransportOptions {
  TransportLimits limits;                   // the same on every rank
  FrameTap* tap = nullptr;                  // outlives the end
  const BackoffOptions* waiting = nullptr;  // instead of the world's choice
};

/// The router's end; `world` outlives it. Collective: rank 0 calls this while every other rank calls MakeMpiEndpoint.
/// INVALID_ARGUMENT on all ranks when there is but one, when a frame would not fit an MPI message, or when the ranks'
/// limits differ.
Result<std::unique_ptr<Transport>> MakeMpiTransport(MpiWorld& world, const MpiTransportOptions& options);

/// The worker's end on ranks 1, 2, …: worker `rank − 1`.
Result<std::unique_ptr<WorkerEndpoint>> MakeMpiEndpoint(MpiWorld& world, const MpiTransportOptions& options);

}  // namespace moe
