#include <CLI/CLI.hpp>
#include <filesystem>

#include "apps/plan_commands.h"
#include "bench/plan/memory_plan.h"
#include "bench/plan/placement_report.h"
#include "core/replace_file.h"
#include "core/units.h"
#include "placement/loads_file.h"

namespace moe {
namespace {

constexpr const char* kPlacementExamples = R"(Examples:
  moe_plan placement --loads loads.json --workers 8 --slots 72
  moe_plan placement --loads loads.json --algorithm eplb --workers 8 --slots 72 --nodes 2 --groups 4 --json
  moe_plan placement --loads loads.json --workers 8 --slots 72 --current now.json --bytes-per-expert 44MB --output new.json)";

struct PlacementFlags {
  PlacementAlgorithm algorithm = PlacementAlgorithm::kAuto;
  /// What flags say of it; loads and the current placement come from files.
  PlacementProblem problem;
  std::vector<std::size_t> worker_slots;
  std::filesystem::path loads;
  std::filesystem::path current;
  std::string bytes_per_expert;
  std::filesystem::path output;
  bool json = false;
};

void AddPlacementFlags(FlagAdder& add, PlacementFlags& flags) {
  PlacementProblem& p = flags.problem;
  Choices<PlacementAlgorithm> algorithms;
  for (const PlacementAlgorithm algorithm : {PlacementAlgorithm::kLinear, PlacementAlgorithm::kRoundRobin,
                                             PlacementAlgorithm::kEplb, PlacementAlgorithm::kAuto})
    algorithms[std::string(Name(algorithm))] = algorithm;
  add.Add("--loads", flags.loads, "JSON file with the tokens of each expert in each layer (docs/placement-format.md)");
  add.AddChoice<PlacementAlgorithm>("--algorithm", flags.algorithm, algorithms, "auto",
                                    "Who decides; auto: near the lower bound with few experts moved");
  add.Add("--workers", p.workers, "Hosts of experts")->check(CLI::Range(1, kMostWorkers));
  add.Add("--slots", p.slots, "Of a layer, over all workers; 0: one for each expert")
      ->check(CLI::Range(0, kMostRedundant * 2));
  add.Add("--nodes", p.nodes, "For eplb: nodes that the workers are on, evenly")->check(CLI::Range(1, kMostWorkers));
  add.Add("--groups", p.groups, "For eplb: groups of experts, each of which stays on a node if nodes divide them")
      ->check(CLI::Range(1, kMostRedundant));
  add.Add("--current", flags.current, "Placement file that is in force; absent: none, and figures are beside linear's");
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
  add.Add("--output", flags.output, "File to write the placement to");
  AddJsonFlag(add, flags.json);
}

// What CLI11 does not check by itself.
Status CheckFlags(const PlacementFlags& flags) {
  if (flags.loads.empty()) return InvalidArgument("placement: --loads FILE is missing");
  if (flags.problem.workers == 0) return InvalidArgument("placement: --workers is missing");
  if (flags.algorithm != PlacementAlgorithm::kAuto &&
      !(flags.worker_slots.empty() && flags.problem.worker_speeds.empty()))
    return InvalidArgument("--worker-speeds and --worker-slots are for auto; ", Name(flags.algorithm),
                           " does not look at them");
  if (flags.bytes_per_expert.empty() && flags.problem.cost_per_byte > 0)
    return InvalidArgument("--cost-per-byte needs --bytes-per-expert");
  return Status::Ok();
}

Result<PlacementProblem> MakeProblem(const PlacementFlags& flags) {
  PlacementProblem problem = flags.problem;
  for (const std::size_t slots : flags.worker_slots) problem.worker_slots.push_back(static_cast<int>(slots));
  if (!flags.bytes_per_expert.empty()) {
    const Result<std::uint64_t> bytes = ParseBytes(flags.bytes_per_expert);
    if (!bytes.ok()) return bytes.status().WithContext("--bytes-per-expert");
    problem.bytes_per_expert = *bytes;
  }
  MOE_ASSIGN_OR_RETURN(problem.loads, ReadLoadsFile(flags.loads));
  problem.num_experts = static_cast<int>(problem.loads.front().mean.size());
  if (problem.slots == 0) problem.slots = problem.num_experts;
  if (!flags.current.empty()) {
    MOE_ASSIGN_OR_RETURN(problem.current, ReadPlacementFile(flags.current));
  }
  return problem;
}

Status WritePlacement(const std::filesystem::path& path, const Placement& placement) {
  if (ReplaceFile(path, PlacementJson(placement) + "\n")) return Status::Ok();
  return Internal("--output ", path.string(), " could not be written");
}

Result<std::string> PlaceExperts(const PlacementFlags& flags) {
  MOE_RETURN_IF_ERROR(CheckFlags(flags));
  MOE_ASSIGN_OR_RETURN(const PlacementProblem problem, MakeProblem(flags));
  MOE_ASSIGN_OR_RETURN(const PlacementPlan plan, PlanPlacement(flags.algorithm, problem));
  if (!flags.output.empty()) MOE_RETURN_IF_ERROR(WritePlacement(flags.output, plan.placement));
  return flags.json ? PlacementPlanJson(plan, problem) : PlacementPlanText(plan, problem);
}

}  // namespace

PlanCommand AddPlacementCommand(CLI::App& app) {
  return MakePlanCommand(
      NewPlanCommand(app, "placement", "Place experts on workers by their loads.", kPlacementExamples),
      AddPlacementFlags, PlaceExperts);
}

}  // namespace moe
