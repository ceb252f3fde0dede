#include "placement/balanced_placement.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "placement/eplb.h"
#include "placement/layer_assignment.h"
#include "placement/layer_kick.h"
#include "placement/layer_packing.h"
#include "placement/layer_relief.h"
#include "placement/layer_spread.h"
#include "placement/placement_bound.h"

namespace moe {
namespace {

// Of the lower bound, at which a search from scratch and one from the placement in force are content.
constexpr double kScratchSlack = 1.002;
constexpr double kCurrentSlack = 1.01;
// Of the bound, that each expert moved must gain at least even where bytes cost nothing.
constexpr double kLeastGain = 1e-4;
// Sums of the same shares in another order differ by less.
constexpr double kRounding = 1 + 1e-9;

// Random starts beside the best of a layer that is not near the bound: where experts are few, the way to better is
// long.
constexpr int kMostKicks = 64;
// The same where eplb is better yet, divided by experts times workers, which a start takes time in proportion to.
constexpr int kWorkBehindEplb = 1 << 25;

using HostTable = std::vector<std::uint8_t>;  // (experts, workers)

/// One layer of a problem.
class LayerPlanner {
 public:
  LayerPlanner(const PlacementProblem& problem, const WorkerRoom& room, const LayerLoad& load,
               const LayerPlacement* current)
      : problem_(problem), room_(room), load_(load), current_(current), bound_(LowerBound(load.mean, room)) {
    if (current != nullptr) base_ = TableOf(*current);
    FindEplb();
  }

  LayerPlacement Plan() {
    LayerAssignment chosen = current_ == nullptr ? FromScratch() : FromCurrent();
    if (!load_.samples.empty())
      RelieveSpread(chosen, load_.samples,
                    {.mean_limit = std::max(chosen.slowest_time(), kCurrentSlack * bound_), .base = base_});
    if (current_ == nullptr) FillFreeSlots(chosen);
    return {.layer = load_.layer, .slots = Slots(chosen)};
  }

 private:
  HostTable TableOf(const LayerPlacement& placement) const {
    const std::size_t workers = room_.slots.size();
    HostTable table(workers * load_.mean.size(), 0);
    for (std::size_t w = 0; w < workers; ++w)
      for (const int expert : placement.slots[w]) table[static_cast<std::size_t>(expert) * workers + w] = 1;
    return table;
  }

  /// Eplb's result on the same slots, where its rule applies: something that ours must not fall behind.
  void FindEplb() {
    const EplbShape shape{.slots = problem_.slots, .devices = problem_.workers};
    const bool applies =
        problem_.worker_speeds.empty() && problem_.worker_slots.empty() && CheckEplb(shape, problem_.num_experts).ok();
    if (!applies) return;
    eplb_slots_ = EplbSlots(load_.mean, shape);
    const std::vector<double> loads = EplbDeviceLoads(load_.mean, eplb_slots_, shape.devices);
    eplb_time_ = *std::max_element(loads.begin(), loads.end());
  }

  LayerAssignment FromScratch() const {
    const double goal = std::min(kScratchSlack * bound_, eplb_time_);
    std::optional<LayerAssignment> best;
    const auto try_from = [&](LayerAssignment start) {
      (void)Relieve(start, {.target = goal});
      if (!best || start.slowest_time() < best->slowest_time()) best = std::move(start);
      return best->slowest_time() <= goal * kRounding;
    };
    // All slots first; with fewer replicas shares differ, and slots that stay free are room to move in.
    const int spare = room_.total_slots - problem_.num_experts;
    constexpr int kTries = 8;
    int tried = -1;
    for (int i = 0; i < kTries; ++i) {
      const int slots = room_.total_slots - spare * i / kTries;
      if (slots == tried) continue;
      tried = slots;
      LayerAssignment start(room_, load_.mean);
      PackLargestFirst(start, ReplicaCounts(load_.mean, slots, room_));
      if (try_from(std::move(start))) return *std::move(best);
    }
    if (std::isfinite(eplb_time_) && try_from(AsEplb())) return *std::move(best);
    // The way down ended at a point from which no single step helps: start again beside it.
    KickStream kicks;
    const int most = std::max(kMostKicks, kWorkBehindEplb / (problem_.num_experts * problem_.workers));
    for (int i = 0; i < most; ++i) {
      const bool behind = best->slowest_time() > eplb_time_ * kRounding;
      if (!behind && (i >= kMostKicks || best->slowest_time() <= kCurrentSlack * bound_)) break;
      LayerAssignment start = *best;
      Kick(start, kicks);
      (void)try_from(std::move(start));
    }
    return *std::move(best);
  }

