// A router's links to the workers of a fleet over gRPC.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "router/worker_links.h"
#include "rpc/tls.h"
#include "transport/transport.h"

namespace moe {

struct FleetLinksOptions {
  std::vector<std::string> workers;  // HOST:PORT; the first is rank 1
  TransportLimits limits;
  TlsFiles tls;
  bool shared_memory = true;  // where all workers are on this machine
  /// Of each new connection to the attached workers: whether frames lie in such memory.
  std::function<void(bool shared_memory)> on_connected;
};

/// With connections of their own. INVALID_ARGUMENT naming an address or a file that cannot be used.
Result<std::unique_ptr<WorkerLinks>> MakeGrpcLinks(const FleetLinksOptions& options);

}  // namespace moe
