// A local search over the assignment of one layer: relieve the slowest worker, step by step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "placement/layer_assignment.h"

namespace moe {

struct ReliefGoal {
  double target = 0;                   // stop when the slowest worker takes no longer
  std::span<const std::uint8_t> base;  // (experts, workers): who has which experts already; empty: moves are free
  double cost_per_move = 0;            // time, of an expert that a worker has to get
  /// A way that ends no longer than this is better than any that does not, whatever it moves; absent: none is.
  std::optional<double> required;
  std::size_t budget = std::size_t{1} << 20;  // of looks at one possible step
};

/// Each step moves, swaps, adds or drops a replica of an expert on the slowest worker so that it and whoever else gets
/// more load take less than it did; with a base, the step that relieves most for each expert moved. Ends where the
/// target is met, no step helps or the budget is spent, at the point of the way where the slowest time and the cost of
/// the moves were least together. Every expert that had a replica keeps one. Returns the moves against the base.
int Relieve(LayerAssignment& assignment, const ReliefGoal& goal);

/// What a search with this goal weighs results by: smaller is better.
double WeighedTime(double slowest_time, int moves, const ReliefGoal& goal);

/// Experts that workers host and the base does not have there.
int CountMoves(const LayerAssignment& assignment, std::span<const std::uint8_t> base);

}  // namespace moe
