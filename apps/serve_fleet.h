// moe_serve router and moe_serve worker: the roles as processes of their own, joined by gRPC. No MPI runs in them.
#pragma once

#include "apps/serve_options.h"
#include "core/status.h"

namespace moe {

/// Serves until SIGTERM. `setup`: of PrepareRank for rank 0, or of PrepareFleetWorker.
Status ServeAsRouter(const ServeSetup& setup);
Status ServeAsWorker(const ServeSetup& setup);

/// What RankOptions of a router or a worker make; bad usage is INVALID_ARGUMENT.
Result<ServeSetup> PrepareFleet(const ServeOptions& options);

}  // namespace moe
