// moe.v1.ExpertWorker, a worker's control plane, and its metrics.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/ids.h"
#include "experts/expert_views.h"
#include "experts/worker.h"
#include "metrics/metrics.h"
#include "model/dispatch_format.h"

namespace grpc {
class Service;
}

namespace moe {

/// What a worker hosts just now.
struct HostedShard {
  Rank rank;  // 0 while no router has said
  WorkerDescription description;
  std::vector<HostedExperts::Layer> layers;
};

class WorkerService {
 public:
  /// `hosted` is called by any thread; `totals` outlives the service.
  WorkerService(std::function<HostedShard()> hosted, const WorkerTotals& totals);
  ~WorkerService();

  grpc::Service* service();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

/// moe_worker_rows_total, moe_worker_busy_seconds_total and moe_expert_ffn_seconds.
class WorkerMetrics {
 public:
  explicit WorkerMetrics(MetricsRegistry& registry);
  /// After each dispatch, by the worker's loop.
  void OnDispatch(const DispatchFigures& figures) const;

 private:
  Counter rows_;
  Counter busy_seconds_;
  Histogram ffn_seconds_;
};

}  // namespace moe
