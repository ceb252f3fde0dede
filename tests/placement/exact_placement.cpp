#include "tests/placement/exact_placement.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <vector>

namespace moe {
namespace {

class BranchAndBound {
 public:
  BranchAndBound(std::span<const double> load, const WorkerRoom& room)
      : load_(load), room_(room), order_(load.size()), loads_(room.slots.size(), 0), free_(room.slots) {
    // Heavy experts first, so that bad branches end early.
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    std::sort(order_.begin(), order_.end(), [&](std::size_t a, std::size_t b) { return load[a] > load[b]; });
  }

  double Run() {
    Place(0, room_.total_slots);
    return best_;
  }

 private:
  double Slowest() const {
    double slowest = 0;
    for (std::size_t w = 0; w < loads_.size(); ++w) slowest = std::max(slowest, loads_[w] / room_.speeds[w]);
    return slowest;
  }

  /// The i-th expert onwards, with so many slots left.
  void Place(std::size_t i, int slots) {
    if (Slowest() >= best_) return;
    if (i == order_.size()) {
      best_ = Slowest();
      return;
    }
    const int others = static_cast<int>(order_.size() - i) - 1;
    for (unsigned set = 1; set < 1u << loads_.size(); ++set) {
      const int replicas = std::popcount(set);
      if (replicas > slots - others || !Fits(set)) continue;
      Change(set, load_[order_[i]] / replicas, -1);
      Place(i + 1, slots - replicas);
      Change(set, -load_[order_[i]] / replicas, 1);
    }
  }

  bool Fits(unsigned set) const {
    for (std::size_t w = 0; w < free_.size(); ++w)
      if ((set >> w & 1) != 0 && free_[w] == 0) return false;
    return true;
  }

  void Change(unsigned set, double share, int slots) {
    for (std::size_t w = 0; w < free_.size(); ++w) {
      if ((set >> w & 1) == 0) continue;
      loads_[w] += share;
      free_[w] += slots;
    }
  }

  std::span<const double> load_;
  const WorkerRoom& room_;
  std::vector<std::size_t> order_;
  std::vector<double> loads_;
  std::vector<int> free_;
  double best_ = std::numeric_limits<double>::infinity();
};

}  // namespace

double LeastSlowestTime(std::span<const double> load, const WorkerRoom& room) {
  return BranchAndBound(load, room).Run();
}

}  // namespace moe
