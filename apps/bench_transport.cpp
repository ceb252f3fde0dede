#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/bench_commands.h"
#include "bench/transport/exchange_bench.h"
#include "bench/transport/in_process_paths.h"
#include "bench/transport/raw_mpi.h"
#include "ranks/mpi_job.h"
#include "transport/mpi/mpi_transport.h"

namespace moe {
namespace {

struct TransportFlags {
  ExchangeBenchOptions bench;
  std::string type{Name(bench.type)};
  std::optional<int> workers;
  OutputFlags output;
};

constexpr const char* kTransportExamples = R"(Examples:
  # rows of 2048 bf16 to seven ranks and back, beside a bare MPI loop of the same bytes
  mpirun --oversubscribe --bind-to none -n 8 moe_bench transport --rows 64 --hidden 2048 --exchange-type bf16
  # the transport inside one process, beside a plain copy
  moe_bench transport --workers 1
Exit code: 0 done, 1 it could not be run, 2 bad usage. Definitions of all figures: docs/benchmarks.md.)";

void AddTransportFlags(CLI::App& command, TransportFlags& flags) {
  ExchangeBenchOptions& bench = flags.bench;
  command.add_option("--rows", bench.rows, "list of rows to each worker, and back")
      ->delimiter(',')
      ->capture_default_str();
  command.add_option("--hidden", bench.hidden, "elements of a row")->capture_default_str();
  command.add_option("--exchange-type", flags.type, "type of the elements: f32, bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->each([&bench](const std::string& word) {
        bench.type = word == Name(ExchangeType::kBf16) ? ExchangeType::kBf16 : ExchangeType::kF32;
      })
      ->capture_default_str();
  command.add_option("--repetitions", bench.repetitions, "turns of the transport and of its baseline")
      ->capture_default_str();
  command.add_option("--exchanges", bench.exchanges, "exchanges of a turn")->capture_default_str();
  command.add_option("--workers", flags.workers, "worker threads; under mpirun with two or more ranks: all but one")
      ->check(CLI::Range(1, 256));
  AddOutputFlags(command, flags.output);
  command.footer(kTransportExamples);
}

Status Check(const TransportFlags& flags, int ranks) {
  MOE_RETURN_IF_ERROR(CheckExchangeBench(flags.bench));
  if (flags.workers && ranks > 1)
    return InvalidArgument("--workers ", *flags.workers, " is for one process; mpirun started ", ranks, " ranks");
  return Status::Ok();
}

void Announce(std::size_t rows) {
  if (isatty(STDERR_FILENO) != 0) std::cerr << "moe_bench: " << rows << " row(s)\n";
}

int Report(const CLI::App& command, const TransportFlags& flags, const std::string& when, int ranks, int workers,
           const std::vector<ExchangeResult>& results) {
  const ExchangeBenchContext context{
      .ranks = ranks, .workers = workers, .hidden = flags.bench.hidden, .type = std::string(Name(flags.bench.type))};
  return WriteReport(command, flags.output,
                     {.kind = "transport",
                      .when = when,
                      .host = DescribeHost(),
                      .results_json = ExchangeResultsJson(results, context),
                      .table = ExchangeTable(results, context)});
}

Result<int> RunInProcess(const CLI::App& command, const TransportFlags& flags) {
  MOE_RETURN_IF_ERROR(Check(flags, 1));
  MOE_RETURN_IF_ERROR(CheckOutput(flags.output));
  const std::string when = NowUtc();
  const int workers = flags.workers.value_or(1);
  MOE_ASSIGN_OR_RETURN(const std::vector<ExchangeResult> results,
                       RunExchangeBenchInProcess(flags.bench, workers, Announce));
  return Report(command, flags, when, /*ranks=*/1, workers, results);
}

Result<int> RunRouter(MpiWorld& world, const CLI::App& command, const TransportFlags& flags) {
  const std::string when = NowUtc();
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<Transport> transport,
                       MakeMpiTransport(world, {.limits = LimitsOf(flags.bench)}));
  std::vector<std::unique_ptr<RouterPath>> baselines;
  MOE_ASSIGN_OR_RETURN(baselines.emplace_back(), MakeRawMpiRouter(world, LargestBytes(flags.bench)));
  MOE_ASSIGN_OR_RETURN(const std::vector<ExchangeResult> results,
                       RunExchangeBench(flags.bench, *transport, baselines, Announce));
  return Report(command, flags, when, world.size(), world.size() - 1, results);
}

Result<int> RunWorker(MpiWorld& world, const TransportFlags& flags) {
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<WorkerEndpoint> endpoint,
                       MakeMpiEndpoint(world, {.limits = LimitsOf(flags.bench)}));
  std::vector<std::unique_ptr<WorkerPath>> baselines;
  MOE_ASSIGN_OR_RETURN(baselines.emplace_back(), MakeRawMpiWorker(world, LargestBytes(flags.bench)));
  MOE_RETURN_IF_ERROR(ServeExchangeBench(*endpoint, baselines));
  return 0;
}

int RunLaunched(const CLI::App& command, const TransportFlags& flags) {
  MpiWorld world;
  if (world.size() == 1) {
    const Result<int> code = RunInProcess(command, flags);
    return code.ok() ? *code : FailBecause(code.status());
  }
  const bool router = world.rank() == PlaceOf(world).topology.router();
  Status ready = Check(flags, world.size());
  if (router && ready.ok()) ready = CheckOutput(flags.output);
  const Result<int> agreed = AgreeToStart(world, "moe_bench", ready.ok() ? 0 : ExitCode(ready), ready.message());
  if (!agreed.ok()) return FailBecause(agreed.status());
  if (*agreed != 0) return *agreed;
  const Result<int> code = router ? RunRouter(world, command, flags) : RunWorker(world, flags);
  if (code.ok()) return *code;
  std::cerr << "moe_bench: rank " << world.rank() << ": " << code.status().message() << '\n';
  // The others may wait in a bare loop, where nothing tells them.
  LeaveJob(kExitFailed);
}

}  // namespace

BenchCommand AddTransportCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "transport", "Rows to all workers and back, by a transport and by a bare loop, in one process or an MPI job.");
  const auto flags = std::make_shared<TransportFlags>();
  AddTransportFlags(*command, *flags);
  FinishCommand(*command);
  return {.app = command, .run = [command, flags] {
            if (LaunchedByMpi()) return RunLaunched(*command, *flags);
            const Result<int> code = RunInProcess(*command, *flags);
            return code.ok() ? *code : FailBecause(code.status());
          }};
}

}  // namespace moe
