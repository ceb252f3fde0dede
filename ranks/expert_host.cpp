#include "ranks/expert_host.h"

#include <algorithm>
#include <utility>

#include "kernels/kernels.h"

namespace moe {
namespace {

std::size_t WidestExpert(const ModelConfig& config) {
  int widest = 0;
  for (const LayerSpec& layer : config.layers)
    if (layer.moe) widest = std::max(widest, layer.moe->expert.intermediate);
  return static_cast<std::size_t>(widest);
}

}  // namespace

ExpertHost::ExpertHost(const RankSetup& setup, ThreadPool& pool, ExpertShard shard)
    : hidden_(setup.exchange.hidden),
      max_pairs_(setup.exchange.max_tokens * setup.exchange.experts_per_token),
      shard_(std::move(shard)),
      backend_(MakeCpuExpertBackend(SimdKernels(), pool,
                                    {.rows = max_pairs_,
                                     .mlps = shard_.most_slots(),
                                     .hidden = hidden_,
                                     .intermediate = WidestExpert(setup.config),
                                     .type = setup.weight_types.mlps})),
      description_(DescribeRank(setup)) {
  description_.parameters = shard_.parameters();
  description_.weight_bytes = shard_.bytes();
}

Result<std::unique_ptr<ExpertHost>> ExpertHost::Load(const RankSetup& setup, WorkerId worker, ThreadPool& pool) {
  MOE_ASSIGN_OR_RETURN(ExpertShard shard, ExpertShard::Load(setup.config, *setup.checkpoint, setup.placement, worker,
                                                            setup.weight_types, pool));
  return std::unique_ptr<ExpertHost>(new ExpertHost(setup, pool, std::move(shard)));
}

Status ExpertHost::Run(WorkerEndpoint& endpoint, Worker::Observer observer) {
  Worker worker({.hidden = hidden_, .max_pairs = max_pairs_}, description_, shard_, *backend_, totals_,
                std::move(observer));
  return worker.Run(endpoint);
}

Status ServeExperts(const RankSetup& setup, WorkerId worker, ThreadPool& pool, WorkerEndpoint& endpoint) {
  const Result<std::unique_ptr<ExpertHost>> host = ExpertHost::Load(setup, worker, pool);
  if (host.ok()) return (*host)->Run(endpoint);
  const Status served = ServeFailure(endpoint, host.status());
  return served.ok() ? host.status() : served;
}

}  // namespace moe
