// The bare gRPC stream of the same bytes: one bidirectional stream to every worker, a message a request and one a
// reply, as raw byte buffers, with gRPC's own defaults. No header, no checks, no deadline; each end waits on a
// completion queue.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/transport/exchange_path.h"

namespace moe {

/// A worker's half is a server of its own, which accepts one router.
class RawGrpcWorker : public WorkerPath {
 public:
  /// What it listens on, with the port really bound.
  virtual const std::string& address() const = 0;
  /// Waits for the router, which connects only while its workers do. Answer does so itself.
  virtual Status Accept() = 0;
};

/// `listen` is HOST:PORT, port 0 for any free one, or a local socket. UNAVAILABLE when it cannot be bound.
Result<std::unique_ptr<RawGrpcWorker>> StartRawGrpcWorker(const std::string& listen, const ExchangeBytes& largest);

/// The router's half, of exchanges of at most `largest`; worker w listens on addresses[w].
Result<std::unique_ptr<RouterPath>> ConnectRawGrpcRouter(const std::vector<std::string>& addresses,
                                                         const ExchangeBytes& largest);

}  // namespace moe
