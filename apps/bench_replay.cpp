#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "apps/bench_commands.h"
#include "apps/bench_job.h"
#include "apps/rank_flags.h"
#include "bench/engine/local_workers.h"
#include "bench/engine/replay_bench.h"
#include "core/date.h"
#include "core/machine.h"
#include "core/text.h"
#include "ranks/router_engine.h"
#include "router/worker_fleet.h"
#include "transport/mpi/mpi_world.h"

namespace moe {
namespace {

struct ReplayFlags {
  ReplayOptions bench;
  RankOptions rank;
  int workers = 1;
  OutputFlags output;
};

constexpr const char* kReplayExamples = R"(Examples:
  # a trace of a server, over eight processes: rank 0 routes and measures, the others host the experts
  moe_serve --model models/eight-languages-moe --trace today.moetrace
  mpirun --oversubscribe --bind-to none -n 8 moe_bench replay --trace today.moetrace --model models/eight-languages-moe
  # the same trace by another placement, over gRPC, with narrower weights
  bench/import_loads.py today.moetrace > loads.json
  mpirun --oversubscribe --bind-to none -n 8 moe_bench replay --trace today.moetrace --model models/eight-languages-moe \
    --placement auto --loads loads.json --redundant-experts 4 --transport grpc --weight-type int8
  # in one process, with three workers; JSON for a program
  moe_bench replay --trace today.moetrace --model models/eight-languages-moe --workers 3 --json
  # a shape without weights: a folder that has its config.json alone
  moe_bench engine --model DIR --load-format dummy --routing zipf:1.0 -p 512 -n 64 -b 8 --trace zipf.moetrace
  moe_bench replay --trace zipf.moetrace --model DIR --load-format dummy --workers 4
The rows are random, the experts' arithmetic is real. Exit code: 0 done, 1 it could not be run, 2 bad usage.
Definitions of all figures: docs/benchmarks.md.)";

void AddReplayFlags(CLI::App& command, ReplayFlags& flags) {
  FlagAdder add(command);
  command.add_option("--trace", flags.bench.trace, "routing trace to replay")->required();
  AddExpertFlags(add, flags.rank);
  command.add_option("--workers", flags.workers, "workers in this process; under mpirun the ranks say how many")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command.add_option("--steps", flags.bench.steps, "replay the first so many steps; 0: all")->capture_default_str();
  command.add_option("-r,--repetitions", flags.bench.repetitions, "passes over the trace, after a warm-up")
      ->capture_default_str();
  command
      .add_option("--calibrate", flags.bench.calibrate,
                  "one step in so many says what things cost; the cost model predicts the others")
      ->capture_default_str();
  command.add_option("--seed", flags.bench.seed, "names the rows")->capture_default_str();
  AddOutputFlags(command, flags.output);
  command.footer(kReplayExamples);
}

// Measures on the rank that is the router, and writes the report.
class ReplayReport {
 public:
  ReplayReport(const CLI::App& command, const ReplayFlags& flags) : command_(command), flags_(flags) {}

  void Begin() {
    when_ = NowUtc();
    host_ = DescribeHost();
  }

  /// Over workers that load and serve. Gives the exit code.
  Result<int> Run(const RankSetup& setup, ThreadPool& pool, Transport& transport) {
    MOE_ASSIGN_OR_RETURN(const std::vector<WorkerDescription> workers, AwaitWorkers(setup, transport));
    ReplayOptions options = flags_.bench;
    options.local = WorkersOn(HostName(), workers);
    TellAboutWeightCache(setup);
    MOE_ASSIGN_OR_RETURN(const ReplayResult result, RunReplay(options, setup, pool, transport, [&](std::size_t pass) {
                           Announce(Cat("pass ", pass + 1));
                         }));
    const ReplayContext context{.model = std::filesystem::canonical(flags_.rank.model).filename().string(),
                                .weight_type = std::string(Name(setup.weight_types.mlps)),
                                .exchange_type = std::string(Name(setup.exchange.type)),
                                .placement = flags_.rank.placement,
                                .slots = MostSlots(setup.placement),
                                .transport = std::string(transport.name()),
                                .threads = setup.threads,
                                .ranks = setup.topology.ranks(),
                                .workers = setup.topology.workers};
    return WriteReport(command_, flags_.output,
                       {.kind = "replay",
                        .when = when_,
                        .host = host_,
                        .results_json = ReplayResultsJson(result, context),
                        .table = ReplayTable(result, context)});
  }

 private:
  const CLI::App& command_;
  const ReplayFlags& flags_;
  std::string when_;
  HostDescription host_;
};

Result<int> RunAlone(const RankSetup& setup, ReplayReport& report) {
  ThreadPool pool(PoolOptions(setup));
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<LocalWorkers> workers, LocalWorkers::Start(setup, pool));
  return report.Run(setup, pool, workers->transport());
}

Result<int> Run(const CLI::App& command, ReplayFlags& flags) {
  MOE_RETURN_IF_ERROR(CheckReplay(flags.bench));
  if (LaunchedByMpi() && command.count("--workers") > 0)
    return InvalidArgument("--workers ", flags.workers, ": under mpirun every rank but the first is a worker");
  flags.rank.micro_batches = 1;
  ReplayReport report(command, flags);
  return RunBenchJob({.rank = flags.rank,
                      .output = flags.output,
                      .prepare_alone = [&] { return PrepareLocalWorkers(flags.rank, flags.workers); },
                      .check = {},
                      .begin = [&](bool) { report.Begin(); },
                      .run_alone = [&](const RankSetup& setup) { return RunAlone(setup, report); },
                      .run = [&](const RankSetup& setup, ThreadPool& pool,
                                 Transport& transport) { return report.Run(setup, pool, transport); }});
}

}  // namespace

BenchCommand AddReplayCommand(CLI::App& app) {
  return MakeCommand(app, "replay", "The expert side of a recorded routing trace, measured and predicted.",
                     AddReplayFlags, Run);
}

}  // namespace moe
