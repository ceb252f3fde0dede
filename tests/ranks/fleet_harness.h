// A router over workers that may be lost and come back, in one process.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "metrics/metrics.h"
#include "ranks/rank_setup.h"
#include "ranks/router_engine.h"
#include "router/remote_fleet.h"
#include "router/router.h"
#include "router/router_metrics.h"
#include "tests/ranks/test_workers.h"
#include "tests/router/engine_harness.h"

namespace moe {

struct FleetOptions {
  std::string model = "tests/goldens/mixtral";
  int workers = 3;
  int redundant_experts = 0;
  int micro_batches = 1;
  std::chrono::milliseconds exchange_timeout{60'000};
  std::size_t max_sequences = 8;
  std::size_t max_step_tokens = 64;
  std::size_t prefill_chunk = 0;
  Migrator::Options migration = {.interval = std::chrono::milliseconds(0)};

  RankOptions rank_options() const;
};

class FleetHarness {
 public:
  /// Starts `workers`, unless they are given, and a router over them; neither may fail.
  explicit FleetHarness(FleetOptions options, TestWorkers* workers = nullptr);
  ~FleetHarness();
  FleetHarness(const FleetHarness&) = delete;
  FleetHarness& operator=(const FleetHarness&) = delete;

  TestWorkers& workers() { return *workers_; }
  const ModelConfig& config() const { return setup_.config; }
  const Placement& placement() const { return setup_.placement; }
  Router& router() { return *router_; }
  RemoteFleet& fleet() { return *fleet_; }
  Engine& engine() { return engine_->engine(); }
  KvCache& cache() { return engine_->cache(); }
  double Metric(const std::string& series) const;
  std::string MetricsText() const { return registry_.Text(); }

  /// Runs the router on a thread of its own.
  void Start();
  /// Drains it and waits for its end.
  Status Stop();

  std::vector<Client> Submit(const std::vector<SequenceRequest>& requests);
  /// Submits, and waits until all have ended.
  std::vector<Client> Finish(const std::vector<SequenceRequest>& requests);
  /// Until the router has so many workers.
  void WaitForWorkers(int up);
  /// Kills worker `w`, dead or alive, while all others are up, and starts it again; returns when the router has noticed
  /// both. One that lives until it is killed would count as up until then.
  void Replace(int w);

 private:
  const FleetOptions options_;
  std::unique_ptr<TestWorkers> own_workers_;
  TestWorkers* const workers_;
  RankSetup setup_;
  ThreadPool pool_{1};
  MetricsRegistry registry_;
  std::unique_ptr<RemoteFleet> fleet_;
  std::optional<RouterMetrics> metrics_;
  std::optional<RouterEngine> engine_;
  std::optional<Router> router_;
  std::thread thread_;
  Status served_;
};

}  // namespace moe
