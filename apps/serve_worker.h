// A rank of moe_serve as an expert worker.
#pragma once

#include <string_view>

#include "apps/serve_endpoints.h"
#include "apps/serve_options.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "transport/transport.h"

namespace moe {

/// What a worker needs of the process it runs in.
struct WorkerHost {
  const ServeSetup& setup;
  WorkerId worker;
  ThreadPool& pool;
  RankMetrics* metrics = nullptr;  // null when metrics could not be started; then `failure` says why
  Status failure;                  // of this rank's start so far: the router is told
  std::string_view transport;
};

/// Loads the shard and serves `endpoint` until the router ends it. The failure to load is told to the router, which
/// reports it, and returned.
Status RunWorker(WorkerHost host, WorkerEndpoint& endpoint);

}  // namespace moe
