#include "ranks/expert_host.h"

#include <algorithm>
#include <utility>

#include "core/machine.h"
#include "kernels/kernels.h"
#include "model/step_buffers.h"
#include "model/weights.h"
#include "ranks/device_experts.h"
#include "ranks/rank_device.h"

namespace moe {
namespace {

// Of one dispatch.
std::size_t MaxPairs(const RankSetup& setup) { return setup.exchange.max_tokens * setup.exchange.experts_per_token; }

// With the shard's weights where it computes with them.
Result<std::unique_ptr<ExpertBackend>> OnDevice(const RankSetup& setup, const ExpertShard& shard) {
  MOE_ASSIGN_OR_RETURN(std::unique_ptr<ExpertBackend> backend,
                       MakeDeviceExperts(*setup.device, setup,
                                         {.rows = MaxPairs(setup),
                                          .slots = shard.most_slots(),
                                          .intermediate = Widest(setup.config, ExpertIntermediate)}));
  for (const ExpertShard::Layer& layer : shard.layers()) MOE_RETURN_IF_ERROR(backend->Prepare(layer));
  return backend;
}

/// Where this rank computes its experts: on the device that it is bound to for that, else on its processors. Where that
/// was left to us, also if the device does not compute with such weights.
Result<std::unique_ptr<ExpertBackend>> MakeBackend(const RankSetup& setup, const ExpertShard& shard, ThreadPool& pool) {
  if (setup.device != nullptr && setup.device->for_experts) {
    Result<std::unique_ptr<ExpertBackend>> backend = OnDevice(setup, shard);
    const bool unsuitable = backend.status().code() == StatusCode::kInvalidArgument;
    if (setup.device->required) {
      return backend.ok() ? std::move(backend) : backend.status().WithContext("--backend cuda");
    }
    if (!unsuitable) return backend;
  }
  return MakeCpuExpertBackend(SimdKernels(), pool,
                              {.rows = MaxPairs(setup),
                               .mlps = static_cast<std::size_t>(setup.config.num_experts()),  // in any placement
                               .hidden = setup.exchange.hidden,
                               .intermediate = Widest(setup.config, ExpertIntermediate),
                               .type = setup.weight_types.mlps});
}

}  // namespace

ExpertHost::ExpertHost(const RankSetup& setup, ThreadPool& pool, ExpertViews::Shard shard,
                       std::unique_ptr<ExpertBackend> backend)
    : pool_(pool),
      options_({.hidden = setup.exchange.hidden,
                .max_pairs = MaxPairs(setup),
                .max_slots = static_cast<std::size_t>(setup.config.num_experts())}),
      first_shard_(std::move(shard)),
      backend_(std::move(backend)),
      views_({.config = setup.config,
              .types = setup.weight_types,
              .load =
                  [&setup](int layer, int expert) {
                    return LoadExpertWeights(setup.config, *setup.checkpoint, layer, expert, setup.weight_form());
                  },
              .free_memory = FreeMemoryBytes,
              .on_hosted =
                  [this](const HostedExperts& hosted) {
                    if (on_hosted_) on_hosted_(hosted);
                  }}),
      description_(DescribeRank(setup)) {
  description_.device = std::string(backend_->device());
}

Result<std::unique_ptr<ExpertHost>> ExpertHost::Load(const RankSetup& setup, const Placement& placement,
                                                     WorkerId worker, ThreadPool& pool) {
  MOE_ASSIGN_OR_RETURN(ExpertShard loaded, ExpertShard::Load(setup.config, *setup.checkpoint, placement, worker,
                                                             setup.weight_form(), pool));
  auto shard = std::make_shared<const ExpertShard>(std::move(loaded));  // a device knows its layers by where they are
  MOE_ASSIGN_OR_RETURN(std::unique_ptr<ExpertBackend> backend, MakeBackend(setup, *shard, pool));
  return std::unique_ptr<ExpertHost>(new ExpertHost(setup, pool, std::move(shard), std::move(backend)));
}

Result<std::unique_ptr<ExpertHost>> ExpertHost::Load(const RankSetup& setup, WorkerId worker, ThreadPool& pool) {
  MOE_ASSIGN_OR_RETURN(std::unique_ptr<ExpertHost> host, Load(setup, setup.placement, worker, pool));
  host->views_.HoldForAll(setup.placement.generation, host->TakeFirstShard());
  return host;
}

void ExpertHost::SetAddresses(const std::string& metrics, const std::string& control) {
  description_.metrics_address = metrics;
  description_.control_address = control;
}

std::unique_ptr<Worker> ExpertHost::MakeWorker(WorkerTotals& totals, Worker::Describe describe,
                                               Worker::Observer observer) {
  return std::make_unique<Worker>(options_, std::move(describe), views_, *backend_, pool_, totals, std::move(observer));
}

Status ExpertHost::Run(WorkerEndpoint& endpoint, Worker::Observer observer) {
  return MakeWorker(
             totals_, [this] { return description_; }, std::move(observer))
      ->Run(endpoint);
}

Status ServeExperts(const RankSetup& setup, WorkerId worker, ThreadPool& pool, WorkerEndpoint& endpoint) {
  const Result<std::unique_ptr<ExpertHost>> host = ExpertHost::Load(setup, worker, pool);
  if (host.ok()) return (*host)->Run(endpoint);
  const Status served = ServeFailure(endpoint, host.status());
  return served.ok() ? host.status() : served;
}

}  // namespace moe