  LayerAssignment AsEplb() const {
    LayerAssignment assignment(room_, load_.mean);
    const std::vector<std::vector<int>> hosted = EplbHosted(eplb_slots_, problem_.workers);
    for (std::size_t w = 0; w < hosted.size(); ++w)
      for (const int expert : hosted[w]) assignment.Add(static_cast<int>(w), expert);
    return assignment;
  }

  LayerAssignment FromCurrent() const {
    ReliefGoal goal{
        .target = std::min(kCurrentSlack * bound_, eplb_time_),
        .base = base_,
        .cost_per_move = kLeastGain * bound_ + problem_.cost_per_byte * static_cast<double>(problem_.bytes_per_expert)};
    if (problem_.cost_per_byte == 0 && std::isfinite(eplb_time_)) goal.required = eplb_time_ * kRounding;
    LayerAssignment moved(room_, load_.mean);
    PackAsBefore(moved, base_);
    const int moves = Relieve(moved, goal);
    if (moved.slowest_time() <= goal.target * kRounding) return moved;
    LayerAssignment fresh = Renumbered(FromScratch());
    const double moved_weighed = WeighedTime(moved.slowest_time(), moves, goal);
    const double fresh_weighed = WeighedTime(fresh.slowest_time(), CountMoves(fresh, base_), goal);
    return fresh_weighed < moved_weighed ? fresh : moved;
  }

  /// The same with workers of one kind exchanged so that many keep what they have: pairs with most in common first.
  LayerAssignment Renumbered(const LayerAssignment& fresh) const {
    struct Pair {
      int common = 0;
      int fresh = 0;
      int worker = 0;
    };
    std::vector<Pair> pairs;
    const std::size_t workers = room_.slots.size();
    for (int f = 0; f < fresh.workers(); ++f) {
      for (int w = 0; w < fresh.workers(); ++w) {
        const std::size_t a = static_cast<std::size_t>(f);
        const std::size_t b = static_cast<std::size_t>(w);
        if (room_.speeds[a] != room_.speeds[b] || room_.slots[a] != room_.slots[b]) continue;
        int common = 0;
        for (const int expert : fresh.slots(f)) common += base_[static_cast<std::size_t>(expert) * workers + b];
        pairs.push_back({.common = common, .fresh = f, .worker = w});
      }
    }
    std::stable_sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) { return a.common > b.common; });
    std::vector<std::uint8_t> placed(workers, 0);
    std::vector<std::uint8_t> taken(workers, 0);
    LayerAssignment renumbered(room_, load_.mean);
    for (const Pair& pair : pairs) {
      std::uint8_t& from = placed[static_cast<std::size_t>(pair.fresh)];
      std::uint8_t& to = taken[static_cast<std::size_t>(pair.worker)];
      if (from != 0 || to != 0) continue;
      from = to = 1;
      for (const int expert : fresh.slots(pair.fresh)) renumbered.Add(pair.worker, expert);
    }
    return renumbered;
  }

  /// By worker: what it keeps where it was, newcomers in the slots that became free and after them.
  std::vector<std::vector<int>> Slots(const LayerAssignment& assignment) const {
    std::vector<std::vector<int>> slots;
    for (int w = 0; w < assignment.workers(); ++w) {
      std::vector<int> wanted(assignment.slots(w).begin(), assignment.slots(w).end());
      std::sort(wanted.begin(), wanted.end());
      if (current_ == nullptr) {
        slots.push_back(std::move(wanted));
        continue;
      }
      const std::vector<int>& had = current_->slots[static_cast<std::size_t>(w)];
      std::vector<int> newcomers;
      for (const int expert : wanted)
        if (std::find(had.begin(), had.end(), expert) == had.end()) newcomers.push_back(expert);
      std::vector<int>& list = slots.emplace_back();
      auto next = newcomers.begin();
      for (const int expert : had) {
        if (std::binary_search(wanted.begin(), wanted.end(), expert)) {
          list.push_back(expert);
        } else if (next != newcomers.end()) {
          list.push_back(*next++);
        }
      }
      list.insert(list.end(), next, newcomers.end());
    }
    return slots;
  }

  const PlacementProblem& problem_;
  const WorkerRoom& room_;
  const LayerLoad& load_;
  const LayerPlacement* current_;
  const double bound_;
  std::vector<int> eplb_slots_;                                 // (slots), device by device
  double eplb_time_ = std::numeric_limits<double>::infinity();  // of its slowest device
  HostTable base_;
};

}  // namespace

Result<Placement> BalancedPlacement(const PlacementProblem& problem) {
  const WorkerRoom room = RoomOf(problem);
  Placement placement{.num_experts = problem.num_experts, .workers = problem.workers};
  for (std::size_t i = 0; i < problem.loads.size(); ++i) {
    const LayerPlacement* current = problem.current ? &problem.current->layers[i] : nullptr;
    placement.layers.push_back(LayerPlanner(problem, room, problem.loads[i], current).Plan());
  }
  return placement;
}

}  // namespace moe
