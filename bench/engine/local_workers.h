// Expert workers as threads of this process, joined by the in-process transport.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"
#include "ranks/rank_setup.h"
#include "transport/transport.h"

namespace moe {

/// What PrepareRank gives for a process that is the router and so many workers (at least 1). Where there are several,
/// each has threads of its own, and they and the router's have a share of the processors each unless options.threads
/// says how many.
Result<RankSetup> PrepareLocalWorkers(RankOptions options, int workers);

class LocalWorkers {
 public:
  /// As many as `setup`, of PrepareLocalWorkers, has; each loads its shard and serves. A single one computes with
  /// `pool`, as the embedded form does. Both outlive this. A worker that cannot load tells the router.
  static Result<std::unique_ptr<LocalWorkers>> Start(const RankSetup& setup, ThreadPool& pool);
  /// Ends them.
  ~LocalWorkers();
  LocalWorkers(const LocalWorkers&) = delete;
  LocalWorkers& operator=(const LocalWorkers&) = delete;

  /// The router's end.
  Transport& transport() { return *transport_; }

 private:
  LocalWorkers() = default;

  std::unique_ptr<Transport> transport_;
  std::vector<std::unique_ptr<WorkerEndpoint>> endpoints_;
  std::vector<std::jthread> threads_;  // by worker
};

}  // namespace moe
