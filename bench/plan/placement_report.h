// What `moe_plan placement` works out and prints.
#pragma once

#include <string>

#include "core/status.h"
#include "placement/placement_figures.h"
#include "placement/placement_problem.h"
#include "placement/verdict.h"

namespace moe {

/// What is known beside the loads, for the verdict.
struct VerdictSetup {
  double window_steps = 0;  // that the loads cover; 0: unknown
  StepCost cost;
  VerdictOptions options;
};

struct PlacementPlan {
  PlacementAlgorithm algorithm = PlacementAlgorithm::kAuto;
  Placement placement;
  PlacementFigures before;  // of the current placement, or of `linear` without replicas
  PlacementFigures after;
  double lower_bound_balancedness = 1;
  std::uint64_t experts_moved = 0;  // from the one to the other
  double seconds = 0;               // that the algorithm took
  StepCost cost;                    // that the verdict reckons with
  Verdict verdict;                  // on the placements of all algorithms, made alike
};

/// INVALID_ARGUMENT as MakePlacement.
Result<PlacementPlan> PlanPlacement(PlacementAlgorithm algorithm, const PlacementProblem& problem,
                                    const VerdictSetup& setup);

/// JSON with a newline at its end; docs/planner.md has the keys.
std::string PlacementPlanJson(const PlacementPlan& plan, const PlacementProblem& problem);
std::string PlacementPlanText(const PlacementPlan& plan, const PlacementProblem& problem);

}  // namespace moe
