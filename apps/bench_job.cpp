#include "apps/bench_job.h"

#include <unistd.h>

#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/text.h"
#include "ranks/expert_host.h"
#include "ranks/job_transport.h"
#include "ranks/mpi_job.h"
#include "ranks/rank_device.h"
#include "ranks/router_engine.h"

namespace moe {
namespace {

Result<RankSetup> Prepare(const BenchJob& job, const RankPlace& place) {
  MOE_RETURN_IF_ERROR(CheckTransport(job.rank.transport, !place.topology.embedded));
  MOE_RETURN_IF_ERROR(CheckWeightCache(job.rank.weight_cache));
  MOE_ASSIGN_OR_RETURN(std::unique_ptr<RankDevice> device, BindDevice(job.rank, place));
  Result<RankSetup> setup = place.topology.embedded ? job.prepare_alone() : PrepareRank(job.rank, place);
  if (!setup.ok()) return setup;
  setup->device = std::move(device);
  if (job.check) MOE_RETURN_IF_ERROR(job.check(*setup));
  return setup;
}

int RunAlone(const BenchJob& job) {
  if (const Status status = CheckOutput(job.output); !status.ok()) return FailBecause(status);
  Result<RankSetup> setup = Prepare(job, {.topology = {.workers = 1, .embedded = true}});
  if (!setup.ok()) return FailBecause(setup.status());
  job.begin(/*one_machine=*/true);
  const Result<int> code = job.run_alone(*std::move(setup));
  return code.ok() ? *code : FailBecause(code.status());
}

// A worker's exit code counts for nothing: the router's is the job's.
Result<int> RunRole(const BenchJob& job, MpiWorld& world, const RankSetup& setup) {
  ThreadPool pool(PoolOptions(setup));
  if (setup.rank == setup.topology.router()) {
    MOE_ASSIGN_OR_RETURN(const std::unique_ptr<JobRouterEnd> end,
                         MakeJobRouterEnd(world, job.rank.transport, setup.transport_limits, setup.device.get()));
    const Result<int> code = job.run(setup, pool, end->transport());
    MOE_RETURN_IF_ERROR(EndWorkers(end->transport(), code.status()));
    return code;
  }
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<JobWorkerEnd> end,
                       MakeJobWorkerEnd(world, job.rank.transport, setup.transport_limits, setup.device.get()));
  const Status served = ServeExperts(setup, WorkerId(setup.rank.value() - 1), pool, end->endpoint());
  TellAboutWeightCache(setup);
  if (!served.ok()) return served;
  return 0;
}

int RunLaunched(const BenchJob& job) {
  MpiWorld world;
  if (world.size() == 1) return RunAlone(job);
  const RankPlace place = PlaceOf(world);
  const bool router = place.rank == place.topology.router();
  // The others wait in the agreement below meanwhile.
  if (router) job.begin(world.node_local_size() == world.size());
  const Result<RankSetup> setup = Prepare(job, place);
  Status ready = setup.status();
  if (router && ready.ok()) ready = CheckOutput(job.output);
  const Result<int> agreed = AgreeToStart(world, "moe_bench", ready.ok() ? 0 : ExitCode(ready), ready.message());
  if (!agreed.ok()) return FailBecause(agreed.status());
  if (*agreed != 0) return *agreed;
  const Result<int> code = RunRole(job, world, *setup);
  if (code.ok()) return *code;
  // What a worker could not do it has told the router, who reports it.
  if (router) FailBecause(code.status());
  if (MustLeaveJob(job.rank.transport, code.status())) LeaveJob(kExitFailed);
  return kExitFailed;
}

}  // namespace

int RunBenchJob(const BenchJob& job) { return LaunchedByMpi() ? RunLaunched(job) : RunAlone(job); }

void TellAboutWeightCache(const RankSetup& setup) {
  if (!setup.weight_cache) return;
  const WeightCacheReport report = setup.weight_cache->report();
  std::vector<std::string> lines = report.Warnings();
  if (isatty(STDERR_FILENO) != 0 && !report.Summary().empty()) lines.push_back(report.Summary());
  for (const std::string& line : lines) std::cerr << Cat("moe_bench: rank ", setup.rank, ": ", line, "\n");
}

}  // namespace moe
