#include "apps/serve_worker.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <array>

#include "experts/expert_backend.h"
#include "experts/expert_shard.h"
#include "experts/worker.h"
#include "experts/worker_service.h"
#include "kernels/kernels.h"
#include "rpc/server.h"

namespace moe {
namespace {

std::size_t WidestExpert(const ModelConfig& config) {
  int widest = 0;
  for (const LayerSpec& layer : config.layers)
    if (layer.moe) widest = std::max(widest, layer.moe->expert.inner_width());
  return static_cast<std::size_t>(widest);
}

// Everything a worker holds once it has loaded; built in order, so that each part can point to those before it.
struct LoadedWorker {
  LoadedWorker(const WorkerHost& host, ExpertShard loaded)
      : shard(std::move(loaded)),
        max_pairs(host.setup.exchange.max_tokens * host.setup.exchange.experts_per_token),
        backend(MakeCpuExpertBackend(SimdKernels(), host.pool,
                                     {.max_rows = max_pairs, .inner_width = WidestExpert(host.setup.config)})),
        metrics(host.metrics->registry()),
        description(DescribeRank(host.setup, *host.metrics)) {
    description.parameters = shard.parameters();
    description.weight_bytes = shard.bytes();
  }

  ExpertShard shard;
  std::size_t max_pairs;
  std::unique_ptr<ExpertBackend> backend;
  WorkerMetrics metrics;
  WorkerDescription description;
};

Status ServeLoaded(const WorkerHost& host, LoadedWorker& loaded, WorkerEndpoint& endpoint) {
  // The control server's address is part of the description, so its service is made after the worker and told of it.
  WorkerTotals totals;
  WorkerService service(host.setup.rank, loaded.description, loaded.shard, totals);
  const std::array<grpc::Service*, 1> services = {service.service()};
  const Result<std::unique_ptr<RpcServer>> server = RpcServer::Start(
      {.listen = host.setup.options.metrics_host + ":0", .health_services = {"moe.v1.ExpertWorker"}}, services);
  if (!server.ok()) {
    MOE_RETURN_IF_ERROR(ServeFailure(endpoint, server.status()));
    return server.status();
  }
  (*server)->SetServing(true);
  loaded.description.control_address = (*server)->address();
  // Embedded, the process is the router's to describe.
  if (!host.setup.topology.embedded) {
    host.metrics->Describe(host.setup, {.role = "worker",
                                        .transport = std::string(host.transport),
                                        .expert_parameters = loaded.shard.parameters(),
                                        .expert_bytes = loaded.shard.bytes()});
    host.metrics->Serve();
  }
  Worker worker({.hidden = host.setup.exchange.hidden, .max_pairs = loaded.max_pairs}, loaded.description, loaded.shard,
                *loaded.backend, totals, [&](const DispatchFigures& figures) { loaded.metrics.OnDispatch(figures); });
  return worker.Run(endpoint);
}

}  // namespace

Status RunWorker(WorkerHost host, WorkerEndpoint& endpoint) {
  if (host.failure.ok()) {
    Result<ExpertShard> shard = ExpertShard::Load(host.setup.config, *host.setup.checkpoint, host.setup.placement,
                                                  host.worker, host.setup.weight_type, host.pool);
    if (shard.ok()) {
      LoadedWorker loaded(host, *std::move(shard));
      return ServeLoaded(host, loaded, endpoint);
    }
    host.failure = shard.status();
  }
  const Status served = ServeFailure(endpoint, host.failure);
  return served.ok() ? host.failure : served;
}

}  // namespace moe
