#include "apps/serve_worker.h"

#include <grpcpp/grpcpp.h>

#include <array>

#include "experts/worker_service.h"
#include "ranks/expert_host.h"
#include "rpc/server.h"

namespace moe {
namespace {

Status ServeLoaded(const WorkerHost& host, ExpertHost& experts, WorkerEndpoint& endpoint) {
  WorkerMetrics metrics(host.metrics->registry());
  // The control server's address is part of the description, so its service is made after the worker and told of it.
  const auto hosted = [&] {
    return HostedShard{
        .rank = host.setup.rank, .description = experts.description(), .layers = experts.views().hosted().layers};
  };
  WorkerService service(hosted, experts.totals());
  const std::array<grpc::Service*, 1> services = {service.service()};
  const Result<std::unique_ptr<RpcServer>> server = RpcServer::Start(
      {.listen = host.setup.options.metrics_host + ":0", .health_services = {"moe.v1.ExpertWorker"}}, services);
  if (!server.ok()) {
    MOE_RETURN_IF_ERROR(ServeFailure(endpoint, server.status()));
    return server.status();
  }
  (*server)->SetServing(true);
  experts.SetAddresses(host.metrics->address(), (*server)->address());
  // Embedded, the process is the router's to describe.
  if (!host.setup.topology.embedded) {
    LogWeightCache(host.setup);
    const auto describe = [&](const HostedExperts& now) {
      host.metrics->Describe(host.setup, {.role = "worker",
                                          .transport = std::string(host.transport),
                                          .device = experts.description().device,
                                          .expert_parameters = now.parameters,
                                          .expert_bytes = now.bytes});
    };
    describe(experts.views().hosted());
    experts.OnHosted(describe);
    host.metrics->Serve();
  }
  return experts.Run(endpoint, [&](const DispatchFigures& figures) { metrics.OnDispatch(figures); });
}

}  // namespace

Status RunWorker(WorkerHost host, WorkerEndpoint& endpoint) {
  if (host.failure.ok()) {
    const Result<std::unique_ptr<ExpertHost>> experts = ExpertHost::Load(host.setup, host.worker, host.pool);
    if (experts.ok()) return ServeLoaded(host, **experts, endpoint);
    host.failure = experts.status();
  }
  const Status served = ServeFailure(endpoint, host.failure);
  return served.ok() ? host.failure : served;
}

}  // namespace moe
