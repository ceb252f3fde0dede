#include "bench/plan/placement_bench.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <vector>

#include "bench/plan/placement_comparison.h"
#include "bench/random_stream.h"
#include "bench/table.h"

namespace moe {
namespace {

// Of sums of the same numbers in another order.
constexpr double kRoundingShare = 1 + 1e-9;

/// Zipf 1.0 in every layer, over experts in an order of its own.
PlacementProblem LargeProblem(const PlacementBenchOptions& options) {
  PlacementProblem problem{.num_experts = options.experts, .workers = options.workers, .slots = options.slots};
  for (int layer = 0; layer < options.layers; ++layer) {
    RandomStream random{options.seed, 1, static_cast<std::uint64_t>(layer)};
    problem.loads.push_back(
        {.layer = layer, .mean = ZipfLoads(random, static_cast<std::size_t>(options.experts), 1.0), .samples = {}});
  }
  return problem;
}

void Drift(PlacementProblem& problem, std::uint64_t seed) {
  RandomStream random{seed, 2};
  for (LayerLoad& load : problem.loads)
    for (double& tokens : load.mean) tokens *= 0.9 + 0.2 * static_cast<double>(random.Below(1'000'001)) / 1e6;
}

Result<double> MedianSeconds(PlacementAlgorithm algorithm, const PlacementProblem& problem, int repetitions) {
  std::vector<double> seconds;
  for (int i = 0; i < repetitions; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const Result<Placement> placement = MakePlacement(algorithm, problem);
    if (!placement.ok()) return placement.status();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

Status TimeLargeProblem(const PlacementBenchOptions& options, PlacementBenchResult& result) {
  PlacementProblem problem = LargeProblem(options);
  MOE_ASSIGN_OR_RETURN(result.eplb_seconds, MedianSeconds(PlacementAlgorithm::kEplb, problem, options.repetitions));
  MOE_ASSIGN_OR_RETURN(result.seconds, MedianSeconds(PlacementAlgorithm::kAuto, problem, options.repetitions));
  MOE_ASSIGN_OR_RETURN(problem.current, MakePlacement(PlacementAlgorithm::kAuto, problem));
  Drift(problem, options.seed);
  MOE_ASSIGN_OR_RETURN(result.drifted_seconds, MedianSeconds(PlacementAlgorithm::kAuto, problem, options.repetitions));
  return Status::Ok();
}

void Count(const ComparisonCase& made, const ComparedCase& compared, PlacementBenchResult& result) {
  const double ours = compared.bound / compared.ours;
  const double eplb = compared.bound / compared.eplb;
  ++result.cases;
  if (compared.ours > compared.eplb * kRoundingShare) ++result.worse;
  result.all_ours += ours;
  result.all_eplb += eplb;
  if (made.problem.slots >= made.problem.num_experts + made.problem.workers) {
    ++result.roomy;
    if (ours >= 0.99) ++result.roomy_within;
    result.roomy_ours += ours;
    result.roomy_eplb += eplb;
  }
  if (compared.drifted_ours > compared.drifted_eplb * kRoundingShare) ++result.drifted_worse;
  result.drifted_ours += compared.drifted_bound / compared.drifted_ours;
  result.drifted_eplb += compared.drifted_bound / compared.drifted_eplb;
  result.ours_moved += compared.ours_moved;
  result.eplb_moved += compared.eplb_moved;
}

}  // namespace

Result<PlacementBenchResult> RunPlacementBench(const PlacementBenchOptions& options) {
  PlacementBenchResult result;
  MOE_RETURN_IF_ERROR(TimeLargeProblem(options, result));
  for (std::size_t i = 0; i < options.cases; ++i) {
    const ComparisonCase made = MakeComparisonCase(options.seed, i);
    const Result<ComparedCase> compared = CompareCase(made);
    if (!compared.ok()) return compared.status().WithContext(Cat("case ", i));
    Count(made, *compared, result);
  }
  const double cases = static_cast<double>(std::max<std::size_t>(1, result.cases));
  const double roomy = static_cast<double>(std::max<std::size_t>(1, result.roomy));
  for (double* mean : {&result.all_ours, &result.all_eplb, &result.drifted_ours, &result.drifted_eplb}) *mean /= cases;
  for (double* mean : {&result.roomy_ours, &result.roomy_eplb}) *mean /= roomy;
  return result;
}

std::string PlacementBenchJson(const PlacementBenchResult& r) {
  const nlohmann::ordered_json json = {
      {"cases", r.cases},
      {"worse_than_eplb", r.worse},
      {"of_lower_bound", {{"auto", r.all_ours}, {"eplb", r.all_eplb}}},
      {"roomy_cases", r.roomy},
      {"roomy_within_1_percent", r.roomy_within},
      {"roomy_of_lower_bound", {{"auto", r.roomy_ours}, {"eplb", r.roomy_eplb}}},
      {"drifted_worse_than_eplb", r.drifted_worse},
      {"drifted_of_lower_bound", {{"auto", r.drifted_ours}, {"eplb", r.drifted_eplb}}},
      {"drifted_experts_moved", {{"auto", r.ours_moved}, {"eplb", r.eplb_moved}}},
      {"drifted_moved_ratio", r.moved_ratio()},
      {"large_model_seconds", {{"auto", r.seconds}, {"auto_drifted", r.drifted_seconds}, {"eplb", r.eplb_seconds}}}};
  return json.dump();
}

std::string PlacementBenchTable(const PlacementBenchResult& r, const PlacementBenchOptions& options) {
  TextTable table({Cat(r.cases, " random cases"), "auto", "eplb"});
  const auto share = [](double value) { return Format("%.4f", value); };
  table.Add({"lower bound / slowest worker, mean", share(r.all_ours), share(r.all_eplb)});
  table.Add({Cat("  of ", r.roomy, " with slots ≥ experts + workers"), share(r.roomy_ours), share(r.roomy_eplb)});
  table.Add({"  after a drift by a tenth, all cases", share(r.drifted_ours), share(r.drifted_eplb)});
  table.Add({"experts moved by the drift", Cat(r.ours_moved), Cat(r.eplb_moved)});
  table.Add({Cat("ms for ", options.layers, " × ", options.experts, " experts, ", options.workers, " workers"),
             Format("%.1f", 1e3 * r.seconds), Format("%.1f", 1e3 * r.eplb_seconds)});
  table.Add({"  after a drift", Format("%.1f", 1e3 * r.drifted_seconds), ""});
  return table.Text() + Cat("\nauto is worse than eplb in ", r.worse, " cases, after the drift in ", r.drifted_worse,
                            ". It is within 1 % of the lower bound in ", r.roomy_within, " of ", r.roomy,
                            " cases with slots ≥ experts + workers, and moves ", Format("%.1f", 100 * r.moved_ratio()),
                            " % of what eplb moves.\n");
}

}  // namespace moe
