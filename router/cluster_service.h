// moe.v1.Cluster: who is there, who hosts what, what it carries, whether experts should move and moves of them; traces
// of who went where.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/topology.h"
#include "model/config.h"
#include "model/dispatch_format.h"
#include "model/parameter_count.h"
#include "router/balancer.h"
#include "router/router.h"
#include "router/trace_control.h"

namespace grpc {
class Service;
}

namespace moe {

/// A worker that may be lost.
struct WorkerPresence {
  bool up = true;
  WorkerDescription description;  // as it said last
};

/// What does not change while the cluster lives.
struct ClusterSetup {
  Topology topology;
  std::string transport;
  std::string backend;
  std::string weight_type;
  std::string routing = "gate";
  ParameterCount parameters;
  WorkerDescription router;                // parameters and bytes: its dense part
  std::vector<WorkerDescription> workers;  // by worker
  std::function<void()> drain;             // begins one
  TraceControl* trace = nullptr;           // null: traces are UNIMPLEMENTED
  Balancer* balancer = nullptr;            // null: Rebalance is UNIMPLEMENTED
  std::uint64_t bytes_per_expert = 0;      // in one layer, as workers hold it
  /// By worker, where workers come and go; by any thread. Empty: `workers` are up for as long as the router is.
  std::function<std::vector<WorkerPresence>()> presence;
};

class ClusterService {
 public:
  ClusterService(ClusterSetup setup, const ModelConfig& config, Router& router);
  ~ClusterService();

  grpc::Service* service();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe
