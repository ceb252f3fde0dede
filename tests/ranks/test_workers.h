// Workers of a fleet as threads of one process, which die, fall silent and start again as a test says, and a router's
// links to them over the in-process transport.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/thread_pool.h"
#include "ranks/fleet_worker.h"
#include "ranks/rank_setup.h"
#include "router/worker_links.h"
#include "transport/transport.h"

namespace moe {

/// One endpoint over those of all routers that have connected so far.
class Switchboard final : public WorkerEndpoint {
 public:
  explicit Switchboard(const TransportLimits& limits) : limits_(limits) {}

  /// From the thread that connects.
  void Plug(std::unique_ptr<WorkerEndpoint> end);
  /// The connections break and Receive ends, now or before the dispatch with this number, from 0, is seen.
  void Die() { dead_ = true; }
  void DieAtDispatch(std::uint64_t number) { die_at_ = number; }
  /// Answers nothing more while it lasts, now or from the dispatch with this number on.
  void BeSilent(bool silent) { silent_ = silent; }
  void BeSilentAtDispatch(std::uint64_t number) { silent_at_ = number; }
  bool dead() const { return dead_; }
  std::uint64_t dispatches() const { return dispatches_; }

  const TransportLimits& limits() const override { return limits_; }
  bool attached(int router) const override;
  Result<std::optional<IncomingRequest>> Receive(Deadline deadline) override;
  std::span<std::byte> reply_buffer(const IncomingRequest& request) override;
  Status Reply(const IncomingRequest& request, std::size_t bytes) override;

 private:
  WorkerEndpoint& end(int router) const;
  /// False: the request is not to be seen.
  bool Admit(const IncomingRequest& request);

  static constexpr std::uint64_t kNever = ~std::uint64_t{0};
  const TransportLimits limits_;
  std::atomic<bool> dead_{false};
  std::atomic<bool> silent_{false};
  std::atomic<std::uint64_t> die_at_{kNever};
  std::atomic<std::uint64_t> silent_at_{kNever};
  std::atomic<std::uint64_t> dispatches_{0};
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<WorkerEndpoint>> ends_;  // by router
  std::size_t next_ = 0;
};

/// One life of a worker.
class TestWorker {
 public:
  explicit TestWorker(const RankOptions& options);
  /// Kills it if it lives.
  ~TestWorker();

  Switchboard& board() { return board_; }
  FleetWorker& worker() { return worker_; }
  /// As SIGTERM would; returns when it has ended.
  void Terminate();

 private:
  const RankSetup setup_;
  ThreadPool pool_{1};
  FleetWorker worker_;
  Switchboard board_;
  std::thread thread_;
};

/// Workers by number; any may be absent.
class TestWorkers {
 public:
  TestWorkers(int workers, RankOptions options);

  int size() const { return static_cast<int>(workers_.size()); }
  TestWorker& worker(int w) { return *workers_[static_cast<std::size_t>(w)]; }
  /// A new process in this place; the one before, if any, is killed.
  void Start(int w) { Start(w, options_); }
  void Start(int w, const RankOptions& options);
  void Kill(int w);

  /// A router's links to all of them; this outlives it.
  std::unique_ptr<WorkerLinks> Links(const TransportLimits& limits);

 private:
  friend class TestLinks;
  const RankOptions options_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<TestWorker>> workers_;
};

}  // namespace moe
