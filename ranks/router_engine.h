// A rank as the router, as far as it computes: the dense part, the exchange with the workers, the engine over both.
// What asks for steps (a server's loop, a benchmark) is the program's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"
#include "model/dense_backend.h"
#include "model/dispatch_format.h"
#include "model/kv_cache.h"
#include "model/weights.h"
#include "ranks/rank_setup.h"
#include "router/engine.h"
#include "router/expert_exchange.h"
#include "router/remote_fleet.h"
#include "transport/transport.h"

namespace moe {

/// What an engine computes with.
struct LoadedWeights {
  DenseWeights dense;
  std::vector<WorkerDescription> workers;  // each has loaded its shard
};

/// Waits until every worker has loaded its experts.
Result<std::vector<WorkerDescription>> AwaitWorkers(const RankSetup& setup, Transport& transport);
/// Loads the dense part, then waits for the workers.
Result<LoadedWeights> LoadRouter(const RankSetup& setup, ThreadPool& pool, Transport& transport);

/// What each worker of a fleet is to host, and who has to be what.
std::vector<WorkerAssignment> AssignWorkers(const RankSetup& setup);
/// The same over a fleet, which this starts.
Result<LoadedWeights> LoadRouter(const RankSetup& setup, ThreadPool& pool, RemoteFleet& fleet);

class RouterEngine {
 public:
  struct Options {
    KvPlan kv;
    std::size_t load_window_steps = 1;
    std::chrono::milliseconds load_window_age{0};  // 0: no limit
    MicroBatchChoice::Observer on_micro_batches;   // may be empty; by the thread that steps
  };
  /// Everything given by reference, and `observer` if any, outlives the engine.
  RouterEngine(Options options, const RankSetup& setup, ThreadPool& pool, Transport& transport, LoadedWeights weights,
               ExchangeObserver* observer);

  Engine& engine() { return *engine_; }
  /// Null for a model without experts.
  ExpertExchange* exchange() { return exchange_ ? &*exchange_ : nullptr; }
  KvCache& cache() { return backend_->cache(); }
  /// What this rank computes with.
  const ThreadPool& pool() const { return pool_; }
  const std::vector<WorkerDescription>& workers() const { return workers_; }
  /// Of the dense part; bytes as held in memory.
  std::uint64_t dense_parameters() const { return dense_parameters_; }
  std::uint64_t dense_bytes() const { return dense_bytes_; }

 private:
  const ThreadPool& pool_;
  const std::vector<WorkerDescription> workers_;
  const std::uint64_t dense_parameters_;
  const std::uint64_t dense_bytes_;
  const std::unique_ptr<DenseBackend> backend_;
  std::optional<ExpertExchange> exchange_;  // none for a model without experts
  std::optional<Engine> engine_;
};

/// Tells the workers to end. The failure of `served`, if it is one: after that the workers may be out of reach.
Status EndWorkers(Transport& transport, Status served);

}  // namespace moe
