#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "apps/bench_commands.h"
#include "bench/transport/exchange_bench.h"
#include "bench/transport/grpc_paths.h"
#include "bench/transport/in_process_paths.h"
#include "bench/transport/raw_grpc.h"
#include "bench/transport/raw_mpi.h"
#include "bench/transport/transport_choice.h"
#include "core/date.h"
#include "core/text.h"
#include "ranks/job_transport.h"
#include "ranks/mpi_job.h"
#include "ranks/rank_device.h"

namespace moe {
namespace {

// From the smallest message of a transport to one of a long prompt's rows.
const std::vector<std::size_t> kDefaultBytes = {64,       256,       1 << 10, 4 << 10, 16 << 10,
                                                64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20};

struct TransportFlags {
  ExchangeBenchOptions bench;
  std::string type{Name(bench.type)};
  std::vector<std::string> transports = {"auto"};
  OutputFlags output;
};

constexpr const char* kTransportExamples = R"(Examples:
  # 64 B to 16 MiB by MPI, gRPC with shared memory and gRPC's streams, between the same processes and beside bare loops
  mpirun --oversubscribe --bind-to none -n 4 moe_bench transport --transports mpi,grpc,grpc_streams --workers 1,3
  # rows of 2048 bf16 to seven ranks and back, beside a bare MPI loop of the same bytes
  mpirun --oversubscribe --bind-to none -n 8 moe_bench transport --rows 64 --hidden 2048 --exchange-type bf16
  # what one process can have, with one and with four worker threads; then a picture of it
  moe_bench transport --transports all --workers 1,4 --output transport.json
  bench/plot_transport.py transport.json
Exit code: 0 done, 1 it could not be run, 2 bad usage. Definitions of all figures: docs/benchmarks.md.)";

void AddTransportFlags(CLI::App& command, TransportFlags& flags) {
  ExchangeBenchOptions& bench = flags.bench;
  command
      .add_option(
          "--transports", flags.transports,
          "list of inprocess, mpi, grpc, grpc_streams (grpc without shared memory), nccl, which take turns; auto: what "
          "a job takes by itself; all: every one that can run here")
      ->delimiter(',')
      ->capture_default_str();
  CLI::Option* bytes =
      command
          .add_option("--bytes", bench.bytes,
                      "list of payloads of a message to each worker, and back, such as 64 or 4K; 64 to "
                      "16M unless rows are asked for")
          ->delimiter(',')
          ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  for (CLI::Option* of_rows :
       {command.add_option("--rows", bench.rows, "list of rows to each worker, and back")->delimiter(','),
        command.add_option("--hidden", bench.hidden, "elements of a row"),
        command.add_option("--exchange-type", flags.type, "type of the elements: f32, bf16")
            ->check(CLI::IsMember({"f32", "bf16"}))
            ->each([&bench](const std::string& word) {
              bench.type = word == Name(ExchangeType::kBf16) ? ExchangeType::kBf16 : ExchangeType::kF32;
            })})
    of_rows->capture_default_str()->excludes(bytes);
  command.add_option("--repetitions", bench.repetitions, "turns of each transport and of its baseline")
      ->capture_default_str();
  command.add_option("--exchanges", bench.exchanges, "exchanges of a turn; fewer where --bytes are many")
      ->capture_default_str();
  command
      .add_option("--workers", bench.workers,
                  "list of workers that take part; without it, in one process 1, under mpirun all")
      ->delimiter(',')
      ->check(CLI::Range(1, 256));
  AddOutputFlags(command, flags.output);
  command.footer(kTransportExamples);
}

// Sizes in bytes unless something about rows was given, wherever it was given.
void ChooseSizes(const CLI::App& command, ExchangeBenchOptions& bench) {
  const auto given = [&](const char* flag) { return command.get_option(flag)->count() > 0; };
  const bool rows = given("--rows") || given("--hidden") || given("--exchange-type");
  if (!rows && !given("--bytes")) bench.bytes = kDefaultBytes;
}

/// What NCCL needs of this rank, or why it cannot run here.
struct NcclPlace {
  std::unique_ptr<RankDevice> device;
  std::string refusal;
};

NcclPlace LookForNccl(const TransportFlags& flags, const RankPlace& place) {
  const auto asked = [&](const char* name) { return std::ranges::count(flags.transports, name) > 0; };
  if (!asked("nccl") && !asked("all")) return {};
  if (place.topology.embedded) return {.refusal = "nccl needs mpirun with at least two ranks, a router and a worker"};
  Result<std::unique_ptr<RankDevice>> device =
      BindDevice({.transport = TransportChoice::kNccl, .backend = BackendChoice::kCpu}, place);
  if (!device.ok()) return {.refusal = Cat("nccl needs a CUDA device for each rank: ", device.status().message())};
  return {.device = *std::move(device)};
}

/// One rank's refusal is every rank's: they have to agree on what they measure. Collective.
Status AgreeOnNccl(MpiWorld& world, NcclPlace& nccl) {
  MOE_ASSIGN_OR_RETURN(const std::vector<std::string> refusals, world.GatherStrings(nccl.refusal));
  const auto first = std::ranges::find_if(refusals, [](const std::string& refusal) { return !refusal.empty(); });
  MOE_ASSIGN_OR_RETURN(nccl.refusal, world.Broadcast(first == refusals.end() ? "" : *first));
  return Status::Ok();
}

void AnnounceTest(const ExchangeTest& test) {
  Announce(Cat(test.workers, " worker(s), ", test.bytes.request, " bytes"));
}

/// What is measured, once the flags are known to be sound.
struct Plan {
  TransportSelection transports;
  std::string when;
};

/// With so many workers at most.
Result<Plan> MakePlan(const TransportFlags& flags, const TransportSurroundings& surroundings, int workers,
                      bool reports) {
  MOE_RETURN_IF_ERROR(CheckExchangeBench(flags.bench, workers));
  MOE_ASSIGN_OR_RETURN(TransportSelection transports, SelectTransports(flags.transports, surroundings));
  if (reports) MOE_RETURN_IF_ERROR(CheckOutput(flags.output));
  return Plan{.transports = std::move(transports), .when = NowUtc()};
}

void TellSkipped(const Plan& plan) {
  for (const std::string& sentence : plan.transports.skipped) std::cerr << "moe_bench: " << sentence << '\n';
}

int Report(const CLI::App& command, const TransportFlags& flags, const Plan& plan, int ranks,
           const std::vector<ExchangeResult>& results) {
  const ExchangeBenchContext context{
      .ranks = ranks, .hidden = flags.bench.hidden, .type = std::string(Name(flags.bench.type))};
  return WriteReport(command, flags.output,
                     {.kind = "transport",
                      .when = plan.when,
                      .host = DescribeHost(),
                      .results_json = ExchangeResultsJson(results, context),
                      .table = ExchangeTable(results, context)});
}

TransportChoice ChoiceNamed(std::string_view name) {
  for (const TransportChoice choice :
       {TransportChoice::kMpi, TransportChoice::kGrpc, TransportChoice::kGrpcStreams, TransportChoice::kNccl})
    if (name == JobTransportName(choice)) return choice;
  return TransportChoice::kInProcess;
}

Result<int> RunInProcess(const CLI::App& command, const TransportFlags& flags) {
  const std::vector<int>& counts = flags.bench.workers;
  const int workers = counts.empty() ? 1 : std::ranges::max(counts);
  const NcclPlace nccl = LookForNccl(flags, {.topology = {.embedded = true}});
  MOE_ASSIGN_OR_RETURN(const Plan plan, MakePlan(flags, {.nccl_refusal = nccl.refusal}, workers, /*reports=*/true));
  TellSkipped(plan);
  std::vector<std::unique_ptr<LocalEnds>> ends;
  for (const std::string& name : plan.transports.names) {
    const TransportChoice choice = ChoiceNamed(name);
    MOE_ASSIGN_OR_RETURN(ends.emplace_back(), IsGrpc(choice)
                                                  ? MakeGrpcEnds(flags.bench, workers, choice == TransportChoice::kGrpc)
                                                  : MakeInProcessEnds(flags.bench, workers));
  }
  MOE_ASSIGN_OR_RETURN(const std::vector<ExchangeResult> results,
                       RunExchangeBenchInProcess(flags.bench, workers, ends, AnnounceTest));
  return Report(command, flags, plan, /*ranks=*/1, results);
}

// The router's ends of a job, with what they stand on.
struct RouterEnds {
  std::vector<std::unique_ptr<JobRouterEnd>> ends;
  std::vector<RouterSide> sides;
};

Status OpenRouterEnd(MpiWorld& world, const std::string& name, const ExchangeBenchOptions& bench, RankDevice* device,
                     RouterEnds& into) {
  const ExchangeBytes largest = LargestBytes(bench);
  const TransportChoice choice = ChoiceNamed(name);
  MOE_ASSIGN_OR_RETURN(into.ends.emplace_back(), MakeJobRouterEnd(world, choice, LimitsOf(bench), device));
  RouterSide& side = into.sides.emplace_back(RouterSide{.transport = &into.ends.back()->transport()});
  if (choice == TransportChoice::kMpi) {
    MOE_ASSIGN_OR_RETURN(side.baselines.emplace_back(), MakeRawMpiRouter(world, largest));
    return Status::Ok();
  }
  if (choice == TransportChoice::kNccl) return Status::Ok();  // nccl-tests is its bare loop
  MOE_ASSIGN_OR_RETURN(const std::vector<std::string> addresses, GatherAddresses(world, Result<std::string>("")));
  MOE_ASSIGN_OR_RETURN(side.baselines.emplace_back(), ConnectRawGrpcRouter(addresses, largest));
  return Status::Ok();
}

Result<int> RunRouter(MpiWorld& world, const CLI::App& command, const TransportFlags& flags, const Plan& plan,
                      RankDevice* device) {
  TellSkipped(plan);
  RouterEnds job;
  for (const std::string& name : plan.transports.names)
    MOE_RETURN_IF_ERROR(OpenRouterEnd(world, name, flags.bench, device, job));
  MOE_ASSIGN_OR_RETURN(const std::vector<ExchangeResult> results,
                       RunExchangeBench(flags.bench, job.sides, AnnounceTest));
  return Report(command, flags, plan, world.size(), results);
}

struct WorkerEnds {
  std::vector<std::unique_ptr<JobWorkerEnd>> ends;
  std::vector<WorkerSide> sides;
};

// In the order of OpenRouterEnd: both are collective.
Status OpenWorkerEnd(MpiWorld& world, const std::string& name, const ExchangeBenchOptions& bench, RankDevice* device,
                     WorkerEnds& into) {
  const ExchangeBytes largest = LargestBytes(bench);
  const TransportChoice choice = ChoiceNamed(name);
  MOE_ASSIGN_OR_RETURN(into.ends.emplace_back(), MakeJobWorkerEnd(world, choice, LimitsOf(bench), device));
  WorkerSide& side = into.sides.emplace_back(WorkerSide{.endpoint = &into.ends.back()->endpoint()});
  if (choice == TransportChoice::kMpi) {
    MOE_ASSIGN_OR_RETURN(side.baselines.emplace_back(), MakeRawMpiWorker(world, largest));
    return Status::Ok();
  }
  if (choice == TransportChoice::kNccl) return Status::Ok();
  Result<std::unique_ptr<RawGrpcWorker>> raw = StartRawGrpcWorker(JobListenAddress(world), largest);
  const Result<std::string> address = raw.ok() ? Result<std::string>((*raw)->address()) : raw.status();
  MOE_RETURN_IF_ERROR(GatherAddresses(world, address).status());
  MOE_RETURN_IF_ERROR((*raw)->Accept());
  side.baselines.push_back(*std::move(raw));
  return Status::Ok();
}

Result<int> RunWorker(MpiWorld& world, const TransportFlags& flags, const Plan& plan, RankDevice* device) {
  WorkerEnds job;
  for (const std::string& name : plan.transports.names)
    MOE_RETURN_IF_ERROR(OpenWorkerEnd(world, name, flags.bench, device, job));
  MOE_RETURN_IF_ERROR(ServeExchangeBench(job.sides));
  return 0;
}

int RunLaunched(const CLI::App& command, const TransportFlags& flags) {
  MpiWorld world;
  if (world.size() == 1) {
    const Result<int> code = RunInProcess(command, flags);
    return code.ok() ? *code : FailBecause(code.status());
  }
  const RankPlace place = PlaceOf(world);
  const bool router = world.rank() == place.topology.router();
  NcclPlace nccl = LookForNccl(flags, place);
  if (const Status status = AgreeOnNccl(world, nccl); !status.ok()) return FailBecause(status);
  const Result<Plan> plan = MakePlan(flags, {.ranks = world.size(), .nccl_refusal = nccl.refusal}, world.size() - 1,
                                     /*reports=*/router);
  const Result<int> agreed =
      AgreeToStart(world, "moe_bench", plan.ok() ? 0 : ExitCode(plan.status()), plan.status().message());
  if (!agreed.ok()) return FailBecause(agreed.status());
  if (*agreed != 0) return *agreed;
  const Result<int> code = router ? RunRouter(world, command, flags, *plan, nccl.device.get())
                                  : RunWorker(world, flags, *plan, nccl.device.get());
  if (code.ok()) return *code;
  std::cerr << "moe_bench: rank " << world.rank() << ": " << code.status().message() << '\n';
  // The others may wait in a bare loop, where nothing tells them.
  LeaveJob(kExitFailed);
}

Result<int> Run(const CLI::App& command, TransportFlags& flags) {
  ChooseSizes(command, flags.bench);
  return LaunchedByMpi() ? RunLaunched(command, flags) : RunInProcess(command, flags);
}

}  // namespace

BenchCommand AddTransportCommand(CLI::App& app) {
  return MakeCommand(app, "transport",
                     "Messages to workers and back, by transports and by bare loops, in one process or an MPI job.",
                     AddTransportFlags, Run);
}

}  // namespace moe
