// What a placement is made from and for, and what came of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "core/worker_mask.h"
#include "placement/layer_assignment.h"
#include "placement/placement.h"

namespace moe {

/// What is known of the load of one sparse layer.
struct LayerLoad {
  int layer = 0;             // absolute index
  std::vector<double> mean;  // (experts): tokens in the window, or any multiple
  /// (samples, experts): tokens in parts of the window, for the spread of the load; may be empty. They need not add up
  /// to the mean.
  std::vector<std::vector<double>> samples;
};

/// Every load uniform, which stands for what is not known.
std::vector<LayerLoad> UniformLoads(const std::vector<int>& layers, int num_experts);

struct PlacementProblem {
  int num_experts = 0;
  int workers = 0;
  int slots = 0;                 // of a layer, over all workers: at least one for each expert
  std::vector<LayerLoad> loads;  // of every sparse layer, ascending
  std::optional<Placement> current;
  std::uint64_t bytes_per_expert = 0;  // of one expert in one layer, as a worker holds it
  /// What moving a byte costs, in tokens that the slowest worker of a layer must be relieved of to pay for it.
  double cost_per_byte = 0;
  std::vector<double> worker_speeds;  // tokens in a unit of time; empty: 1 each
  std::vector<int> worker_slots;      // most slots of each worker in a layer; empty: ⌈slots / workers⌉ each
  int nodes = 1;                      // nodes and groups concern eplb alone
  int groups = 1;
};

enum class PlacementAlgorithm : std::uint8_t { kLinear, kRoundRobin, kEplb, kAuto };

/// "linear", "round_robin", "eplb" and "auto".
std::string_view Name(PlacementAlgorithm algorithm);
std::optional<PlacementAlgorithm> ParsePlacementAlgorithm(std::string_view name);

/// INVALID_ARGUMENT naming what is wrong: a load that is negative or not finite, lists of another length than experts
/// or workers, slots that are too few or do not fit, a current placement of another shape.
Status CheckProblem(const PlacementProblem& problem);

/// The workers of a problem that has been checked, with the defaults filled in.
WorkerRoom RoomOf(const PlacementProblem& problem);

/// What is left of a problem that has been checked when only the workers that `present` means are there, in their
/// order: each has the slots that it had, the others none. `current` is what they host of it, and absent when an expert
/// is not among that. Nodes and groups are 1.
PlacementProblem OfWorkers(const PlacementProblem& problem, const WorkerMask& present);

/// A placement of the problem by the algorithm; the same for the same arguments.
/// - kLinear, kRoundRobin: as placement.h says, with slots − experts replicas. They look at neither load nor speeds.
/// - kEplb: placement/eplb.h; where it puts two replicas of an expert on a worker, that worker hosts it once, so a
///   placement may have fewer slots than were asked for. It looks at neither the current placement nor speeds.
/// - kAuto: placement/balanced_placement.h.
/// INVALID_ARGUMENT as CheckProblem, and where eplb's rule cannot divide.
Result<Placement> MakePlacement(PlacementAlgorithm algorithm, const PlacementProblem& problem);

}  // namespace moe
