// moe_serve: a router and its expert workers, in one process, as the ranks of an MPI job or as a fleet. Flags and
// wiring only.
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <optional>

#include "apps/flags.h"
#include "apps/serve_endpoints.h"
#include "apps/serve_fleet.h"
#include "apps/serve_options.h"
#include "apps/serve_router.h"
#include "apps/serve_worker.h"
#include "apps/signals.h"
#include "ranks/embedded.h"
#include "ranks/job_transport.h"
#include "ranks/mpi_job.h"
#include "ranks/rank_device.h"

namespace moe {
namespace {

int Report(const Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "moe_serve: %s\n", status.message().c_str());
  return kExitFailed;
}

void TakeDevice(std::unique_ptr<RankDevice> device, RankSetup& setup) {
  setup.device = std::move(device);
  if (setup.device == nullptr) return;
  setup.device->on_upload = [](const UploadProgress& progress) {
    if (progress.uploaded_bytes == progress.bytes)
      spdlog::info("layer {}: {} bytes of experts are on the device", progress.layer, progress.bytes);
  };
}

/// How far a rank came before it takes its role.
struct Start {
  int exit_code = 0;  // not 0: `failure` says why this rank cannot go on
  std::string failure;
  std::optional<ServeSetup> setup;
};

Start Prepare(const ParsedServeOptions& parsed, const RankPlace& place, bool launched) {
  if (!parsed.run) return {.exit_code = parsed.exit_code, .failure = parsed.text};
  if (const Status status = CheckTransport(parsed.options.transport, launched); !status.ok())
    return {.exit_code = kExitBadUsage, .failure = status.message()};
  if (const Status status = CheckWeightCache(parsed.options.weight_cache); !status.ok())
    return {.exit_code = kExitBadUsage, .failure = status.message()};
  Result<std::unique_ptr<RankDevice>> device = BindDevice(parsed.options, place);
  if (!device.ok()) return {.exit_code = kExitBadUsage, .failure = device.status().message()};
  Result<RankSetup> setup = PrepareRank(parsed.options, place);
  if (!setup.ok()) return {.exit_code = kExitFailed, .failure = setup.status().message()};
  TakeDevice(*std::move(device), *setup);
  return {.setup = ServeSetup(*std::move(setup), parsed.options)};
}

int RunEmbedded(const ParsedServeOptions& parsed) {
  Start start = Prepare(parsed, {.topology = {.workers = 1, .embedded = true}}, /*launched=*/false);
  if (start.exit_code != 0) {
    std::fprintf(stderr, "moe_serve: %s\n", start.failure.c_str());
    return start.exit_code;
  }
  const ServeSetup& setup = *start.setup;
  Result<std::unique_ptr<RankMetrics>> metrics = RankMetrics::Start(setup);
  if (!metrics.ok()) return Report(metrics.status());
  // Router and worker never compute at the same time, so they share the processors and the pool.
  ThreadPool pool(PoolOptions(setup));
  const Result<std::unique_ptr<EmbeddedWorker>> worker =
      EmbeddedWorker::Start(setup.transport_limits, [&](WorkerEndpoint& endpoint) {
        const WorkerHost host{
            .setup = setup, .worker = WorkerId(0), .pool = pool, .metrics = metrics->get(), .transport = "inprocess"};
        // The router reports the failure: it is told.
        (void)RunWorker(host, endpoint);
      });
  if (!worker.ok()) return Report(worker.status());
  return Report(RunRouter(setup, pool, **metrics, (*worker)->transport()));
}

Status RunJobRouter(MpiWorld& world, const ServeSetup& setup, RankMetrics& metrics) {
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<JobRouterEnd> end,
                       MakeJobRouterEnd(world, setup.options.transport, setup.transport_limits, setup.device.get()));
  ThreadPool pool(PoolOptions(setup));
  return RunRouter(setup, pool, metrics, end->transport());
}

Status RunJobWorker(MpiWorld& world, const ServeSetup& setup, RankMetrics& metrics) {
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<JobWorkerEnd> end,
                       MakeJobWorkerEnd(world, setup.options.transport, setup.transport_limits, setup.device.get()));
  ThreadPool pool(PoolOptions(setup));
  return RunWorker({.setup = setup,
                    .worker = WorkerId(world.rank().value() - 1),
                    .pool = pool,
                    .metrics = &metrics,
                    .transport = JobTransportName(setup.options.transport)},
                   end->endpoint());
}

int RunLaunched(const ParsedServeOptions& parsed) {
  MpiWorld world;
  if (world.size() == 1) return RunEmbedded(parsed);
  const RankPlace place = PlaceOf(world);
  const bool router = world.rank() == place.topology.router();
  Start start = Prepare(parsed, place, /*launched=*/true);
  std::unique_ptr<RankMetrics> metrics;
  if (start.exit_code == 0) {
    Result<std::unique_ptr<RankMetrics>> started = RankMetrics::Start(*start.setup);
    if (started.ok()) {
      metrics = *std::move(started);
    } else {
      start.exit_code = kExitFailed;
      start.failure = started.status().message();
    }
  }
  const Result<int> agreed = AgreeToStart(world, "moe_serve", start.exit_code, start.failure);
  if (!agreed.ok()) return Report(agreed.status());
  if (*agreed != 0) return *agreed;

  const Status status =
      router ? RunJobRouter(world, *start.setup, *metrics) : RunJobWorker(world, *start.setup, *metrics);
  if (status.ok()) return 0;
  // What a worker could not do it has told the router, who reports it.
  if (router) Report(status);
  if (MustLeaveJob(parsed.options.transport, status)) LeaveJob(kExitFailed);
  return kExitFailed;
}

/// A router or a worker by itself, without MPI.
int RunOfFleet(const ParsedServeOptions& parsed) {
  if (!parsed.run) {
    std::fprintf(stderr, "moe_serve: %s\n", parsed.text.c_str());
    return parsed.exit_code;
  }
  if (parsed.options.role == ServeRole::kRouter) {
    const Result<ServeSetup> setup = PrepareFleet(parsed.options);
    return Report(setup.ok() ? ServeAsRouter(*setup) : setup.status());
  }
  // As far as a worker knows it is alone on its machine: CUDA_VISIBLE_DEVICES gives each of several its own device.
  Result<std::unique_ptr<RankDevice>> device =
      BindDevice(parsed.options, {.topology = {.workers = 1, .embedded = true}});
  if (!device.ok()) {
    (void)Report(device.status());
    return kExitBadUsage;
  }
  Result<ServeSetup> setup = PrepareFleet(parsed.options);
  if (!setup.ok()) return Report(setup.status());
  TakeDevice(*std::move(device), *setup);
  return Report(ServeAsWorker(*setup));
}

int Main(int argc, char** argv) {
  const ParsedServeOptions parsed = ParseServeOptions(argc, argv);
  const bool fleet = parsed.options.role != ServeRole::kJob;
  const bool launched = !fleet && LaunchedByMpi();
  InstallSignalHandlers(launched);
  if (!parsed.run && parsed.exit_code == 0) {
    if (IsFirstLaunchedRank()) std::fputs(parsed.text.c_str(), stdout);
    return 0;
  }
  spdlog::set_default_logger(spdlog::stderr_color_mt("moe_serve"));
  if (parsed.run) spdlog::set_level(spdlog::level::from_str(parsed.options.log_level));
  if (fleet) return RunOfFleet(parsed);
  return launched ? RunLaunched(parsed) : RunEmbedded(parsed);
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) { return moe::Main(argc, argv); }
