// What `moe_plan placement` works out and prints.
#pragma once

#include <string>

#include "core/status.h"
#include "placement/placement_figures.h"
#include "placement/placement_problem.h"

namespace moe {

struct PlacementPlan {
  PlacementAlgorithm algorithm = PlacementAlgorithm::kAuto;
  Placement placement;
  PlacementFigures before;  // of the current placement, or of `linear` without replicas
  PlacementFigures after;
  double lower_bound_balancedness = 1;
  std::uint64_t experts_moved = 0;  // from the one to the other
  double seconds = 0;               // that the algorithm took
};

/// INVALID_ARGUMENT as MakePlacement.
Result<PlacementPlan> PlanPlacement(PlacementAlgorithm algorithm, const PlacementProblem& problem);

/// JSON with a newline at its end; docs/planner.md has the keys.
std::string PlacementPlanJson(const PlacementPlan& plan, const PlacementProblem& problem);
std::string PlacementPlanText(const PlacementPlan& plan, const PlacementProblem& problem);

}  // namespace moe
