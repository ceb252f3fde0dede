#include "placement/placement_figures.h"

#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "placement/figures.h"
#include "placement/layer_assignment.h"
#include "placement/placement_bound.h"

namespace moe {
namespace {

double SpeedOf(std::span<const double> speeds, std::size_t worker) { return speeds.empty() ? 1 : speeds[worker]; }

double Total(std::span<const double> values) { return std::accumulate(values.begin(), values.end(), 0.0); }

/// Of time that a placement could take at best without limits on slots, over `slowest`.
double BalancednessAt(double slowest, std::span<const double> load, std::span<const double> speeds, int workers) {
  const double all_speeds = speeds.empty() ? workers : Total(speeds);
  return slowest == 0 ? 1 : Total(load) / all_speeds / slowest;
}

/// The least but 5 %, by nearest rank.
double SlowBalancedness(const LayerPlacement& layer, const LayerLoad& load, std::span<const double> speeds) {
  std::vector<double> values;
  for (const std::vector<double>& sample : load.samples) values.push_back(PlacedBalancedness(layer, sample, speeds));
  std::sort(values.begin(), values.end(), std::greater<>());
  return values[(95 * values.size() + 99) / 100 - 1];
}

double SlowestTime(const LayerPlacement& layer, std::span<const double> load, std::span<const double> speeds) {
  const std::vector<double> times = WorkerTimes(layer, load, speeds);
  return *std::max_element(times.begin(), times.end());
}

/// What each worker has to get, (workers).
std::vector<std::uint64_t> MovedTo(const Placement& from, const Placement& to) {
  MOE_CHECK(from.layers.size() == to.layers.size() && from.workers == to.workers);
  std::vector<std::uint64_t> moved(static_cast<std::size_t>(to.workers), 0);
  for (std::size_t i = 0; i < to.layers.size(); ++i) {
    for (std::size_t w = 0; w < moved.size(); ++w) {
      const std::vector<int>& had = from.layers[i].slots[w];
      for (const int expert : to.layers[i].slots[w])
        if (std::find(had.begin(), had.end(), expert) == had.end()) ++moved[w];
    }
  }
  return moved;
}

}  // namespace

std::vector<double> WorkerTimes(const LayerPlacement& layer, std::span<const double> load,
                                std::span<const double> speeds) {
  std::vector<int> replicas(load.size(), 0);
  for (const std::vector<int>& worker : layer.slots)
    for (const int expert : worker) ++replicas[static_cast<std::size_t>(expert)];
  std::vector<double> times;
  for (std::size_t w = 0; w < layer.slots.size(); ++w) {
    double sum = 0;
    for (const int expert : layer.slots[w])
      sum += load[static_cast<std::size_t>(expert)] / replicas[static_cast<std::size_t>(expert)];
    times.push_back(sum / SpeedOf(speeds, w));
  }
  return times;
}

double PlacedBalancedness(const LayerPlacement& layer, std::span<const double> load, std::span<const double> speeds) {
  return BalancednessAt(SlowestTime(layer, load, speeds), load, speeds, static_cast<int>(layer.slots.size()));
}

PlacementFigures FiguresOf(const Placement& placement, const PlacementProblem& problem) {
  if (placement.layers.empty()) return {};
  const std::span<const double> speeds = problem.worker_speeds;
  PlacementFigures sum{.balancedness = 0, .slow_balancedness = 0, .jain = 0, .entropy = 0};
  for (std::size_t i = 0; i < placement.layers.size(); ++i) {
    const LayerPlacement& layer = placement.layers[i];
    const LayerLoad& load = problem.loads[i];
    const std::vector<double> times = WorkerTimes(layer, load.mean, speeds);
    const double slowest = *std::max_element(times.begin(), times.end());
    const double balancedness = BalancednessAt(slowest, load.mean, speeds, problem.workers);
    sum.balancedness += balancedness;
    sum.slow_balancedness += load.samples.empty() ? balancedness : SlowBalancedness(layer, load, speeds);
    sum.imbalance += Imbalance(times);
    sum.cv += CoefficientOfVariation(times);
    sum.jain += JainIndex(times);
    sum.entropy += NormalizedEntropy(times);
    sum.gini += Gini(times);
  }
  for (double* figure :
       {&sum.balancedness, &sum.slow_balancedness, &sum.imbalance, &sum.cv, &sum.jain, &sum.entropy, &sum.gini})
    *figure /= static_cast<double>(placement.layers.size());
  return sum;
}

double SlowestTimes(const Placement& placement, const PlacementProblem& problem) {
  double sum = 0;
  for (std::size_t i = 0; i < placement.layers.size(); ++i) {
    const LayerPlacement& layer = placement.layers[i];
    const LayerLoad& load = problem.loads[i];
    double slowest = 0;
    double sampled = 0;
    for (const std::vector<double>& sample : load.samples) {
      slowest += SlowestTime(layer, sample, problem.worker_speeds);
      sampled += Total(sample);
    }
    sum += sampled > 0 ? slowest * Total(load.mean) / sampled : SlowestTime(layer, load.mean, problem.worker_speeds);
  }
  return sum;
}

double BestBalancedness(const PlacementProblem& problem) {
  if (problem.loads.empty()) return 1;
  const WorkerRoom room = RoomOf(problem);
  double sum = 0;
  for (const LayerLoad& load : problem.loads)
    sum += BalancednessAt(LowerBound(load.mean, room), load.mean, problem.worker_speeds, problem.workers);
  return sum / static_cast<double>(problem.loads.size());
}

std::uint64_t ExpertsMoved(const Placement& from, const Placement& to) {
  const std::vector<std::uint64_t> moved = MovedTo(from, to);
  return std::accumulate(moved.begin(), moved.end(), std::uint64_t{0});
}

std::uint64_t MostExpertsMoved(const Placement& from, const Placement& to) {
  const std::vector<std::uint64_t> moved = MovedTo(from, to);
  return moved.empty() ? 0 : *std::max_element(moved.begin(), moved.end());
}

}  // namespace moe
