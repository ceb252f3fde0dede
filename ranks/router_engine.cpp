#include "ranks/router_engine.h"

#include <chrono>
#include <string>
#include <utility>

#include "core/machine.h"
#include "kernels/kernels.h"
#include "router/worker_fleet.h"

namespace moe {
namespace {

constexpr std::chrono::seconds kShutdownTimeout{10};

}  // namespace

Result<std::vector<WorkerDescription>> AwaitWorkers(const RankSetup& setup, Transport& transport) {
  return DescribeWorkers(
      transport,
      {.fingerprint = setup.checkpoint->fingerprint(), .weight_type = std::string(Name(setup.weight_types.mlps))},
      After(setup.load_timeout));
}

Result<LoadedWeights> LoadRouter(const RankSetup& setup, ThreadPool& pool, Transport& transport) {
  LoadedWeights loaded;
  MOE_ASSIGN_OR_RETURN(loaded.dense, LoadDenseWeights(setup.config, *setup.checkpoint, setup.weight_form(), pool));
  MOE_ASSIGN_OR_RETURN(loaded.workers, AwaitWorkers(setup, transport));
  return loaded;
}

std::vector<WorkerAssignment> AssignWorkers(const RankSetup& setup) {
  std::vector<WorkerAssignment> assignments;
  for (int w = 0; w < setup.topology.workers; ++w) {
    WorkerAssignment assignment{.worker = static_cast<std::uint32_t>(w),
                                .workers = static_cast<std::uint32_t>(setup.topology.workers),
                                .generation = setup.placement.generation,
                                .fingerprint = setup.checkpoint->fingerprint(),
                                .weight_type = std::string(Name(setup.weight_types.mlps)),
                                .max_pairs = setup.exchange.max_tokens * setup.exchange.experts_per_token};
    for (const LayerPlacement& layer : setup.placement.layers)
      assignment.layers.push_back({.layer = layer.layer, .slots = layer.slots[static_cast<std::size_t>(w)]});
    assignments.push_back(std::move(assignment));
  }
  return assignments;
}

Result<LoadedWeights> LoadRouter(const RankSetup& setup, ThreadPool& pool, RemoteFleet& fleet) {
  LoadedWeights loaded;
  MOE_RETURN_IF_ERROR(fleet.Start());
  MOE_ASSIGN_OR_RETURN(loaded.dense, LoadDenseWeights(setup.config, *setup.checkpoint, setup.weight_form(), pool));
  MOE_RETURN_IF_ERROR(fleet.AwaitWorkers());
  for (RemoteFleet::WorkerState& worker : fleet.Workers()) loaded.workers.push_back(std::move(worker.description));
  return loaded;
}

RouterEngine::RouterEngine(Options options, const RankSetup& setup, ThreadPool& pool, Transport& transport,
                           LoadedWeights weights, ExchangeObserver* observer)
    : pool_(pool),
      workers_(std::move(weights.workers)),
      dense_parameters_(weights.dense.parameters),
      dense_bytes_(weights.dense.bytes),
      backend_(MakeCpuDenseBackend(setup.config, std::move(weights.dense), SimdKernels(), pool,
                                   {.kv = options.kv,
                                    .max_step_tokens = setup.exchange.max_tokens,
                                    .max_batches = setup.exchange.max_micro_batches,
                                    .routing = setup.forced_routing.get()})) {
  if (setup.config.num_experts() > 0) {
    exchange_.emplace(setup.exchange, transport, setup.placement, SimdKernels(), pool, observer);
    exchange_->SetLocal(WorkersOn(HostName(), workers_));
  }
  engine_.emplace(Engine::Options{.max_step_tokens = setup.exchange.max_tokens,
                                  .load_window_steps = options.load_window_steps,
                                  .load_window_age = options.load_window_age,
                                  .micro_batches = setup.micro_batches,
                                  .on_micro_batches = std::move(options.on_micro_batches)},
                  Engine::Parts{.config = setup.config,
                                .backend = *backend_,
                                .exchange = exchange_ ? &*exchange_ : nullptr,
                                .kernels = SimdKernels(),
                                .pool = pool});
}

Status EndWorkers(Transport& transport, Status served) {
  // After a transport's failure this fails at once, and the first failure is the one to report.
  Status ended = ShutdownWorkers(transport, After(kShutdownTimeout));
  return served.ok() ? ended : served;
}

}  // namespace moe
