// A rank of moe_serve as the router.
#pragma once

#include <functional>

#include "apps/serve_endpoints.h"
#include "apps/serve_options.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "router/remote_fleet.h"
#include "transport/transport.h"

namespace moe {

/// Loads the dense part, waits for the workers, serves until drained, tells the workers to end. Runs on the thread that
/// owns `transport`. The failure says why serving did not begin or did not end well.
Status RunRouter(const ServeSetup& setup, ThreadPool& pool, RankMetrics& metrics, Transport& transport);

/// The same over a fleet, whose workers go on when this router ends.
Status RunFleetRouter(const ServeSetup& setup, ThreadPool& pool, RankMetrics& metrics, RemoteFleet& fleet);

}  // namespace moe
