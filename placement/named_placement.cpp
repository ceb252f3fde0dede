#include "placement/named_placement.h"

#include <optional>

#include "placement/loads_file.h"
#include "placement/placement_problem.h"

namespace moe {
namespace {

Result<Placement> PlaceByAlgorithm(PlacementAlgorithm algorithm, const PlacementShape& shape,
                                   const std::filesystem::path& loads) {
  PlacementProblem problem{.num_experts = shape.num_experts,
                           .workers = shape.workers,
                           .slots = shape.num_experts + shape.redundant_experts,
                           .loads = UniformLoads(shape.layers, shape.num_experts)};
  if (!loads.empty()) {
    MOE_ASSIGN_OR_RETURN(problem.loads, ReadLoadsFile(loads, shape.layers, shape.num_experts));
  }
  Result<Placement> placement = MakePlacement(algorithm, problem);
  if (!placement.ok())
    return placement.status().WithContext(
        Cat("--placement ", Name(algorithm), " --redundant-experts ", shape.redundant_experts));
  return placement;
}

}  // namespace

bool NamesPlacementFile(const std::string& placement) { return !ParsePlacementAlgorithm(placement); }

Result<Placement> MakeNamedPlacement(const PlacementShape& shape, const std::string& placement,
                                     const std::filesystem::path& loads) {
  const std::optional<PlacementAlgorithm> algorithm = ParsePlacementAlgorithm(placement);
  const bool weighs = algorithm == PlacementAlgorithm::kEplb || algorithm == PlacementAlgorithm::kAuto;
  if (!weighs && !loads.empty())
    return InvalidArgument("--loads ", loads.string(), ": --placement ", placement,
                           " does not weigh loads (eplb and auto do)");
  if (algorithm) return PlaceByAlgorithm(*algorithm, shape, loads);
  if (shape.redundant_experts > 0)
    return InvalidArgument("--redundant-experts ", shape.redundant_experts,
                           ": a placement file says itself who is replicated");
  MOE_ASSIGN_OR_RETURN(Placement read, ReadPlacementFile(placement));
  if (const Status status = CheckPlacement(read, shape); !status.ok())
    return status.WithContext(Cat("placement file ", placement));
  return read;
}

}  // namespace moe
