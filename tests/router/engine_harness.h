// A router with its expert workers in one process, for tests: wired as moe_serve wires them, each worker on a thread of
// its own over the in-process transport, faults by script where a test asks for them.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"
#include "experts/expert_views.h"
#include "metrics/metrics.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/dense_backend.h"
#include "model/parameter_count.h"
#include "model/routing_override.h"
#include "model/weight_types.h"
#include "model/weights.h"
#include "placement/placement.h"
#include "router/engine.h"
#include "router/expert_exchange.h"
#include "router/router.h"
#include "router/router_metrics.h"
#include "router/sequence.h"
#include "transport/fault_injection.h"
#include "transport/in_process.h"

namespace moe {

/// MOE_SOURCE_DIR / `relative`.
std::filesystem::path SourcePath(const std::string& relative);

enum class PlacementRule { kLinear, kRoundRobin };

struct HarnessOptions {
  std::string model = "tests/goldens/mixtral";  // below the source tree
  int workers = 1;
  bool embedded = false;  // the one worker is rank 0, as the router
  PlacementRule placement = PlacementRule::kLinear;
  int redundant_experts = 0;
  int threads = 1;  // of the router, and of each worker
  MicroBatchChoice::Options micro_batches;
  ExchangeType exchange_type = ExchangeType::kF32;
  std::chrono::milliseconds exchange_timeout{120'000};
  FaultScript faults;
  FrameTap* tap = nullptr;  // where there are no faults; outlives the harness
  /// Makes the ends of another transport, instead of the in-process one's.
  std::function<InProcessEnds(const TransportLimits& limits, int workers)> connect;
  /// The router's, where `connect` has not made it: once the workers serve.
  std::function<std::unique_ptr<Transport>()> connect_router;
  /// What comes of an expert that a worker has loaded for a migration; by a thread of that worker. Empty: just that.
  std::function<Result<MlpWeights>(int worker, int layer, int expert, Result<MlpWeights> loaded)> on_load;
  std::size_t max_sequences = 8;
  std::size_t max_step_tokens = 64;
  std::size_t prefill_chunk = 0;
  std::size_t kv_pages = 64;  // of kPageTokens positions, where a layer keeps all of them
  KvType kv_type = KvType::kF32;
  std::optional<WeightType> weight_type;  // absent: the narrowest that loses nothing of what is stored
  std::string routing = "gate";
  std::size_t max_queued = 1024;
  std::chrono::milliseconds drain_timeout{600'000};
  Migrator::Options migration = {.interval = std::chrono::milliseconds(0)};
  std::size_t cost_steps = 1024;
};

/// Counts what an output's listener is told; any thread may wait on it.
class OutputWatcher : public OutputListener {
 public:
  explicit OutputWatcher(const SequenceOutput& output) : output_(output) {}

  void OnOutput() override;

  void WaitForTokens(std::size_t count) const;
  void WaitFinished() const;
  int calls() const { return static_cast<int>(calls_.load()); }
  /// Times that OnOutput found the output finished: 1 for a sequence that ended exactly once.
  int ends() const { return ends_.load(); }

 private:
  const SequenceOutput& output_;
  std::atomic<std::uint32_t> calls_{0};
  std::atomic<int> ends_{0};
};

/// A sequence on its way, as its client sees it.
struct Client {
  std::shared_ptr<SequenceOutput> output;
  std::shared_ptr<OutputWatcher> watcher;
};

class EngineHarness {
 public:
  /// Loads everything; a model that cannot be loaded is a broken invariant here.
  explicit EngineHarness(HarnessOptions options = {});
  /// Drains a router that was started, then ends the workers.
  ~EngineHarness();
  EngineHarness(const EngineHarness&) = delete;
  EngineHarness& operator=(const EngineHarness&) = delete;

  const HarnessOptions& options() const { return options_; }
  const ModelConfig& config() const { return config_; }
  const ParameterCount& parameters() const { return parameters_; }
  const Placement& placement() const { return placement_; }
  KvCache& cache() { return backend_->cache(); }
  Engine& engine() { return *engine_; }
  Router& router() { return *router_; }
  RouterMetrics& metrics() { return *metrics_; }
  /// What a worker hosts just now.
  HostedExperts hosted(int worker) const;
  /// The value of a series of the router's metrics, written as it is exported: `moe_requests_total{outcome="failed"}`.
  double Metric(const std::string& series) const;

  /// A sequence and its client's side, not submitted yet.
  std::unique_ptr<Sequence> Make(SequenceRequest request, Client& client) const;
  /// Submits one batch; `clients` gets one entry a request, whatever comes of it.
  Status Submit(std::vector<SequenceRequest> requests, std::vector<Client>& clients);
  /// Submits one sequence that must be accepted.
  Client Submit(SequenceRequest request);

  /// Runs the router on a thread of its own until Stop, or until it fails.
  void Start();
  /// Drains, and waits for the router's end: what Run returned.
  Status Stop();
  /// What Run returns, on this thread, once everything submitted so far is done.
  Status Drain();

  /// All of `requests` as one batch through a new router, which ends.
  std::vector<Client> RunAll(std::vector<SequenceRequest> requests);

 private:
  struct WorkerSide;
  void StartWorkers();
  void MakeRouter();

  const HarnessOptions options_;
  ModelConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
  WeightTypes weight_types_;
  ParameterCount parameters_;
  Placement placement_;
  ExpertExchange::Options exchange_options_;
  FaultInjector injector_;
  ThreadPool pool_;
  MetricsRegistry registry_;

  std::vector<std::unique_ptr<WorkerSide>> workers_;
  std::unique_ptr<Transport> transport_;  // null for a model without experts
  std::shared_ptr<const RoutingOverride> routing_;
  std::unique_ptr<DenseBackend> backend_;
  std::optional<RouterMetrics> metrics_;
  std::optional<ExpertExchange> exchange_;
  std::optional<Engine> engine_;
  std::optional<Router> router_;
  std::thread thread_;
  Status served_;
};

/// A greedy continuation without stop tokens.
SequenceRequest Greedy(std::vector<std::uint32_t> prompt, std::uint32_t max_new_tokens);
SequenceRequest Scoring(std::vector<std::uint32_t> tokens, ScoreLogits logits);
/// The request where the model takes its tokens: an encoder–decoder's encoder reads them, and its decoder begins with
/// the start token.
SequenceRequest ForModel(const ModelConfig& config, SequenceRequest request);
/// `count` token ids below `vocab` that depend on `seed` alone.
std::vector<std::uint32_t> RandomTokens(std::uint64_t seed, std::size_t count, int vocab);

/// The published tokens, as many as there are.
std::vector<std::uint32_t> Tokens(const SequenceOutput& output);

/// Everything that came out of a sequence, times left out; floats are compared by their bits.
void ExpectSameBits(const SequenceOutput& actual, const SequenceOutput& expected);

}  // namespace moe
