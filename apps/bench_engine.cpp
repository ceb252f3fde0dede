#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/bench_commands.h"
#include "apps/bench_job.h"
#include "apps/rank_flags.h"
#include "bench/engine/engine_bench.h"
#include "bench/engine/local_engine.h"
#include "bench/engine/roofs.h"
#include "core/date.h"
#include "core/text.h"
#include "kernels/kernels.h"
#include "ranks/router_engine.h"
#include "router/trace_recorder.h"

namespace moe {
namespace {

struct EngineFlags {
  EngineBenchOptions bench;
  RankOptions rank;
  bool roofs = true;
  std::filesystem::path trace;
  std::uint64_t trace_limit = std::uint64_t{4} << 30;
  OutputFlags output;
};

constexpr const char* kEngineExamples = R"(Examples:
  # prefill of 512 tokens and decode of 64, one, four and 32 sequences at a time
  moe_bench engine --model models/eight-languages-moe
  # one thread, short, JSON for a program
  moe_bench engine --model DIR -p 128 -n 32 -b 1,8 -r 5 --threads 1 --json
  # what micro-batches win, beside what they should
  mpirun --oversubscribe --bind-to none -n 3 moe_bench engine --model DIR --micro-batches 1,2,3,4 -b 32
  # what recording a routing trace costs: every test with and without it, in turns
  moe_bench engine --model DIR -p 512 -n 64 -b 32 -r 11 --no-roofs --trace /tmp/cost.moetrace
  # over four processes: rank 0 routes and measures, the others host the experts
  mpirun --oversubscribe --bind-to none -n 4 moe_bench engine --model DIR -p 0 -n 64
Every sequence has random tokens of its own. Exit code: 0 done, 1 it could not be run, 2 bad usage.
Definitions of all figures: docs/benchmarks.md.)";

// The engine is set up for the most that are asked for.
void TakeMicroBatches(const std::vector<std::string>& words, EngineFlags& flags) {
  flags.bench.micro_batches.clear();
  for (const std::string& word : words)
    flags.bench.micro_batches.push_back(word == "auto" ? EngineBenchOptions::kEnginesChoice : std::stoi(word));
  flags.rank.micro_batches = std::ranges::max(flags.bench.micro_batches);
}

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
  command
      .add_option_function<std::vector<std::string>>(
          "--micro-batches", [&flags](const std::vector<std::string>& words) { TakeMicroBatches(words, flags); },
          "list of parts of a step in flight at a time, 1 to 4, in turns and beside what is predicted; auto: one or "
          "two, "
          "by the time that each takes")
      ->delimiter(',')
      ->default_str("auto")
      ->check(CLI::IsMember({"auto", "1", "2", "3", "4"}));
  static_assert(kMaxMicroBatches == 4, "as many as the choices above");
  command.add_option("--seed", bench.seed, "names the tokens")->capture_default_str();
  command.add_option("--trace", flags.trace, "run every test also while its routing is recorded in this file");
  command.add_option("--trace-limit", flags.trace_limit, "bytes of that file, which must hold all of it")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  command
      .add_flag("--roofs,!--no-roofs", flags.roofs, "measure the machine beside every repetition, for S-MBU and S-MFU")
      ->default_str("true");
  AddOutputFlags(command, flags.output);
  command.footer(kEngineExamples);
}

// Null unless --trace asks for one.
Result<std::unique_ptr<TraceRecorder>> StartTrace(const EngineFlags& flags, const RankSetup& setup) {
  if (flags.trace.empty()) return std::unique_ptr<TraceRecorder>();
  if (setup.config.num_experts() == 0) return InvalidArgument("--trace needs a model with experts");
  TraceHeader header = MakeTraceHeader(setup.config, setup.placement);
  header.model = std::filesystem::canonical(flags.rank.model).filename().string();
  header.weight_type = std::string(Name(setup.weight_types.mlps));
  header.routing = RoutingName(setup.routing);
  return TraceRecorder::Start({.path = flags.trace,
                               .existing = TraceRecorder::Existing::kReplace,
                               .limit_bytes = flags.trace_limit,
                               .max_step_rows = setup.exchange.max_tokens},
                              std::move(header));
}

// That every traced run was really recorded.
Status CheckTrace(TraceRecorder& recorder) {
  std::promise<TraceProgress> ended;
  recorder.Finish([&](const TraceProgress& end) { ended.set_value(end); });
  const TraceProgress end = ended.get_future().get();
  MOE_RETURN_IF_ERROR(end.failure);
  if (end.end == TraceEnd::kLimit)
    return ResourceExhausted("--trace ", end.path, " reached its limit of bytes (--trace-limit) before the last test");
  if (end.dropped > 0)
    return ResourceExhausted("--trace ", end.path, ": the disk did not keep up, ", end.dropped,
                             " steps were left out; what was measured is not recording");
  return Status::Ok();
}

