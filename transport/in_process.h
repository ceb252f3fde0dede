// Routers and workers as threads of one process. Nothing is copied: a worker reads the request where the router wrote
// it, and the router reads the reply where the worker wrote it. Frames carry real headers and are really checked.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "core/status.h"
#include "transport/frame_tap.h"
#include "transport/transport.h"

namespace moe {

struct InProcessOptions {
  TransportLimits limits;
  int num_routers = 1;
  int num_workers = 1;
  bool embedded = false;              // worker 0 is rank 0: router and experts are one process
  std::chrono::microseconds spin{0};  // before parking; worth it only where every end has a core of its own
  FrameTap* tap = nullptr;            // outlives all ends
};

/// Each end may be given to a thread of its own and destroyed at any time, in any order.
struct InProcessEnds {
  std::vector<std::unique_ptr<Transport>> routers;
  std::vector<std::unique_ptr<WorkerEndpoint>> workers;
};

/// All ends at once; none can be attached later. When the last router is destroyed the workers' Receive ends with
/// UNAVAILABLE; when a worker is destroyed, exchanges with it do, naming its rank.
Result<InProcessEnds> MakeInProcess(const InProcessOptions& options);

}  // namespace moe
