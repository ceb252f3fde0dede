#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/bench_commands.h"
#include "apps/rank_flags.h"
#include "bench/engine/engine_bench.h"
#include "bench/engine/local_engine.h"
#include "bench/engine/roofs.h"
#include "core/text.h"
#include "ranks/expert_host.h"
#include "ranks/mpi_job.h"
#include "transport/mpi/mpi_transport.h"

namespace moe {
namespace {

struct EngineFlags {
  EngineBenchOptions bench;
  RankOptions rank;
  bool roofs = true;
  OutputFlags output;
};

constexpr const char* kEngineExamples = R"(Examples:
  # prefill of 512 tokens and decode of 64, one, four and 32 sequences at a time
  moe_bench engine --model models/eight-languages-moe
  # one thread, short, JSON for a program
  moe_bench engine --model DIR -p 128 -n 32 -b 1,8 -r 5 --threads 1 --json
  # over four processes: rank 0 routes and measures, the others host the experts
  mpirun --oversubscribe --bind-to none -n 4 moe_bench engine --model DIR -p 0 -n 64
Every sequence has random tokens of its own. Exit code: 0 done, 1 it could not be run, 2 bad usage.
Definitions of all figures: docs/benchmarks.md.)";

void AddEngineFlags(CLI::App& command, EngineFlags& flags) {
  FlagAdder add(command);
  AddRankFlags(add, flags.rank);
  EngineBenchOptions& bench = flags.bench;
  command.add_option("-p,--prompt-lengths", bench.prompt_lengths, "list of tokens to prefill (ppP); 0: none")
      ->delimiter(',')
      ->capture_default_str();
  command.add_option("-n,--generate", bench.generated, "list of tokens to decode (tgN); 0: none")
      ->delimiter(',')
      ->capture_default_str();
  command.add_option("-b,--batches", bench.batches, "list of sequences at a time")
      ->delimiter(',')
      ->capture_default_str();
  command.add_option("-r,--repetitions", bench.repetitions, "runs of each test, after a warm-up")
      ->capture_default_str();
  command.add_option("--seed", bench.seed, "names the tokens")->capture_default_str();
  command.add_flag("--roofs,!--no-roofs", flags.roofs, "measure the machine, for S-MBU and S-MFU")->default_str("true");
  AddOutputFlags(command, flags.output);
  command.footer(kEngineExamples);
}

// Measures on the rank that is the router, and writes the report.
class EngineReport {
 public:
  EngineReport(const CLI::App& command, const EngineFlags& flags) : command_(command), flags_(flags) {}

  /// Before this process is confined to its share of the processors; `one_machine`: of the job's ranks.
  void Begin(bool one_machine) {
    when_ = NowUtc();
    host_ = DescribeHost();
    if (!flags_.roofs || !one_machine) return;
    roofs_ = MeasureRoofs({});
    host_.read_bandwidth_bytes_per_s = roofs_->read_bandwidth_bytes_per_s;
    host_.peak_flops = roofs_->peak_flops;
  }

  Status Run(const RankSetup& setup, RouterEngine& router, std::string_view transport) {
    const bool terminal = isatty(STDERR_FILENO) != 0;
    MOE_ASSIGN_OR_RETURN(const std::vector<EngineTestResult> results,
                         RunEngineBench(flags_.bench, setup, router, [&](const EngineTest& test) {
                           if (terminal) std::cerr << "moe_bench: " << test.name() << ", batch " << test.batch << '\n';
                         }));
    const EngineBenchContext context{.model = std::filesystem::canonical(flags_.rank.model).filename().string(),
                                     .weight_type = std::string(Name(setup.weight_types.mlps)),
                                     .kv_type = std::string(Name(setup.kv_type)),
                                     .transport = std::string(transport),
                                     .threads = setup.threads,
                                     .ranks = setup.topology.ranks(),
                                     .sparse_layers = setup.config.sparse_layers().size(),
                                     .roofs = roofs_};
    exit_code_ = WriteReport(command_, flags_.output,
                             {.kind = "engine",
                              .when = when_,
                              .host = host_,
                              .results_json = EngineResultsJson(results, context),
                              .table = EngineTable(results, context)});
    return Status::Ok();
  }

  int exit_code() const { return exit_code_; }

