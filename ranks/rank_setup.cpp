#include "ranks/rank_setup.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "core/machine.h"
#include "kernels/kernels.h"
#include "model/json.h"
#include "model/migration_format.h"
#include "model/tensor_check.h"
#include "model/weight_bytes.h"
#include "placement/named_placement.h"

namespace moe {
namespace {

// The most positions that a context may have where a model sets no limit.
constexpr std::size_t kMaxContext = std::size_t{1} << 30;

// Chooses the number of threads, and keeps this process to its own processors where there are enough for all.
void ArrangeThreads(const RankOptions& options, const RankPlace& place, RankSetup& setup) {
  const std::vector<int> allowed = AllowedProcessors();
  const int processors = static_cast<int>(allowed.size());
  const int share = std::max(1, processors / place.node_local_size);
  setup.threads = options.threads > 0 ? options.threads : share;
  const int wanted = setup.threads * place.node_local_size;
  setup.oversubscribed = wanted > processors;
  if (setup.oversubscribed || place.node_local_size == 1) return;
  cpu_set_t slice;
  CPU_ZERO(&slice);
  const int first = place.node_local_rank * setup.threads;
  for (int i = first; i < first + setup.threads; ++i)
    CPU_SET(static_cast<std::size_t>(allowed[static_cast<std::size_t>(i)]), &slice);
  // A refusal costs speed, not correctness.
  (void)sched_setaffinity(0, sizeof(slice), &slice);
}

Result<Placement> PlaceExperts(const RankOptions& options, const RankSetup& setup) {
  return MakeNamedPlacement({.num_experts = setup.config.num_experts(),
                             .workers = setup.topology.workers,
                             .layers = setup.config.sparse_layers(),
                             .redundant_experts = options.redundant_experts},
                            options.placement, options.loads);
}

/// Where what is quantized of the model is kept, if it is.
std::unique_ptr<WeightCache> OpenWeightCache(const RankOptions& options, const RankSetup& setup) {
  const WeightTypes& types = setup.weight_types;
  if (options.weight_cache == "off" || setup.checkpoint->made_up()) return nullptr;
  if (!IsQuantized(types.mlps) && !IsQuantized(types.attention)) return nullptr;
  std::filesystem::path folder = options.model / "moe-cache";
  if (options.weight_cache != "auto") {
    std::error_code error;  // the checkpoint was opened in that folder
    folder = std::filesystem::path(options.weight_cache) / std::filesystem::canonical(options.model, error).filename();
  }
  return std::make_unique<WeightCache>(folder, *setup.checkpoint);
}

/// The config, and the checkpoint or what stands for it.
Status ReadModel(const RankOptions& options, RankSetup& setup) {
  MOE_ASSIGN_OR_RETURN(setup.config, ReadModelConfig(options.model));
  // A model that names no limit of its positions gets what the cache is made for.
  if (setup.config.context_length == 0) {
    const std::size_t tokens = options.kv_tokens > 0 ? options.kv_tokens : options.max_step_tokens;
    setup.config.context_length = static_cast<int>(std::min<std::size_t>(tokens, kMaxContext));
  }
  if (options.load_format == LoadFormat::kDummy) {
    MOE_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(options.model / "config.json", kMaxConfigBytes));
    setup.checkpoint = std::make_unique<Checkpoint>(Checkpoint::MadeUp(text));
  } else {
    MOE_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::Open(options.model));
    setup.checkpoint = std::make_unique<Checkpoint>(std::move(checkpoint));
  }
  MOE_ASSIGN_OR_RETURN(const CheckedTensors checked, CheckTensors(setup.config, *setup.checkpoint));
  setup.parameters = CountParameters(setup.config);
  setup.weight_types = {options.weight_type.value_or(checked.exact_type), options.attention_weight_type};
  setup.weight_cache = OpenWeightCache(options, setup);
  return Status::Ok();
}