// Measures on the rank that is the router, and writes the report.
class EngineReport {
 public:
  EngineReport(const CLI::App& command, const EngineFlags& flags) : command_(command), flags_(flags) {}

  /// Before this process is confined to its share of the processors, so that the machine is measured on all of them;
  /// `one_machine`: of the job's ranks.
  void Begin(bool one_machine) {
    when_ = NowUtc();
    host_ = DescribeHost();
    if (!flags_.roofs || !one_machine) return;
    probe_.emplace(RoofOptions{}, SimdKernels().name());
  }

  /// Gives the exit code.
  Result<int> Run(const RankSetup& setup, RouterEngine& router, std::string_view transport) {
    MOE_ASSIGN_OR_RETURN(const std::unique_ptr<TraceRecorder> recorder, StartTrace(flags_, setup));
    const BenchedEngine engine{setup, router, probe_ ? &*probe_ : nullptr, recorder.get()};
    MOE_ASSIGN_OR_RETURN(const std::vector<EngineTestResult> results,
                         RunEngineBench(flags_.bench, engine, [&](const EngineTest& test) {
                           Announce(Cat(test.name(), ", batch ", test.batch));
                         }));
    if (recorder) MOE_RETURN_IF_ERROR(CheckTrace(*recorder));
    if (const std::optional<MachineRates> machine = MedianMachine(results)) {
      host_.read_bandwidth_bytes_per_s = machine->read_bytes_per_s;
      host_.peak_flops = machine->fp32_operations_per_s;
    }
    const EngineBenchContext context{.model = std::filesystem::canonical(flags_.rank.model).filename().string(),
                                     .weight_type = std::string(Name(setup.weight_types.mlps)),
                                     .kv_type = std::string(Name(setup.kv_type)),
                                     .transport = std::string(transport),
                                     .routing = RoutingName(setup.routing),
                                     .threads = setup.threads,
                                     .ranks = setup.topology.ranks(),
                                     .sparse_layers = setup.config.sparse_layers().size()};
    return WriteReport(command_, flags_.output,
                       {.kind = "engine",
                        .when = when_,
                        .host = host_,
                        .results_json = EngineResultsJson(results, context),
                        .table = EngineTable(results, context)});
  }

 private:
  const CLI::App& command_;
  const EngineFlags& flags_;
  std::string when_;
  HostDescription host_;
  std::optional<MachineProbe> probe_;
};

Result<int> RunAlone(const EngineFlags& flags, RankSetup setup, EngineReport& report) {
  MOE_ASSIGN_OR_RETURN(const KvPlan kv, PlanCache(flags.bench, setup));
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<LocalEngine> engine, LocalEngine::Load(std::move(setup), kv));
  TellAboutWeightCache(engine->setup());
  return report.Run(engine->setup(), engine->router(), "inprocess");
}

Result<int> RunOver(const EngineFlags& flags, const RankSetup& setup, ThreadPool& pool, Transport& transport,
                    EngineReport& report) {
  MOE_ASSIGN_OR_RETURN(const KvPlan kv, PlanCache(flags.bench, setup));
  MOE_ASSIGN_OR_RETURN(LoadedWeights weights, LoadRouter(setup, pool, transport));
  TellAboutWeightCache(setup);
  RouterEngine router({.kv = kv}, setup, pool, transport, std::move(weights), nullptr);
  return report.Run(setup, router, transport.name());
}

Result<int> Run(const CLI::App& command, EngineFlags& flags) {
  MOE_RETURN_IF_ERROR(CheckMicroBatches(flags.bench.micro_batches));
  EngineReport report(command, flags);
  return RunBenchJob({.rank = flags.rank,
                      .output = flags.output,
                      .prepare_alone = [&] { return PrepareEmbedded(flags.rank); },
                      .check =
                          [&](const RankSetup& setup) {
                            const Status status = CheckEngineBench(flags.bench, setup);
                            return status.ok() ? PlanCache(flags.bench, setup).status() : status;
                          },
                      .begin = [&](bool one_machine) { report.Begin(one_machine); },
                      .run_alone = [&](RankSetup setup) { return RunAlone(flags, std::move(setup), report); },
                      .run = [&](const RankSetup& setup, ThreadPool& pool,
                                 Transport& transport) { return RunOver(flags, setup, pool, transport, report); }});
}

}  // namespace

BenchCommand AddEngineCommand(CLI::App& app) {
  return MakeCommand(app, "engine", "Prefill and decode in this process or an MPI job, without a server.",
                     AddEngineFlags, Run);
}

}  // namespace moe
