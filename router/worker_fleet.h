// The workers of one router at start and end: who they are, whether they have loaded, and that they may go.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/clock.h"
#include "core/status.h"
#include "core/worker_mask.h"
#include "model/dispatch_format.h"
#include "transport/transport.h"

namespace moe {

/// What every worker must agree with the router on.
struct FleetExpectation {
  std::string fingerprint;  // of the checkpoint
  std::string weight_type;
};

/// INVALID_ARGUMENT naming what differs.
Status CheckWorker(const WorkerDescription& worker, const FleetExpectation& expected);

/// Asks every worker who it is and waits until all have loaded. The failure of the lowest rank that has one, with
/// "rank R: " before it; or the difference from what is expected, named. Kernel targets may differ between workers:
/// every weight type of this version gives the same bits on all of them.
Result<std::vector<WorkerDescription>> DescribeWorkers(Transport& transport, const FleetExpectation& expected,
                                                       Deadline deadline);

/// Those that announce `host`, as the router's own machine is called: rows to them cross no network. None when it is
/// empty, which is not known.
WorkerMask WorkersOn(std::string_view host, std::span<const WorkerDescription> workers);

/// Tells every worker to end and waits for their answers.
Status ShutdownWorkers(Transport& transport, Deadline deadline);

}  // namespace moe