/// Bytes of the experts that some workers host.
std::uint64_t ShardBytes(const RankSetup& setup, int first_worker, int workers) {
  std::uint64_t bytes = 0;
  for (const LayerPlacement& layer : setup.placement.layers) {
    const std::uint64_t each = ExpertBytes(setup.config, layer.layer, setup.weight_types);
    for (int w = first_worker; w < first_worker + workers; ++w)
      bytes += each * layer.slots[static_cast<std::size_t>(w)].size();
  }
  return bytes;
}

/// That the weights of this node's ranks fit its memory. Where the job has other nodes too, this rank's share stands
/// for that of its neighbours.
Status CheckMemory(const RankOptions& options, const RankPlace& place, const RankSetup& setup) {
  const Topology& topology = setup.topology;
  const bool alone = place.node_local_size == topology.ranks();
  const std::uint64_t dense = DenseBytes(setup.config, setup.weight_types);
  std::uint64_t experts = 0;
  if (alone) {
    experts = ShardBytes(setup, 0, topology.workers);
  } else if (setup.rank != topology.router()) {
    experts =
        ShardBytes(setup, topology.worker(setup.rank).value(), 1) * static_cast<std::uint64_t>(place.node_local_size);
  }
  const std::uint64_t needed = experts + (alone || setup.rank == topology.router() ? dense : 0);
  const std::uint64_t memory = MachineMemoryBytes();
  if (needed <= memory) return Status::Ok();
  return ResourceExhausted("--model ", options.model.string(), ": its weights take ", needed, " bytes as ",
                           Name(setup.weight_types.mlps), " here (", dense, " dense, ", experts,
                           " in experts), the machine has ", memory);
}

MicroBatchChoice::Options ChooseMicroBatches(const RankOptions& options, const RankSetup& setup) {
  if (options.micro_batches > 0) return {.most = options.micro_batches};
  // In one process router and experts compute with the same threads, never at a time; without experts nobody waits.
  if (setup.topology.embedded || setup.config.num_experts() == 0) return {.most = 1};
  // More than two have shorter pauses to fill and read more weights twice.
  return {.most = 2, .measure = true};
}

/// What follows from the model and the options for the exchange.
void PlanExchange(const RankOptions& options, RankSetup& setup) {
  setup.micro_batches = ChooseMicroBatches(options, setup);
  setup.exchange = {.max_tokens = options.max_step_tokens,
                    .max_micro_batches = static_cast<std::size_t>(setup.micro_batches.most),
                    .hidden = static_cast<std::size_t>(setup.config.hidden),
                    .num_experts = static_cast<std::size_t>(setup.config.num_experts()),
                    .experts_per_token = static_cast<std::size_t>(setup.config.experts_per_token()),
                    .type = options.exchange_type,
                    .timeout = options.exchange_timeout};
  setup.transport_limits = ExpertExchange::Limits(setup.exchange);
  setup.transport_limits.payload_checksums = options.wire_checksum;
}

/// So that a worker can be told what to host, and what to prepare when experts move.
void MakeRoomForShards(RankSetup& setup) {
  const std::size_t layers = setup.config.sparse_layers().size();
  const std::size_t slots = layers * static_cast<std::size_t>(setup.config.num_experts());
  std::size_t& bytes = setup.transport_limits.max_request_bytes;
  bytes = std::max({bytes, AssignmentBytes(setup), MaxPreparationBytes(layers, slots)});
}

/// Every rank of a job notes the dial; the router alone needs what it leads to.
Status ForceRouting(const RankOptions& options, RankSetup& setup) {
  MOE_ASSIGN_OR_RETURN(setup.routing, ParseRouting(options.routing));
  if (setup.rank != setup.topology.router()) return Status::Ok();
  Result<std::shared_ptr<const RoutingOverride>> forced =
      MakeForcedRouting(setup.routing, options.routing_seed, setup.config);
  if (!forced.ok()) return forced.status().WithContext("--routing");
  setup.forced_routing = *std::move(forced);
  return Status::Ok();
}

}  // namespace

