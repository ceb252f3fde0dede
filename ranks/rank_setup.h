// What every rank of a job works out for itself, and alike, before it takes its role: the model's shape, who hosts
// what, how large messages can get.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "core/status.h"
#include "core/thread_pool.h"
#include "core/topology.h"
#include "kernels/kv_type.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/dispatch_format.h"
#include "model/parameter_count.h"
#include "model/routing_override.h"
#include "model/weight_cache.h"
#include "model/weight_types.h"
#include "model/weights.h"
#include "placement/forced_routing.h"
#include "placement/placement.h"
#include "router/expert_exchange.h"
#include "router/micro_batch_choice.h"
#include "transport/transport.h"

namespace moe {

enum class LoadFormat : std::uint8_t {
  kAuto,   // the files of the checkpoint
  kDummy,  // made up from config.json
};

enum class TransportChoice : std::uint8_t { kAuto, kInProcess, kMpi, kGrpc, kGrpcStreams, kNccl };

/// Shared memory where it can be had, or not.
inline bool IsGrpc(TransportChoice choice) {
  return choice == TransportChoice::kGrpc || choice == TransportChoice::kGrpcStreams;
}

/// Where experts are computed.
enum class BackendChoice : std::uint8_t {
  kAuto,  // on devices, if every rank that hosts experts has one
  kCpu,
  kCuda,
};

/// What a user chooses about the engine, in whatever program it runs.
struct RankOptions {
  std::filesystem::path model;
  LoadFormat load_format = LoadFormat::kAuto;
  std::optional<WeightType> weight_type;            // absent: the narrowest that holds the stored values exactly
  std::optional<WeightType> attention_weight_type;  // absent: as WeightTypes says
  std::string weight_cache = "auto";                // beside the model; off; or a folder for caches of models
  int threads = 0;                                  // of this rank; 0: its share of the node's processors
  TransportChoice transport = TransportChoice::kAuto;
  BackendChoice backend = BackendChoice::kAuto;
  std::string placement = "linear";  // linear, round_robin, eplb, auto or a placement file
  std::filesystem::path loads;       // for eplb and auto; empty: uniform
  int redundant_experts = 0;
  std::size_t max_step_tokens = 512;
  std::size_t kv_tokens = 0;  // positions of the KV cache; 0: the program chooses
  KvType kv_type = KvType::kF32;
  int micro_batches = 0;  // in flight at a time; 0: one or two, as measured
  ExchangeType exchange_type = ExchangeType::kF32;
  std::string routing = "gate";  // or what takes the gate's place in choosing experts, as ParseRouting takes it
  std::uint64_t routing_seed = 1;
  bool wire_checksum = false;  // frames between router and workers carry a checksum of their payload
  std::chrono::milliseconds exchange_timeout{30'000};
  std::chrono::milliseconds load_timeout{600'000};
};

/// Where this rank stands.
struct RankPlace {
  Topology topology;
  Rank rank;
  int node_local_rank = 0;
  int node_local_size = 1;
  bool router_is_here = true;  // on this machine, where its node-local rank is 0
};

struct RankDevice;

struct RankSetup {
  Topology topology;
  Rank rank;
  int threads = 1;
  bool oversubscribed = false;  // the node runs more threads than it has processors for us
  ModelConfig config;
  ParameterCount parameters;
  std::unique_ptr<Checkpoint> checkpoint;
  WeightTypes weight_types;
  std::unique_ptr<WeightCache> weight_cache;  // none where there is nothing to keep, or nothing shall be kept
  KvType kv_type = KvType::kF32;
  Placement placement;
  MicroBatchChoice::Options micro_batches;
  RoutingDial routing;
  std::shared_ptr<const RoutingOverride> forced_routing;  // on the router; null: the model's gate chooses
  ExpertExchange::Options exchange;
  TransportLimits transport_limits;
  std::chrono::milliseconds load_timeout{0};
  std::shared_ptr<RankDevice> device;  // none: this rank needs none (ranks/rank_device.h)

  WeightForm weight_form() const { return {weight_types, weight_cache.get()}; }
};

/// INVALID_ARGUMENT when --transport does not fit a process that is, or is not, one of several ranks.
Status CheckTransport(TransportChoice choice, bool several_ranks);

/// Makes the folder that --weight-cache names, if it names one; INVALID_ARGUMENT when it cannot be written to.
Status CheckWeightCache(const std::string& choice);

/// Reads the config, checks the checkpoint's headers, makes the placement and checks that the weights fit. Also pins
/// this process to its own slice of the node's processors when the node's ranks and threads fit them. INVALID_ARGUMENT,
/// NOT_FOUND and RESOURCE_EXHAUSTED name the thing.
Result<RankSetup> PrepareRank(const RankOptions& options, const RankPlace& place);

/// A worker that routers will tell what to host: the model is known, the placement, the rank and how many workers there
/// are is not.
Result<RankSetup> PrepareFleetWorker(const RankOptions& options);
/// Of a request that tells any worker of this model its shard.
std::size_t AssignmentBytes(const RankSetup& setup);

/// The pool that this rank computes with.
ThreadPool::Options PoolOptions(const RankSetup& setup);

/// The part of a description that all ranks fill alike.
WorkerDescription DescribeRank(const RankSetup& setup);

}  // namespace moe