 private:
  const CLI::App& command_;
  const EngineFlags& flags_;
  std::string when_;
  HostDescription host_;
  std::optional<Roofs> roofs_;
  int exit_code_ = 0;
};

// What every rank works out alike.
struct Prepared {
  RankSetup setup;
  KvPlan kv;
};

Result<Prepared> Prepare(const EngineFlags& flags, const RankPlace& place) {
  MOE_RETURN_IF_ERROR(CheckTransport(flags.rank.transport, !place.topology.embedded));
  MOE_ASSIGN_OR_RETURN(RankSetup setup, PrepareRank(flags.rank, place));
  MOE_RETURN_IF_ERROR(CheckEngineBench(flags.bench, setup));
  MOE_ASSIGN_OR_RETURN(KvPlan kv, PlanCache(flags.bench, setup));
  return Prepared{.setup = std::move(setup), .kv = std::move(kv)};
}

int RunEmbedded(const EngineFlags& flags, EngineReport& report) {
  if (const Status status = CheckOutput(flags.output); !status.ok()) return FailBecause(status);
  Result<Prepared> prepared = Prepare(flags, {.topology = {.workers = 1, .embedded = true}});
  if (!prepared.ok()) return FailBecause(prepared.status());
  report.Begin(/*one_machine=*/true);
  const Result<std::unique_ptr<LocalEngine>> engine = LocalEngine::Load(std::move(prepared->setup), prepared->kv);
  if (!engine.ok()) return FailBecause(engine.status());
  const Status status = report.Run((*engine)->setup(), (*engine)->router(), "inprocess");
  return status.ok() ? report.exit_code() : FailBecause(status);
}

Status MeasureOver(Transport& transport, const Prepared& prepared, ThreadPool& pool, EngineReport& report) {
  MOE_ASSIGN_OR_RETURN(LoadedWeights weights, LoadRouter(prepared.setup, pool, transport));
  RouterEngine router({.kv = prepared.kv}, prepared.setup, pool, transport, std::move(weights), nullptr);
  return report.Run(prepared.setup, router, transport.name());
}

Status RunRole(MpiWorld& world, const Prepared& prepared, EngineReport& report) {
  const RankSetup& setup = prepared.setup;
  ThreadPool pool(PoolOptions(setup));
  if (setup.rank == setup.topology.router()) {
    MOE_ASSIGN_OR_RETURN(const std::unique_ptr<Transport> transport,
                         MakeMpiTransport(world, {.limits = setup.transport_limits}));
    return EndWorkers(*transport, MeasureOver(*transport, prepared, pool, report));
  }
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<WorkerEndpoint> endpoint,
                       MakeMpiEndpoint(world, {.limits = setup.transport_limits}));
  return ServeExperts(setup, WorkerId(setup.rank.value() - 1), pool, *endpoint);
}

int RunLaunched(const EngineFlags& flags, EngineReport& report) {
  MpiWorld world;
  if (world.size() == 1) return RunEmbedded(flags, report);
  const RankPlace place = PlaceOf(world);
  const bool router = place.rank == place.topology.router();
  // The others wait in the agreement below meanwhile.
  if (router) report.Begin(world.node_local_size() == world.size());
  Result<Prepared> prepared = Prepare(flags, place);
  Status ready = prepared.ok() ? Status::Ok() : prepared.status();
  if (router && ready.ok()) ready = CheckOutput(flags.output);
  const Result<int> agreed = AgreeToStart(world, "moe_bench", ready.ok() ? 0 : ExitCode(ready), ready.message());
  if (!agreed.ok()) return FailBecause(agreed.status());
  if (*agreed != 0) return *agreed;
  const Status status = RunRole(world, *prepared, report);
  if (status.ok()) return report.exit_code();
  // What a worker could not do it has told the router, who reports it.
  if (router) FailBecause(status);
  if (status.code() == StatusCode::kDeadlineExceeded) LeaveJob(kExitFailed);
  return kExitFailed;
}

}  // namespace

BenchCommand AddEngineCommand(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("engine", "Prefill and decode in this process or an MPI job, without a server.");
  const auto flags = std::make_shared<EngineFlags>();
  AddEngineFlags(*command, *flags);
  FinishCommand(*command);
  return {.app = command, .run = [command, flags] {
            EngineReport report(*command, *flags);
            return LaunchedByMpi() ? RunLaunched(*flags, report) : RunEmbedded(*flags, report);
          }};
}

}  // namespace moe
