#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>

#include "apps/plan_commands.h"
#include "apps/plan_server.h"
#include "bench/plan/memory_plan.h"
#include "bench/plan/placement_report.h"
#include "core/replace_file.h"
#include "core/units.h"
#include "placement/loads_file.h"
#include "placement/trace_loads.h"

namespace moe {
namespace {

constexpr const char* kPlacementExamples = R"(Examples:
  moe_plan placement --loads loads.json --workers 8 --slots 72
  moe_plan placement --loads loads.json --algorithm eplb --workers 8 --slots 72 --nodes 2 --groups 4 --json
  moe_plan placement --loads loads.json --workers 8 --slots 72 --current now.json --bytes-per-expert 44MB --output new.json
  moe_plan placement --trace today.moetrace --workers 8 --slots 72     a trace that moe_serve --trace recorded
  moe_plan placement --server 127.0.0.1:50051 --migration-bandwidth 1GB/s    should that one be rebalanced?)";

struct PlacementFlags {
  PlacementAlgorithm algorithm = PlacementAlgorithm::kAuto;
  /// What flags say of it; loads and the current placement come from files.
  PlacementProblem problem;
  std::vector<std::size_t> worker_slots;
  std::filesystem::path loads;
  std::filesystem::path trace;
  std::string server;
  std::chrono::milliseconds server_timeout{10'000};
  std::filesystem::path current;
  double steps = 0;
  StepCost cost;
  VerdictOptions verdict;
  const CLI::Option* migration_slowdown = nullptr;  // whether it was given
  std::string migration_bandwidth = "64MiB/s";
  std::string bytes_per_expert;
  std::filesystem::path output;
  bool json = false;
};

/// What a step costs and when moving pays.
void AddVerdictFlags(FlagAdder& add, PlacementFlags& flags) {
  constexpr double kMostSeconds = 1e9;
  const auto seconds = [&](const char* name, double& value, const char* help) {
    add.Add(name, value, help)->check(CLI::Range(0.0, kMostSeconds));
  };
  add.Add("--steps", flags.steps, "With --loads: steps whose tokens those are; 0: unknown, and so is any time")
      ->check(CLI::Range(0.0, 1e15));
  seconds("--step-seconds", flags.cost.step_seconds, "Of a mean step as it is now; 0: unknown, or the server's");
  seconds("--exposed-seconds", flags.cost.exposed_seconds,
          "Of a mean step: waiting while the busiest worker computes; 0: unknown, or the server's");
  seconds("--row-seconds", flags.cost.row_seconds,
          "That a worker takes for one more row, a token at an expert; 0: unknown, or the server's");
  seconds("--worker-seconds", flags.cost.worker_seconds, "That a worker takes in a step beside its rows");
  add.Add("--migration-bandwidth", flags.migration_bandwidth,
          "Bytes a second that each worker gets when experts move: 64MiB/s, 1GB/s");
  flags.migration_slowdown =
      add.Add("--migration-slowdown", flags.verdict.migration_slowdown,
              "Share of the throughput that is lost while experts move; of a server that has measured it, that")
          ->check(CLI::Range(0.0, 1.0));
  add.Add("--least-gain", flags.verdict.least_gain, "Share of a mean step that moving must win")
      ->check(CLI::Range(0.0, 1.0));
  seconds("--horizon", flags.verdict.horizon_seconds,
          "Seconds that the load is trusted to last: by then moving must have been earned back");
}

void AddPlacementFlags(FlagAdder& add, PlacementFlags& flags) {
  PlacementProblem& p = flags.problem;
  Choices<PlacementAlgorithm> algorithms;
  for (const PlacementAlgorithm algorithm : {PlacementAlgorithm::kLinear, PlacementAlgorithm::kRoundRobin,
                                             PlacementAlgorithm::kEplb, PlacementAlgorithm::kAuto})
    algorithms[std::string(Name(algorithm))] = algorithm;
  add.Add("--loads", flags.loads, "JSON file with the tokens of each expert in each layer (docs/placement-format.md)");
  add.Add("--trace", flags.trace, "Instead of --loads: a routing trace (docs/trace-format.md)");
  add.Add("--server", flags.server, "Instead of --loads: HOST:PORT of a router, asked for its load and placement");
  add.AddSeconds("--server-timeout", flags.server_timeout, "Seconds that it may take to answer");
  add.AddChoice<PlacementAlgorithm>("--algorithm", flags.algorithm, algorithms, "auto",
                                    "Who decides; auto: near the lower bound with few experts moved");
  add.Add("--workers", p.workers, "Hosts of experts")->check(CLI::Range(1, kMostWorkers));
  add.Add("--slots", p.slots, "Of a layer, over all workers; 0: one for each expert")
      ->check(CLI::Range(0, kMostRedundant * 2));
  add.Add("--nodes", p.nodes, "For eplb: nodes that the workers are on, evenly")->check(CLI::Range(1, kMostWorkers));
  add.Add("--groups", p.groups, "For eplb: groups of experts, each of which stays on a node if nodes divide them")
      ->check(CLI::Range(1, kMostRedundant));
  add.Add("--current", flags.current,
          "Placement file that is in force; absent: the trace's or the server's, if it has as many workers, else none, "
          "and figures are beside linear's");
  add.Add("--bytes-per-expert", flags.bytes_per_expert, "Size of an expert in one layer: 44MB, 352MiB");
  add.Add("--cost-per-byte", p.cost_per_byte,
          "For auto: tokens that the slowest worker must be relieved of for each byte moved")
      ->check(CLI::Range(0.0, 1e12));
  add.Add("--worker-speeds", p.worker_speeds, "For auto: speed of each worker, a list; absent: all alike")
      ->delimiter(',');
  add.Add("--worker-slots", flags.worker_slots,
          "For auto: most slots of each worker, a list; absent: as even as can be")
      ->delimiter(',')
      ->check(CLI::Range(std::size_t{0}, std::size_t{kMostRedundant}));
  AddVerdictFlags(add, flags);
  add.Add("--output", flags.output, "File to write the placement to");
  AddJsonFlag(add, flags.json);
}

// What CLI11 does not check by itself.
Status CheckFlags(const PlacementFlags& flags) {
  const int sources = static_cast<int>(!flags.loads.empty()) + static_cast<int>(!flags.trace.empty()) +
                      static_cast<int>(!flags.server.empty());
  if (sources != 1)
    return InvalidArgument("placement: ", sources == 0 ? "one" : "only one", " of --loads FILE, --trace FILE and ",
                           "--server ADDR ", sources == 0 ? "is missing" : "says what the load is");
  if (flags.problem.workers == 0 && flags.server.empty()) return InvalidArgument("placement: --workers is missing");
  if (flags.steps > 0 && flags.loads.empty())
    return InvalidArgument("--steps is for --loads; a trace and a server know theirs");
  if ((flags.cost.row_seconds > 0 || flags.cost.exposed_seconds > 0) && flags.cost.step_seconds == 0)
    return InvalidArgument("--row-seconds and --exposed-seconds need --step-seconds");
  if (flags.cost.step_seconds > 0 && (flags.cost.row_seconds == 0 || flags.cost.exposed_seconds == 0))
    return InvalidArgument("--step-seconds needs --row-seconds and --exposed-seconds");
  if (flags.cost.step_seconds > 0 && !flags.loads.empty() && flags.steps == 0)
    return InvalidArgument("--step-seconds needs --steps: how many steps the tokens of --loads are of");
  if (flags.cost.exposed_seconds > flags.cost.step_seconds)
    return InvalidArgument("--exposed-seconds ", flags.cost.exposed_seconds, " are more than the whole step's ",
                           flags.cost.step_seconds);
  if (flags.algorithm != PlacementAlgorithm::kAuto &&
      !(flags.worker_slots.empty() && flags.problem.worker_speeds.empty()))
    return InvalidArgument("--worker-speeds and --worker-slots are for auto; ", Name(flags.algorithm),
                           " does not look at them");
  if (flags.bytes_per_expert.empty() && flags.server.empty() && flags.problem.cost_per_byte > 0)
    return InvalidArgument("--cost-per-byte needs --bytes-per-expert");
  return Status::Ok();
}

/// What is to be placed, and what is known beside it.
struct Question {
  PlacementProblem problem;
  VerdictSetup verdict;
};

/// Takes the placement that the load went by for the one in force, if it is for as many workers.
void TakeCurrent(Placement placement, PlacementProblem& problem) {
  if (placement.workers == problem.workers) problem.current = std::move(placement);
}

/// The whole trace as the load, and sixteenths of it as samples.
Status TakeTrace(const std::filesystem::path& path, Question& question) {
  constexpr std::uint64_t kSamples = 16;
  std::uint64_t steps = 0;
  const auto count = [&steps](const TraceHeader&, const TraceStep&) {
    ++steps;
    return Status::Ok();
  };
  MOE_RETURN_IF_ERROR(ReadTraceFile(path, count).status());
  if (steps == 0) return InvalidArgument("trace ", path.string(), " has no steps");
  MOE_ASSIGN_OR_RETURN(TraceLoads trace, ReadTraceLoads(path, (steps + kSamples - 1) / kSamples));
  const TraceHeader& header = trace.trace.header;
  for (std::size_t i = 0; i < header.layers.size(); ++i) {
    LayerLoad load{.layer = header.layers[i], .mean = {trace.total[i].begin(), trace.total[i].end()}, .samples = {}};
    for (const LayerLoads& window : trace.windows) load.samples.emplace_back(window[i].begin(), window[i].end());
    question.problem.loads.push_back(std::move(load));
  }
  question.verdict.window_steps = static_cast<double>(steps);
  TakeCurrent(header.placement, question.problem);
  return Status::Ok();
}

Status TakeServer(const PlacementFlags& flags, Question& question) {
  MOE_ASSIGN_OR_RETURN(ServerLoads server, AskServer(flags.server, flags.server_timeout));
  PlacementProblem& problem = question.problem;
  if (problem.workers == 0) problem.workers = server.placement.workers;
  if (problem.bytes_per_expert == 0) problem.bytes_per_expert = server.bytes_per_expert;
  problem.loads = std::move(server.loads);
  if (problem.slots == 0) problem.slots = MostSlots(server.placement);
  question.verdict.window_steps = server.window_steps;
  if (!question.verdict.cost.known()) question.verdict.cost = server.cost;
  if (flags.migration_slowdown->count() > 0) {
    question.verdict.cost.migration_slowdown.reset();
  } else {
    question.verdict.cost.migration_slowdown = server.cost.migration_slowdown;
  }
  TakeCurrent(std::move(server.placement), problem);
  return Status::Ok();
}

Result<Question> Ask(const PlacementFlags& flags) {
  Question question{.problem = flags.problem, .verdict = {.cost = flags.cost, .options = flags.verdict}};
  PlacementProblem& problem = question.problem;
  for (const std::size_t slots : flags.worker_slots) problem.worker_slots.push_back(static_cast<int>(slots));
  if (!flags.bytes_per_expert.empty()) {
    const Result<std::uint64_t> bytes = ParseBytes(flags.bytes_per_expert);
    if (!bytes.ok()) return bytes.status().WithContext("--bytes-per-expert");
    problem.bytes_per_expert = *bytes;
  }
  const Result<double> bandwidth = ParseBandwidth(flags.migration_bandwidth);
  if (!bandwidth.ok()) return bandwidth.status().WithContext("--migration-bandwidth");
  question.verdict.options.migration_bytes_per_s = *bandwidth;
  if (!flags.loads.empty()) {
    MOE_ASSIGN_OR_RETURN(problem.loads, ReadLoadsFile(flags.loads));
    // They may be any multiple of tokens, so that few of them tell nothing.
    if (flags.steps == 0) question.verdict.options.least_rows = 0;
    question.verdict.window_steps = flags.steps;
  } else if (!flags.trace.empty()) {
    MOE_RETURN_IF_ERROR(TakeTrace(flags.trace, question));
  } else {
    MOE_RETURN_IF_ERROR(TakeServer(flags, question));
  }
  problem.num_experts = static_cast<int>(problem.loads.front().mean.size());
  if (problem.slots == 0) problem.slots = problem.num_experts;
  if (!flags.current.empty()) {
    MOE_ASSIGN_OR_RETURN(problem.current, ReadPlacementFile(flags.current));
  }
  return question;
}

Status WritePlacement(const std::filesystem::path& path, const Placement& placement) {
  if (ReplaceFile(path, PlacementJson(placement) + "\n")) return Status::Ok();
  return Internal("--output ", path.string(), " could not be written");
}

Result<std::string> PlaceExperts(const PlacementFlags& flags) {
  MOE_RETURN_IF_ERROR(CheckFlags(flags));
  MOE_ASSIGN_OR_RETURN(const Question question, Ask(flags));
  MOE_ASSIGN_OR_RETURN(const PlacementPlan plan, PlanPlacement(flags.algorithm, question.problem, question.verdict));
  if (!flags.output.empty()) MOE_RETURN_IF_ERROR(WritePlacement(flags.output, plan.placement));
  return flags.json ? PlacementPlanJson(plan, question.problem) : PlacementPlanText(plan, question.problem);
}

}  // namespace

PlanCommand AddPlacementCommand(CLI::App& app) {
  return MakePlanCommand(
      NewPlanCommand(app, "placement", "Place experts on workers by their loads.", kPlacementExamples),
      AddPlacementFlags, PlaceExperts);
}

}  // namespace moe
