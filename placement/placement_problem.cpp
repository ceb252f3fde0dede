#include "placement/placement_problem.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "placement/balanced_placement.h"
#include "placement/eplb.h"

namespace moe {
namespace {

constexpr std::array<std::pair<PlacementAlgorithm, std::string_view>, 4> kAlgorithmNames = {{
    {PlacementAlgorithm::kLinear, "linear"},
    {PlacementAlgorithm::kRoundRobin, "round_robin"},
    {PlacementAlgorithm::kEplb, "eplb"},
    {PlacementAlgorithm::kAuto, "auto"},
}};

// (workers, experts) tables of a byte and of a few numbers are kept while a placement is made.
constexpr std::int64_t kMostPairs = std::int64_t{1} << 24;

PlacementShape ShapeOf(const PlacementProblem& problem) {
  PlacementShape shape{.num_experts = problem.num_experts,
                       .workers = problem.workers,
                       .redundant_experts = problem.slots - problem.num_experts};
  for (const LayerLoad& load : problem.loads) shape.layers.push_back(load.layer);
  return shape;
}

Status CheckExpertLoads(const std::vector<double>& loads, int layer, int num_experts) {
  if (loads.size() != static_cast<std::size_t>(num_experts))
    return InvalidArgument("layer ", layer, " has loads of ", loads.size(), " experts, there are ", num_experts);
  for (std::size_t e = 0; e < loads.size(); ++e)
    if (!std::isfinite(loads[e]) || loads[e] < 0 || loads[e] > 1e300 / num_experts)
      return InvalidArgument("layer ", layer, ": the load of expert ", e, ", ", loads[e],
                             ", is not a number of tokens");
  return Status::Ok();
}

Status CheckLoads(const PlacementProblem& problem) {
  int previous = -1;
  for (const LayerLoad& load : problem.loads) {
    if (load.layer <= previous)
      return InvalidArgument("layer ", load.layer, " follows layer ", previous, " in the loads");
    previous = load.layer;
    MOE_RETURN_IF_ERROR(CheckExpertLoads(load.mean, load.layer, problem.num_experts));
    for (const std::vector<double>& sample : load.samples)
      MOE_RETURN_IF_ERROR(CheckExpertLoads(sample, load.layer, problem.num_experts));
  }
  return Status::Ok();
}

Status CheckWorkers(const PlacementProblem& problem) {
  const std::size_t workers = static_cast<std::size_t>(problem.workers);
  if (!problem.worker_speeds.empty() && problem.worker_speeds.size() != workers)
    return InvalidArgument("there are speeds of ", problem.worker_speeds.size(), " workers, and ", workers, " workers");
  for (const double speed : problem.worker_speeds)
    if (!std::isfinite(speed) || speed < 1e-6 || speed > 1e6)
      return InvalidArgument("a worker's speed of ", speed, " is not in 1e-6 … 1e6");
  if (problem.worker_slots.empty()) return Status::Ok();
  if (problem.worker_slots.size() != workers)
    return InvalidArgument("there are slots of ", problem.worker_slots.size(), " workers, and ", workers, " workers");
  std::int64_t room = 0;
  for (const int slots : problem.worker_slots) {
    if (slots < 0) return InvalidArgument("a worker with ", slots, " slots");
    room += std::min(slots, problem.num_experts);
  }
  if (room < problem.num_experts)
    return InvalidArgument("the workers' slots hold ", room, " experts, there are ", problem.num_experts);
  return Status::Ok();
}

Result<Placement> MakeEplb(const PlacementProblem& problem) {
  const EplbShape shape{
      .slots = problem.slots, .devices = problem.workers, .nodes = problem.nodes, .groups = problem.groups};
  MOE_RETURN_IF_ERROR(CheckEplb(shape, problem.num_experts));
  Placement placement{.num_experts = problem.num_experts, .workers = problem.workers};
  for (const LayerLoad& load : problem.loads)
    placement.layers.push_back({.layer = load.layer, .slots = EplbHosted(EplbSlots(load.mean, shape), shape.devices)});
  return placement;
}

}  // namespace

std::vector<LayerLoad> UniformLoads(const std::vector<int>& layers, int num_experts) {
  std::vector<LayerLoad> loads;
  for (const int layer : layers)
    loads.push_back(
        {.layer = layer, .mean = std::vector<double>(static_cast<std::size_t>(num_experts), 1.0), .samples = {}});
  return loads;
}

std::string_view Name(PlacementAlgorithm algorithm) {
  for (const auto& [known, name] : kAlgorithmNames)
    if (known == algorithm) return name;
  return "unknown";
}

std::optional<PlacementAlgorithm> ParsePlacementAlgorithm(std::string_view name) {
  for (const auto& [algorithm, known] : kAlgorithmNames)
    if (known == name) return algorithm;
  return std::nullopt;
}

WorkerRoom RoomOf(const PlacementProblem& problem) {
  const std::size_t workers = static_cast<std::size_t>(problem.workers);
  WorkerRoom room{.speeds = problem.worker_speeds, .slots = problem.worker_slots};
  if (room.speeds.empty()) room.speeds.assign(workers, 1);
  if (room.slots.empty()) room.slots.assign(workers, (problem.slots + problem.workers - 1) / problem.workers);
  int places = 0;
  for (int& slots : room.slots) {
    slots = std::min(slots, problem.num_experts);
    places += slots;
  }
  room.total_slots = std::min(problem.slots, places);
  return room;
}

Status CheckProblem(const PlacementProblem& problem) {
  if (problem.num_experts < 0 || problem.workers < 1)
    return InvalidArgument(problem.num_experts, " experts on ", problem.workers, " workers: at least one worker it is");
  const std::int64_t pairs = std::int64_t{problem.num_experts} * problem.workers;
  if (pairs > kMostPairs)
    return InvalidArgument(problem.num_experts, " experts on ", problem.workers, " workers are ", pairs,
                           " pairs, at most ", kMostPairs);
  if (problem.slots < problem.num_experts)
    return InvalidArgument("slots ", problem.slots, " are fewer than the ", problem.num_experts, " experts");
  if (problem.num_experts == 0 && problem.slots > 0)
    return InvalidArgument("slots ", problem.slots, ": the model has no experts to fill them with");
  if (problem.slots > pairs)
    return InvalidArgument("slots ", problem.slots, ": ", problem.workers, " worker(s) that host each of ",
                           problem.num_experts, " experts at most once have ", pairs);
  if (!std::isfinite(problem.cost_per_byte) || problem.cost_per_byte < 0)
    return InvalidArgument("a cost of ", problem.cost_per_byte, " per byte is negative or not a number");
  MOE_RETURN_IF_ERROR(CheckWorkers(problem));
  MOE_RETURN_IF_ERROR(CheckLoads(problem));
  if (!problem.current) return Status::Ok();
  return CheckPlacement(*problem.current, ShapeOf(problem)).WithContext("current placement");
}

PlacementProblem OfWorkers(const PlacementProblem& problem, const WorkerMask& present) {
  MOE_CHECK(present.size() == static_cast<std::size_t>(problem.workers));
  PlacementProblem left = problem;
  const WorkerRoom room = RoomOf(problem);
  left.workers = CountWorkers(present);
  left.nodes = left.groups = 1;
  left.worker_slots.clear();
  left.worker_speeds.clear();
  for (LayerPlacement& layer : left.current->layers) layer.slots.clear();
  int slots = 0;
  for (std::size_t w = 0; w < present.size(); ++w) {
    if (present[w] == 0) continue;
    slots += room.slots[w];
    left.worker_slots.push_back(room.slots[w]);
    left.worker_speeds.push_back(room.speeds[w]);
    for (std::size_t i = 0; i < left.current->layers.size(); ++i)
      left.current->layers[i].slots.push_back(problem.current->layers[i].slots[w]);
  }
  left.slots = std::min(problem.slots, slots);
  left.current->workers = left.workers;
  if (!CheckPlacement(*left.current, ShapeOf(left)).ok()) left.current.reset();
  return left;
}

Result<Placement> MakePlacement(PlacementAlgorithm algorithm, const PlacementProblem& problem) {
  MOE_RETURN_IF_ERROR(CheckProblem(problem));
  switch (algorithm) {
    case PlacementAlgorithm::kLinear: return LinearPlacement(ShapeOf(problem));
    case PlacementAlgorithm::kRoundRobin: return RoundRobinPlacement(ShapeOf(problem));
    case PlacementAlgorithm::kEplb: return MakeEplb(problem);
    case PlacementAlgorithm::kAuto: return BalancedPlacement(problem);
  }
  return Internal("a placement algorithm without an implementation");
}

}  // namespace moe
