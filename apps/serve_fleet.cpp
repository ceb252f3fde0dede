#include "apps/serve_fleet.h"

#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "apps/fleet_links.h"
#include "apps/serve_endpoints.h"
#include "apps/serve_router.h"
#include "apps/signals.h"
#include "core/machine.h"
#include "experts/worker_service.h"
#include "ranks/fleet_worker.h"
#include "ranks/router_engine.h"
#include "router/remote_fleet.h"
#include "transport/grpc/grpc_worker_server.h"

namespace moe {
namespace {

/// Between routers and workers: only what --tls-ca vouches for is spoken to, so without it the rows travel in the
/// clear.
TlsFiles DataPlaneTls(const TlsFiles& files) { return files.ca.empty() ? TlsFiles() : files; }

HostedShard Hosted(const FleetWorker& worker) {
  HostedShard hosted{.rank = Rank(0), .description = worker.description(), .layers = {}};
  const std::optional<WorkerAssignment> assignment = worker.assignment();
  if (!assignment) return hosted;
  hosted.rank = Rank(static_cast<int>(assignment->worker) + 1);
  for (const WorkerAssignment::Layer& layer : assignment->layers)
    hosted.layers.push_back({.layer = layer.layer, .experts = layer.slots});
  return hosted;
}

bool SharesMemory(const ServeSetup& setup) { return setup.options.transport != TransportChoice::kGrpcStreams; }

void LogConnected(bool shared_memory) {
  spdlog::info("rows {}", shared_memory ? "lie in memory shared with the workers" : "travel in streams");
}

// At start that is no trouble yet: the worker may come later, or load for minutes.
void LogObstacle(const Status& why) { spdlog::info("waiting: {}", why.message()); }

std::string WorkerReadyText(const std::string& address, const std::string& metrics) {
  nlohmann::json addresses = nlohmann::json::array();
  if (!metrics.empty()) addresses.push_back(metrics);
  const nlohmann::json ready = {{"grpc", address}, {"metrics", addresses}, {"role", "worker"}, {"pid", getpid()}};
  return ready.dump();
}

}  // namespace

Result<ServeSetup> PrepareFleet(const ServeOptions& options) {
  MOE_RETURN_IF_ERROR(CheckWeightCache(options.weight_cache));
  if (options.role == ServeRole::kWorker) {
    MOE_ASSIGN_OR_RETURN(RankSetup setup, PrepareFleetWorker(options));
    if (setup.config.num_experts() == 0)
      return InvalidArgument("--model ", options.model.string(),
                             " has no experts: there is nothing for a worker to do");
    return ServeSetup(std::move(setup), options);
  }
  const RankPlace place{.topology = {.workers = static_cast<int>(options.workers.size()), .embedded = false}};
  MOE_ASSIGN_OR_RETURN(RankSetup setup, PrepareRank(options, place));
  if (setup.config.num_experts() == 0)
    return InvalidArgument("--model ", options.model.string(), " has no experts: moe_serve alone serves it");
  return ServeSetup(std::move(setup), options);
}

Status ServeAsRouter(const ServeSetup& setup) {
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<RankMetrics> metrics, RankMetrics::Start(setup));
  ThreadPool pool(PoolOptions(setup));
  const FleetLinksOptions links{.workers = setup.options.workers,
                                .limits = setup.transport_limits,
                                .tls = DataPlaneTls(setup.options.tls),
                                .shared_memory = SharesMemory(setup),
                                .on_connected = LogConnected};
  FleetLinksOptions search = links;
  search.limits.max_request_bytes = AssignmentBytes(setup);
  search.limits.max_reply_bytes = kMaxControlBytes;
  search.limits.max_exchanges = 1;
  search.on_connected = nullptr;
  RemoteFleet fleet({.exchange_timeout = setup.exchange.timeout,
                     .load_timeout = setup.load_timeout,
                     .host = HostName(),
                     .on_obstacle = LogObstacle},
                    {.steps = [&] { return MakeGrpcLinks(links); }, .search = [&] { return MakeGrpcLinks(search); }},
                    AssignWorkers(setup));
  return RunFleetRouter(setup, pool, *metrics, fleet);
}

Status ServeAsWorker(const ServeSetup& setup) {
  for (const std::string& warning : setup.config.warnings) spdlog::warn("{}", warning);
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<RankMetrics> metrics, RankMetrics::Start(setup));
  const auto describe = [&](const WorkerDescription& shard) {
    metrics->Describe(setup, {.role = "worker",
                              .transport = SharesMemory(setup) ? "grpc" : "grpc_streams",
                              .expert_parameters = shard.parameters,
                              .expert_bytes = shard.weight_bytes});
  };
  const auto on_loaded = [&](const WorkerDescription& shard) {
    LogWeightCache(setup);
    spdlog::info("hosting {} experts, {} parameters, {} bytes", shard.slots, shard.parameters, shard.weight_bytes);
  };
  ThreadPool pool(PoolOptions(setup));
  WorkerMetrics figures(metrics->registry());
  FleetWorker worker(setup, pool, DescribeRank(setup, *metrics),
                     {.on_dispatch = [&](const DispatchFigures& dispatch) { figures.OnDispatch(dispatch); },
                      .on_loaded = on_loaded,
                      .on_hosted = describe});
  WorkerService control([&] { return Hosted(worker); }, worker.totals());
  const std::vector<grpc::Service*> services = {control.service()};
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<GrpcWorkerServer> server,
                       GrpcWorkerServer::Start({.listen = setup.options.listen,
                                                .limits = setup.transport_limits,
                                                .shared_memory = SharesMemory(setup),
                                                .tls = DataPlaneTls(setup.options.tls),
                                                .services = services}));
  worker.SetControlAddress(server->address());
  describe({});
  metrics->Serve();
  server->SetServing(true);
  MOE_RETURN_IF_ERROR(WriteReadyFile(setup, WorkerReadyText(server->address(), metrics->address())));
  spdlog::info("a worker for {} on {}, {} thread(s), kernels {}",
               std::filesystem::canonical(setup.options.model).filename().string(), server->address(), setup.threads,
               worker.description().kernel_target);
  const auto stop = [&] {
    spdlog::info("stopping: what has arrived is answered");
    server->SetServing(false);
    worker.Stop();
  };
  const SignalWatcher watcher({.first = stop, .second = [&] { server->Stop(); }});
  return worker.Run(server->endpoint());
}

}  // namespace moe
