// Our placement, `auto`: near the lower bound, and from a placement in force with as few experts moved as that takes.
#pragma once

#include "core/status.h"
#include "placement/placement_problem.h"

namespace moe {

/// The problem has been checked. Layer by layer:
/// - Without a current placement: replicas where shares are heaviest, packed largest first, then a local search.
///   Several numbers of replicas are tried until one comes within 0.2 % of the lower bound; where eplb's rule applies,
///   also until one is no worse than its result. Slots that would only add load to the slowest worker stay free.
/// - With one: the search starts there and stops once it is within 1 % of the bound and no worse than eplb's result,
///   each step the one that relieves most for a byte. A step that does not pay for its bytes is not taken; a new
///   arrangement from scratch is, if it pays for all it moves.
/// - With samples: then steps that lower the 95th percentile of the slowest worker's time over the samples, while the
///   mean stays within 1 % of the bound (or of where it is).
/// Kept experts keep their slots of the current placement.
Result<Placement> BalancedPlacement(const PlacementProblem& problem);

}  // namespace moe
