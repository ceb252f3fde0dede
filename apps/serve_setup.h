// What every rank of moe_serve works out for itself, and alike, before it takes its role: the model's shape, who hosts
// what, how large messages can get.
#pragma once

#include <memory>
#include <string>

#include "apps/serve_options.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "core/topology.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/parameter_count.h"
#include "placement/placement.h"
#include "router/expert_exchange.h"
#include "transport/transport.h"

namespace moe {

struct ServeSetup {
  ServeOptions options;
  Topology topology;
  Rank rank;
  int threads = 1;
  bool oversubscribed = false;  // the node runs more threads than it has processors for us
  ModelConfig config;
  ParameterCount parameters;
  std::unique_ptr<Checkpoint> checkpoint;
  WeightType weight_type = WeightType::kF32;
  Placement placement;
  ExpertExchange::Options exchange;
  TransportLimits transport_limits;
};

/// Where this rank stands.
struct RankPlace {
  Topology topology;
  Rank rank;
  int node_local_rank = 0;
  int node_local_size = 1;
};

/// Reads the config and the checkpoint's headers and makes the placement. Also pins this process to its own slice of
/// the node's processors when the node's ranks and threads fit them. INVALID_ARGUMENT and NOT_FOUND name the thing.
Result<ServeSetup> PrepareServe(const ServeOptions& options, const RankPlace& place);

/// The pool that this rank computes with.
ThreadPool::Options PoolOptions(const ServeSetup& setup);

/// Of this machine, as it calls itself.
std::string HostName();

}  // namespace moe