Status CheckTransport(TransportChoice choice, bool several_ranks) {
  if (choice == TransportChoice::kMpi && !several_ranks)
    return InvalidArgument("--transport mpi needs mpirun with at least two ranks, a router and a worker; there is one");
  if (IsGrpc(choice) && !several_ranks)
    return InvalidArgument(
        "--transport ", choice == TransportChoice::kGrpc ? "grpc" : "grpc_streams",
        " needs a router and workers: moe_serve router and moe_serve worker, or mpirun with at least "
        "two ranks; there is one");
  if (choice == TransportChoice::kNccl && !several_ranks)
    return InvalidArgument(
        "--transport nccl needs mpirun with at least two ranks, a router and a worker; there is one");
  if (choice == TransportChoice::kInProcess && several_ranks)
    return InvalidArgument("--transport inprocess is for one process; mpirun started several");
  return Status::Ok();
}

Status CheckWeightCache(const std::string& choice) {
  if (choice == "auto" || choice == "off") return Status::Ok();
  std::error_code error;
  std::filesystem::create_directories(choice, error);
  if (!error && access(choice.c_str(), W_OK | X_OK) != 0) error.assign(errno, std::generic_category());
  if (!error) return Status::Ok();
  return InvalidArgument("--weight-cache \"", choice,
                         "\" is not auto, off or a folder that can be written to: ", error.message());
}

Result<RankSetup> PrepareRank(const RankOptions& options, const RankPlace& place) {
  RankSetup setup{
      .topology = place.topology, .rank = place.rank, .kv_type = options.kv_type, .load_timeout = options.load_timeout};
  ArrangeThreads(options, place, setup);
  MOE_RETURN_IF_ERROR(ReadModel(options, setup));
  MOE_ASSIGN_OR_RETURN(setup.placement, PlaceExperts(options, setup));
  MOE_RETURN_IF_ERROR(CheckMemory(options, place, setup));
  MOE_RETURN_IF_ERROR(ForceRouting(options, setup));
  PlanExchange(options, setup);
  MakeRoomForShards(setup);
  return setup;
}

Result<RankSetup> PrepareFleetWorker(const RankOptions& options) {
  const RankPlace place{.topology = {.workers = 1, .embedded = false}};
  RankSetup setup{.topology = place.topology, .rank = place.rank, .load_timeout = options.load_timeout};
  ArrangeThreads(options, place, setup);
  MOE_RETURN_IF_ERROR(ReadModel(options, setup));
  PlanExchange(options, setup);
  // Routers choose; there is room for any choice.
  setup.exchange.max_micro_batches = kMaxMicroBatches;
  setup.transport_limits = ExpertExchange::Limits(setup.exchange);
  setup.transport_limits.payload_checksums = options.wire_checksum;
  MakeRoomForShards(setup);
  return setup;
}

std::size_t AssignmentBytes(const RankSetup& setup) {
  const std::size_t layers = setup.config.sparse_layers().size();
  return MaxAssignmentBytes(layers, layers * static_cast<std::size_t>(setup.config.num_experts()));
}

ThreadPool::Options PoolOptions(const RankSetup& setup) {
  // Spinning pays where every thread has a processor of its own: a wake-up costs 5–50 µs, and a layer has several.
  constexpr int kSpinMicroseconds = 20;
  return {.threads = setup.threads, .spin_microseconds = setup.oversubscribed ? 0 : kSpinMicroseconds};
}

WorkerDescription DescribeRank(const RankSetup& setup) {
  const std::string host = HostName();
  return {.host = host.empty() ? "unknown" : host,
          .pid = static_cast<std::uint64_t>(getpid()),
          .device = "cpu",
          .kernel_target = std::string(SimdKernels().name()),
          .fingerprint = setup.checkpoint->fingerprint(),
          .weight_type = std::string(Name(setup.weight_types.mlps)),
          .threads = static_cast<std::uint32_t>(setup.threads),
          .free_memory_bytes = FreeMemoryBytes()};
}

}  // namespace moe
