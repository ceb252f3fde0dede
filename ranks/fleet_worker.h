// A worker that routers tell what to host: it knows its model, and loads its shard when the first router attaches.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"
#include "experts/worker.h"
#include "model/dispatch_format.h"
#include "ranks/expert_host.h"
#include "ranks/rank_setup.h"
#include "transport/transport.h"

namespace moe {

/// One loop answers all routers. A shard is loaded on a thread of its own, so that the worker answers meanwhile. A
/// router that asks for what is hosted, or being loaded, gets it. One that asks for something else while others are
/// attached that want this is refused if it stands where it started and so do they: then they were told different
/// things. Where one of them has moved experts since, both get what they want, and what both want is there once. With
/// nobody else attached it is loaded instead.
class FleetWorker {
 public:
  struct Observers {
    Worker::Observer on_dispatch;
    /// By the loop, after a shard has been loaded for a router that came.
    std::function<void(const WorkerDescription&)> on_loaded;
    /// By the loop, after experts came or went.
    std::function<void(const WorkerDescription&)> on_hosted;
  };

  /// `setup` and `pool` outlive this. `description`: what DescribeRank says, with addresses.
  FleetWorker(const RankSetup& setup, ThreadPool& pool, WorkerDescription description, Observers observers);
  /// Waits for a load under way.
  ~FleetWorker();
  FleetWorker(const FleetWorker&) = delete;
  FleetWorker& operator=(const FleetWorker&) = delete;

  /// Where its services are; before Run.
  void SetControlAddress(const std::string& address) { description_.control_address = address; }

  /// Serves until Stop, or until no router can be attached any more (both OK), or the transport fails.
  Status Run(WorkerEndpoint& endpoint);
  /// From any thread: Run answers what has arrived and returns.
  void Stop() { stop_ = true; }

  // By any thread.

  /// With the figures of the shard, if there is one.
  WorkerDescription description() const;
  /// What is hosted, as it was asked for last; none while there is nothing.
  std::optional<WorkerAssignment> assignment() const;
  const WorkerTotals& totals() const { return totals_; }

 private:
  struct Loading {
    WorkerAssignment assignment;
    std::unique_ptr<ShardLoading> beside;  // what others use; else all of it, by the thread:
    std::atomic<bool> loaded{false};
    Result<std::unique_ptr<ExpertHost>> host = Internal("nothing has been loaded");  // once loaded
    std::thread thread;
    std::vector<IncomingRequest> waiting;  // to be answered with the outcome

    bool done() const { return beside ? beside->done() : loaded.load(); }
  };

  /// False when the request stays open.
  Result<bool> Answer(WorkerEndpoint& endpoint, const IncomingRequest& request);
  /// Nothing when the request stays open.
  std::optional<std::size_t> Assign(WorkerEndpoint& endpoint, const IncomingRequest& request,
                                    std::span<std::byte> reply);
  Status Check(const WorkerAssignment& wanted) const;
  /// INVALID_ARGUMENT or UNAVAILABLE when this worker may not load `wanted`, which it has not, just now.
  Status MayHost(const WorkerEndpoint& endpoint, int router, const WorkerAssignment& wanted) const;
  /// Of those that hold anything here.
  bool OthersAttached(const WorkerEndpoint& endpoint, int router) const;
  Status BeginLoad(const WorkerEndpoint& endpoint, int router, WorkerAssignment assignment);
  Status BeginLoadBeside(const WorkerEndpoint& endpoint, WorkerAssignment assignment);
  void LoadInstead(WorkerAssignment assignment);
  Status FinishLoad(WorkerEndpoint& endpoint);
  /// What there is for the routers of `loaded`, which waited for it.
  Result<ExpertViews::Shard> TakeLoaded(Loading& loaded);
  void Host(int router, const WorkerAssignment& assignment, ExpertViews::Shard shard);
  void ShowHosted(const HostedExperts& hosted);

  const RankSetup& setup_;
  ThreadPool& pool_;
  const Observers observers_;
  WorkerTotals totals_;
  std::atomic<bool> stop_{false};
  std::unique_ptr<Loading> loading_;
  std::unique_ptr<ExpertHost> host_;
  std::unique_ptr<Worker> worker_;  // of host_

  mutable std::mutex mutex_;  // of what follows
  WorkerDescription description_;
  std::optional<WorkerAssignment> hosted_;  // with the layers of the last generation
};

}  // namespace moe
