// moe_serve: a router and its expert workers, in one process or as the ranks of an MPI job. Flags and wiring only.
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <optional>

#include "apps/serve_endpoints.h"
#include "apps/serve_options.h"
#include "apps/serve_router.h"
#include "apps/serve_worker.h"
#include "apps/signals.h"
#include "ranks/embedded.h"
#include "ranks/mpi_job.h"
#include "transport/mpi/mpi_transport.h"

namespace moe {
namespace {

constexpr int kFailed = 1;
constexpr int kBadUsage = 2;

int Report(const Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "moe_serve: %s\n", status.message().c_str());
  return kFailed;
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
    return {.exit_code = kBadUsage, .failure = status.message()};
  Result<RankSetup> setup = PrepareRank(parsed.options, place);
  if (!setup.ok()) return {.exit_code = kFailed, .failure = setup.status().message()};
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

Status RunMpiRouter(MpiWorld& world, const ServeSetup& setup, RankMetrics& metrics) {
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<Transport> transport,
                       MakeMpiTransport(world, {.limits = setup.transport_limits}));
  ThreadPool pool(PoolOptions(setup));
  return RunRouter(setup, pool, metrics, *transport);
}

Status RunMpiWorker(MpiWorld& world, const ServeSetup& setup, RankMetrics& metrics) {
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<WorkerEndpoint> endpoint,
                       MakeMpiEndpoint(world, {.limits = setup.transport_limits}));
  ThreadPool pool(PoolOptions(setup));
  return RunWorker({.setup = setup,
                    .worker = WorkerId(world.rank().value() - 1),
                    .pool = pool,
                    .metrics = &metrics,
                    .transport = "mpi"},
                   *endpoint);
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
      start.exit_code = kFailed;
      start.failure = started.status().message();
    }
  }
  const Result<int> agreed = AgreeToStart(world, "moe_serve", start.exit_code, start.failure);
  if (!agreed.ok()) return Report(agreed.status());
  if (*agreed != 0) return *agreed;

  const Status status =
      router ? RunMpiRouter(world, *start.setup, *metrics) : RunMpiWorker(world, *start.setup, *metrics);
  if (status.ok()) return 0;
  // What a worker could not do it has told the router, who reports it.
  if (router) Report(status);
  if (status.code() == StatusCode::kDeadlineExceeded) LeaveJob(kFailed);
  return kFailed;
}

int Main(int argc, char** argv) {
  const bool launched = LaunchedByMpi();
  InstallSignalHandlers(launched);
  const ParsedServeOptions parsed = ParseServeOptions(argc, argv);
  if (!parsed.run && parsed.exit_code == 0) {
    if (IsFirstLaunchedRank()) std::fputs(parsed.text.c_str(), stdout);
    return 0;
  }
  spdlog::set_default_logger(spdlog::stderr_color_mt("moe_serve"));
  if (parsed.run) spdlog::set_level(spdlog::level::from_str(parsed.options.log_level));
  return launched ? RunLaunched(parsed) : RunEmbedded(parsed);
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) { return moe::Main(argc, argv); }
