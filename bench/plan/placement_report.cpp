#include "bench/plan/placement_report.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "bench/table.h"
#include "core/units.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

/// What moe_serve does without flags.
Result<Placement> BeforeOf(const PlacementProblem& problem) {
  if (problem.current) return *problem.current;
  PlacementProblem plain = problem;
  plain.slots = problem.num_experts;
  plain.worker_slots.clear();
  return MakePlacement(PlacementAlgorithm::kLinear, plain);
}

Json FiguresJson(const PlacementFigures& figures) {
  return {{"balancedness", figures.balancedness},
          {"slow_balancedness", figures.slow_balancedness},
          {"imbalance", figures.imbalance},
          {"cv", figures.cv},
          {"jain", figures.jain},
          {"entropy", figures.entropy},
          {"gini", figures.gini}};
}

/// Unknown where something moves and nobody said how large an expert is.
Json BytesMoved(const PlacementPlan& plan, const PlacementProblem& problem) {
  if (plan.experts_moved > 0 && problem.bytes_per_expert == 0) return nullptr;
  return plan.experts_moved * problem.bytes_per_expert;
}

std::size_t SlotsUsed(const LayerPlacement& layer) {
  std::size_t used = 0;
  for (const std::vector<int>& worker : layer.slots) used += worker.size();
  return used;
}

}  // namespace

Result<PlacementPlan> PlanPlacement(PlacementAlgorithm algorithm, const PlacementProblem& problem) {
  PlacementPlan plan{.algorithm = algorithm};
  const auto start = std::chrono::steady_clock::now();
  MOE_ASSIGN_OR_RETURN(plan.placement, MakePlacement(algorithm, problem));
  plan.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  MOE_ASSIGN_OR_RETURN(const Placement before, BeforeOf(problem));
  plan.before = FiguresOf(before, problem);
  plan.after = FiguresOf(plan.placement, problem);
  plan.lower_bound_balancedness = BestBalancedness(problem);
  plan.experts_moved = ExpertsMoved(before, plan.placement);
  return plan;
}

std::string PlacementPlanJson(const PlacementPlan& plan, const PlacementProblem& problem) {
  Json layers = Json::array();
  for (const LayerPlacement& layer : plan.placement.layers)
    layers.push_back({{"layer", layer.layer}, {"slots", layer.slots}});
  const Json json = {{"schema", 1},
                     {"algorithm", Name(plan.algorithm)},
                     {"num_experts", plan.placement.num_experts},
                     {"workers", plan.placement.workers},
                     {"layers", layers},
                     {"figures",
                      {{"balancedness_before", plan.before.balancedness},
                       {"balancedness_after", plan.after.balancedness},
                       {"lower_bound_balancedness", plan.lower_bound_balancedness},
                       {"experts_moved", plan.experts_moved},
                       {"bytes_moved", BytesMoved(plan, problem)},
                       {"seconds", plan.seconds},
                       {"before", FiguresJson(plan.before)},
                       {"after", FiguresJson(plan.after)}}}};
  return json.dump() + "\n";
}

std::string PlacementPlanText(const PlacementPlan& plan, const PlacementProblem& problem) {
  TextTable table({"mean over layers", problem.current ? "current" : "linear", std::string(Name(plan.algorithm))});
  const auto row = [&](const char* name, double before, double after) {
    table.Add({name, Format("%.4f", before), Format("%.4f", after)});
  };
  row("balancedness", plan.before.balancedness, plan.after.balancedness);
  row("slow balancedness", plan.before.slow_balancedness, plan.after.slow_balancedness);
  row("imbalance", plan.before.imbalance, plan.after.imbalance);
  row("cv", plan.before.cv, plan.after.cv);
  row("jain", plan.before.jain, plan.after.jain);
  row("entropy", plan.before.entropy, plan.after.entropy);
  row("gini", plan.before.gini, plan.after.gini);
  std::size_t fewest = static_cast<std::size_t>(problem.slots);
  for (const LayerPlacement& layer : plan.placement.layers) fewest = std::min(fewest, SlotsUsed(layer));
  const std::string bytes =
      problem.bytes_per_expert == 0
          ? ""
          : Cat(", ", ShortBytes(static_cast<double>(plan.experts_moved * problem.bytes_per_expert)));
  return table.Text() +
         Cat("\n", problem.loads.size(), " layers, ", problem.num_experts, " experts on ", problem.workers,
             " workers, ", problem.slots, " slots a layer",
             fewest < static_cast<std::size_t>(problem.slots) ? Cat(", of which at least ", fewest, " are used") : "",
             ". No placement has a balancedness above ", Format("%.4f", plan.lower_bound_balancedness), ".\n",
             plan.experts_moved, " experts move from the one to the other", bytes, ". It took ",
             Format("%.1f", 1e3 * plan.seconds), " ms.\n");
}

}  // namespace moe
