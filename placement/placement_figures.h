// What a placement makes of a load. Definitions: docs/metrics.md and docs/balancing.md.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "placement/placement_problem.h"

namespace moe {

/// The time that each worker takes for a layer's load, (workers), when every replica of an expert takes an equal share;
/// `speeds`, (workers) or empty: 1 each.
std::vector<double> WorkerTimes(const LayerPlacement& layer, std::span<const double> load,
                                std::span<const double> speeds = {});

/// Σ load / Σ speed over the slowest worker's time: mean / max with equal speeds. 1 without load.
double PlacedBalancedness(const LayerPlacement& layer, std::span<const double> load,
                          std::span<const double> speeds = {});

/// Per layer, then averaged over layers.
struct PlacementFigures {
  double balancedness = 1;
  /// The 5th percentile (nearest rank) over the samples, the 95th of the slowest workers; `balancedness` without
  /// samples.
  double slow_balancedness = 1;
  double imbalance = 0;
  double cv = 0;
  double jain = 1;
  double entropy = 1;
  double gini = 0;
};
/// Of the mean load. `placement` has the problem's shape.
PlacementFigures FiguresOf(const Placement& placement, const PlacementProblem& problem);

/// What the slowest workers of all layers take together: Σ over layers of the largest WorkerTimes for the mean load.
/// With samples, whose slowest workers need not be those of the mean: of the sum over the samples, scaled to the mean
/// load.
double SlowestTimes(const Placement& placement, const PlacementProblem& problem);

/// The balancedness that no placement of the problem's slots can better (placement/placement_bound.h).
double BestBalancedness(const PlacementProblem& problem);

/// (layer, expert, worker) triples of `to` that `from` lacks: what workers have to get. Both have one shape.
std::uint64_t ExpertsMoved(const Placement& from, const Placement& to);
/// The same of the worker that has to get most.
std::uint64_t MostExpertsMoved(const Placement& from, const Placement& to);

}  // namespace moe
