// A rank as an expert worker: its shard, what computes it, and the loop that answers a router.
#pragma once

#include <cstddef>
#include <memory>

#include "core/ids.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "experts/expert_backend.h"
#include "experts/expert_shard.h"
#include "experts/worker.h"
#include "model/dispatch_format.h"
#include "ranks/rank_setup.h"
#include "transport/transport.h"

namespace moe {

/// A worker that has loaded its shard. `setup` and `pool` outlive it.
class ExpertHost {
 public:
  static Result<std::unique_ptr<ExpertHost>> Load(const RankSetup& setup, WorkerId worker, ThreadPool& pool) {
    return Load(setup, setup.placement, worker, pool);
  }
  /// The same of another placement than the setup's.
  static Result<std::unique_ptr<ExpertHost>> Load(const RankSetup& setup, const Placement& placement, WorkerId worker,
                                                  ThreadPool& pool);

  const ExpertShard& shard() const { return shard_; }
  const WorkerTotals& totals() const { return totals_; }
  /// What DescribeWorkers is told; addresses may be added before Run.
  WorkerDescription& description() { return description_; }

  /// What answers dispatches, for a loop of one's own. `totals` outlives it, as this does.
  std::unique_ptr<Worker> MakeWorker(WorkerTotals& totals, Worker::Observer observer);

  /// Serves `endpoint` until its router says shutdown; `observer` is told of every dispatch.
  Status Run(WorkerEndpoint& endpoint, Worker::Observer observer = {});

 private:
  ExpertHost(const RankSetup& setup, ThreadPool& pool, ExpertShard shard, std::unique_ptr<ExpertBackend> backend);

  ThreadPool& pool_;
  const std::size_t hidden_;
  const std::size_t max_pairs_;  // of one dispatch
  const ExpertShard shard_;
  const std::unique_ptr<ExpertBackend> backend_;
  WorkerDescription description_;
  WorkerTotals totals_;
};

/// Loads and serves, with nothing beside it. The failure to load is told to the router, which reports it, and returned.
Status ServeExperts(const RankSetup& setup, WorkerId worker, ThreadPool& pool, WorkerEndpoint& endpoint);

}  // namespace moe
