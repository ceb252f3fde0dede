#include "bench/plan/placement_comparison.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "bench/plan/recorded_loads.h"
#include "core/check.h"
#include "placement/eplb.h"
#include "placement/loads_file.h"
#include "placement/placement_bound.h"
#include "placement/placement_figures.h"

namespace moe {
namespace {

double Unit(RandomStream& random) { return static_cast<double>(random.Next() >> 11) * 0x1p-53; }

/// About `mean` tokens each, as many as chance gives when all experts are as likely.
std::vector<double> EqualLoads(RandomStream& random, std::size_t experts, double mean) {
  std::vector<double> loads(experts, 0);
  for (std::size_t i = 0; i < experts; ++i) {
    // The sum of twelve uniform numbers is as good as a normal one here.
    double normal = -6;
    for (int j = 0; j < 12; ++j) normal += Unit(random);
    loads[i] = std::max(0.0, std::round(mean + std::sqrt(mean) * normal));
  }
  return loads;
}

/// A layer of a bundled model, with all languages or one.
std::vector<double> RecordedLoad(RandomStream& random) {
  const auto pick = [&](std::size_t count) { return random.Below(static_cast<std::uint32_t>(count)); };
  const std::span<const RecordedLoads> all = AllRecordedLoads();
  const Result<std::vector<LayerLoad>> layers = ParseLoads(all[pick(all.size())].json);
  MOE_CHECK(layers.ok(), "a recorded load is none");
  const LayerLoad& layer = (*layers)[pick(layers->size())];
  const std::size_t sample = pick(layer.samples.size() + 1);
  return sample == layer.samples.size() ? layer.mean : layer.samples[sample];
}

double SlowestTime(const Placement& placement, std::span<const double> load) {
  const std::vector<double> times = WorkerTimes(placement.layers.front(), load);
  return *std::max_element(times.begin(), times.end());
}

double SlowestEplbDevice(const PlacementProblem& problem, std::span<const double> load) {
  const EplbShape shape{.slots = problem.slots, .devices = problem.workers};
  const std::vector<double> devices = EplbDeviceLoads(load, EplbSlots(load, shape), problem.workers);
  return *std::max_element(devices.begin(), devices.end());
}

/// A placement of which CheckPlacement and the slots say that it is one.
Result<Placement> Placed(PlacementAlgorithm algorithm, const PlacementProblem& problem) {
  MOE_ASSIGN_OR_RETURN(Placement placement, MakePlacement(algorithm, problem));
  const Status status = CheckPlacement(
      placement, {.num_experts = problem.num_experts, .workers = problem.workers, .layers = {problem.loads[0].layer}});
  if (!status.ok()) return Internal(Name(algorithm), ": ", status.message());
  const std::size_t most = static_cast<std::size_t>(problem.slots / problem.workers);
  for (const std::vector<int>& worker : placement.layers[0].slots)
    if (worker.size() > most) return Internal(Name(algorithm), ": ", worker.size(), " slots on a worker for ", most);
  return placement;
}

}  // namespace

std::vector<double> ZipfLoads(RandomStream& random, std::size_t experts, double exponent) {
  std::vector<double> loads;
  for (std::size_t rank = 1; rank <= experts; ++rank)
    loads.push_back(std::round(1e6 * std::pow(static_cast<double>(rank), -exponent)));
  for (std::size_t i = experts; i > 1; --i) std::swap(loads[i - 1], loads[random.Below(static_cast<std::uint32_t>(i))]);
  return loads;
}

ComparisonCase MakeComparisonCase(std::uint64_t seed, std::uint64_t index) {
  RandomStream random{seed, index};
  ComparisonCase made{.index = index};
  LayerLoad load{.layer = 0, .mean = {}, .samples = {}};
  const std::size_t experts = static_cast<std::size_t>(std::lround(8 * std::pow(64.0, Unit(random))));
  std::uint32_t most_workers = 64;
  switch (random.Below(5)) {
    case 0:
      made.loads = "equal";
      load.mean = EqualLoads(random, experts, 10'000);
      break;
    case 1:
      made.loads = "uniform";
      for (std::size_t e = 0; e < experts; ++e) load.mean.push_back(1 + random.Below(10'000));
      break;
    case 2:
      made.loads = "recorded";
      load.mean = RecordedLoad(random);
      most_workers = static_cast<std::uint32_t>(load.mean.size());
      break;
    default:
      made.loads = "zipf";
      made.exponent = 0.6 + 0.8 * Unit(random);
      load.mean = ZipfLoads(random, experts, made.exponent);
  }
  PlacementProblem& problem = made.problem;
  problem.num_experts = static_cast<int>(load.mean.size());
  problem.workers = 2 + static_cast<int>(random.Below(most_workers - 1));
  const int each = (problem.num_experts + problem.workers - 1) / problem.workers + static_cast<int>(random.Below(4));
  problem.slots = std::min(each, problem.num_experts) * problem.workers;
  problem.bytes_per_expert = 1;
  for (const double tokens : load.mean) made.drifted.push_back(tokens * (0.9 + 0.2 * Unit(random)));
  problem.loads.push_back(std::move(load));
  return made;
}

Result<ComparedCase> CompareCase(const ComparisonCase& compared) {
  PlacementProblem problem = compared.problem;
  const WorkerRoom room = RoomOf(problem);
  ComparedCase result;
  MOE_ASSIGN_OR_RETURN(Placement ours, Placed(PlacementAlgorithm::kAuto, problem));
  MOE_ASSIGN_OR_RETURN(Placement eplb, Placed(PlacementAlgorithm::kEplb, problem));
  result.bound = LowerBound(problem.loads[0].mean, room);
  result.ours = SlowestTime(ours, problem.loads[0].mean);
  result.eplb = SlowestEplbDevice(problem, problem.loads[0].mean);

  problem.loads[0].mean = compared.drifted;
  problem.current = ours;
  MOE_ASSIGN_OR_RETURN(const Placement ours_now, Placed(PlacementAlgorithm::kAuto, problem));
  problem.current = eplb;
  MOE_ASSIGN_OR_RETURN(const Placement eplb_now, Placed(PlacementAlgorithm::kEplb, problem));
  result.ours_moved = ExpertsMoved(ours, ours_now);
  result.eplb_moved = ExpertsMoved(eplb, eplb_now);
  result.drifted_bound = LowerBound(compared.drifted, room);
  result.drifted_ours = SlowestTime(ours_now, compared.drifted);
  result.drifted_eplb = SlowestEplbDevice(problem, compared.drifted);
  return result;
}

}  // namespace moe
