// A router's ways to workers that may go and come back: how the transports to them are made.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "core/ids.h"
#include "core/status.h"
#include "core/worker_mask.h"
#include "transport/transport.h"

namespace moe {

/// Used by one thread at a time, but for `connected`; outlives the transports made with it, of which there is one at a
/// time.
class WorkerLinks {
 public:
  virtual ~WorkerLinks() = default;

  virtual int num_workers() const = 0;
  /// "rank 3 (10.0.0.7:5005)", for messages.
  virtual std::string Peer(WorkerId worker) const = 0;

  /// A transport of a new epoch. It counts all workers; only those of `attached` take part, and all of those have been
  /// reached.
  virtual Result<std::unique_ptr<Transport>> Connect(const WorkerMask& attached, std::chrono::milliseconds timeout) = 0;

  /// Why the last transport, or the last attempt to make one, has lost this worker; OK when it has not.
  virtual Status failure(WorkerId worker) const = 0;

  /// Whether the worker can be reached just now. By any thread.
  virtual bool connected(WorkerId worker) const = 0;
};

/// Links of one's own, as for another router.
using MakeWorkerLinks = std::function<Result<std::unique_ptr<WorkerLinks>>()>;

}  // namespace moe
