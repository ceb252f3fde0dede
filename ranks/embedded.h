// The embedded form of a job: one process whose only worker is a thread of it, joined by the in-process transport.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "core/status.h"
#include "transport/transport.h"

namespace moe {

class EmbeddedWorker {
 public:
  /// Runs `serve` as worker 0 on a thread of its own. What it needs outlives this.
  static Result<std::unique_ptr<EmbeddedWorker>> Start(const TransportLimits& limits,
                                                       std::function<void(WorkerEndpoint&)> serve);
  /// Ends a worker that has not been told to end.
  ~EmbeddedWorker();
  EmbeddedWorker(const EmbeddedWorker&) = delete;
  EmbeddedWorker& operator=(const EmbeddedWorker&) = delete;

  /// The router's end.
  Transport& transport() { return *transport_; }

 private:
  EmbeddedWorker() = default;

  std::unique_ptr<Transport> transport_;
  std::unique_ptr<WorkerEndpoint> endpoint_;
  std::thread thread_;
};

}  // namespace moe
