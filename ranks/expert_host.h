// A rank as an expert worker: its shard, what computes it, and the loop that answers a router.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "core/ids.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "experts/expert_backend.h"
#include "experts/expert_views.h"
#include "experts/worker.h"
#include "model/dispatch_format.h"
#include "ranks/rank_setup.h"
#include "transport/transport.h"

namespace moe {

/// A worker that has loaded its shard. `setup` and `pool` outlive it.
class ExpertHost {
 public:
  /// For every router that comes.
  static Result<std::unique_ptr<ExpertHost>> Load(const RankSetup& setup, WorkerId worker, ThreadPool& pool);
  /// The same of another placement than the setup's, TakeFirstShard, for no router yet.
  static Result<std::unique_ptr<ExpertHost>> Load(const RankSetup& setup, const Placement& placement, WorkerId worker,
                                                  ThreadPool& pool);

  ExpertViews& views() { return views_; }
  ExpertViews::Shard TakeFirstShard() { return std::move(first_shard_); }
  ExpertBackend& backend() { return *backend_; }
  const WorkerTotals& totals() const { return totals_; }
  /// Before Run: where this rank's services are.
  void SetAddresses(const std::string& metrics, const std::string& control);
  /// What DescribeWorkers is told. By any thread.
  WorkerDescription description() const { return WithHosted(description_, views_.hosted()); }
  /// Before Run: told of each change of what is hosted, by the loop.
  void OnHosted(std::function<void(const HostedExperts&)> on_hosted) { on_hosted_ = std::move(on_hosted); }

  /// What answers dispatches, for a loop of one's own; it says of itself what `describe` gives. `totals` outlives it,
  /// as this does.
  std::unique_ptr<Worker> MakeWorker(WorkerTotals& totals, Worker::Describe describe, Worker::Observer observer);

  /// Serves `endpoint` until its router says shutdown; `observer` is told of every dispatch.
  Status Run(WorkerEndpoint& endpoint, Worker::Observer observer = {});

 private:
  ExpertHost(const RankSetup& setup, ThreadPool& pool, ExpertViews::Shard shard,
             std::unique_ptr<ExpertBackend> backend);

  ThreadPool& pool_;
  const WorkerOptions options_;
  std::function<void(const HostedExperts&)> on_hosted_;
  ExpertViews::Shard first_shard_;
  const std::unique_ptr<ExpertBackend> backend_;
  ExpertViews views_;
  WorkerDescription description_;
  WorkerTotals totals_;
};

/// Loads and serves, with nothing beside it. The failure to load is told to the router, which reports it, and returned.
Status ServeExperts(const RankSetup& setup, WorkerId worker, ThreadPool& pool, WorkerEndpoint& endpoint);

}  // namespace moe
