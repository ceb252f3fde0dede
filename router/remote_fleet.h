// The workers of a router that may be lost and come back: who is there, a transport to those, and the way back for the
// others.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/status.h"
#include "core/worker_mask.h"
#include "model/dispatch_format.h"
#include "router/attach.h"
#include "router/expert_exchange.h"
#include "router/step_recovery.h"
#include "router/worker_links.h"

namespace moe {

/// A lost worker is looked for by a thread of its own, over links of its own, in growing intervals. Once it has its
/// shard again, the engine thread makes a new transport that has it, between two steps. At start all workers are lost.
class RemoteFleet final : public StepRecovery {
 public:
  struct Options {
    std::chrono::milliseconds exchange_timeout{0};
    std::chrono::milliseconds load_timeout{0};
    std::string host = {};  // that this router runs on, for WorkersOn; empty: not known
    /// Between two attempts to reach a lost worker: doubled from the first to the last, each by chance up to a half
    /// shorter, so that many routers do not come at once.
    std::chrono::milliseconds first_pause{50};
    std::chrono::milliseconds last_pause{1'000};
    /// Between two looks at the connections, for a router that has no step to notice it by.
    std::chrono::milliseconds watch_interval{500};
    /// A worker cannot be had, for a reason other than the one before; by any thread. May be empty.
    std::function<void(const Status&)> on_obstacle = {};
  };
  struct WorkerState {
    bool up = false;
    WorkerDescription description;  // what it said last
    Status why;                     // it is not up
  };
  struct Observers {
    /// A worker was lost, or is there again. By the engine thread, at start by AwaitWorkers' caller.
    std::function<void(WorkerId, const WorkerState&)> on_worker;
    /// BeforeStep has something to do. By any thread.
    std::function<void()> on_news;
  };

  struct Links {
    MakeWorkerLinks steps;   // as wide as a step's exchanges
    MakeWorkerLinks search;  // wide enough for an assignment and a description
  };

  /// `assignments`: by worker.
  RemoteFleet(Options options, Links links, std::vector<WorkerAssignment> assignments);
  ~RemoteFleet() override;
  RemoteFleet(const RemoteFleet&) = delete;
  RemoteFleet& operator=(const RemoteFleet&) = delete;

  /// Begins to look for all workers, and has them load.
  Status Start();
  /// Waits until all are there and makes the transport to them. The refusal of the lowest rank that will not change its
  /// mind, or after the load timeout what keeps the lowest rank that is missing.
  Status AwaitWorkers();

  // By the engine thread.

  /// To all workers; while the fleet is not bound to an exchange.
  Transport& transport() { return *transport_; }
  /// From here on, steps are recovered: `exchange` goes over this fleet's transport.
  void Bind(ExpertExchange& exchange, Observers observers);
  /// The exchange goes; it is not bound to any transport any more.
  void Unbind();
  void BeforeStep() override;
  Status Recover(const Status& failure) override;
  int max_retries() const override { return static_cast<int>(members_.size()); }
  void OnPlacement(const Placement& placement) override;
  void OnHosted(std::span<const WorkerDescription> workers) override;

  // By any thread.

  std::vector<WorkerState> Workers() const;
  std::string Peer(WorkerId worker) const { return peers_[worker.index()]; }
  /// Looks for nobody any more.
  void Stop();

 private:
  enum class Presence : std::uint8_t { kLost, kReady, kUp };  // ascending
  struct Member {
    Presence presence = Presence::kLost;
    WorkerDescription description;
    Status why = Unavailable("it has not been reached yet");
    std::thread thread;  // looks for it, while it is lost
  };

  Result<WorkerDescription> Attach(std::size_t worker) const;
  void Search(std::size_t worker);
  void Watch();
  bool stopping() const;
  void Lose(std::size_t worker, Status why);
  WorkerMask AtLeast(Presence presence) const;
  /// A new transport to those that are up and ready; those that cannot be had are lost.
  void Connect();
  Status TryConnect(const WorkerMask& attached, std::vector<LostWorker>& lost);

  const Options options_;
  const Links make_links_;
  std::vector<std::string> peers_;
  std::unique_ptr<WorkerLinks> links_;    // the engine thread's
  std::unique_ptr<Transport> transport_;  // to those that are up; null when none is
  ExpertExchange* exchange_ = nullptr;
  Observers observers_;
  WorkerMask reported_;  // up, as observers know

  std::atomic<bool> news_{false};  // a member is ready, or looks lost
  mutable std::mutex mutex_;       // of what follows
  std::condition_variable changed_;
  std::vector<WorkerAssignment> assignments_;  // changed by the engine thread alone
  std::vector<Member> members_;
  std::function<void()> on_news_;
  std::thread watcher_;
  bool stopping_ = false;
};

}  // namespace moe
