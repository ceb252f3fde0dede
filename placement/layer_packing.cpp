#include "placement/layer_packing.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/check.h"

namespace moe {
namespace {

/// The worker with a slot and without the expert that has it done first; −1: none.
int BestHost(const LayerAssignment& a, int expert, double share) {
  int best = -1;
  double least = 0;
  for (int w = 0; w < a.workers(); ++w) {
    if (!a.HasSlot(w) || a.Hosts(w, expert)) continue;
    const double time = (a.load_on(w) + share) / a.speed(w);
    if (best >= 0 && time >= least) continue;
    best = w;
    least = time;
  }
  return best;
}

/// Makes a slot free on a worker without the expert, by sending one of its experts to a worker that has a slot (and has
/// the expert, or BestHost had found it). Returns that worker; −1: nobody can.
int MakeRoom(LayerAssignment& a, int expert) {
  for (int full = 0; full < a.workers(); ++full) {
    if (a.Hosts(full, expert) || a.slots(full).empty()) continue;
    for (int with_slot = 0; with_slot < a.workers(); ++with_slot) {
      if (!a.HasSlot(with_slot)) continue;
      for (const int other : a.slots(full)) {
        if (a.Hosts(with_slot, other)) continue;
        a.Remove(full, other);
        a.Add(with_slot, other);
        return full;
      }
    }
  }
  return -1;
}

int LastOrLightest(const LayerAssignment& a, int worker) {
  int chosen = -1;
  for (const int expert : a.slots(worker)) {
    const auto before = [&](int one, int two) {
      const bool spare_one = a.replicas(one) > 1;
      const bool spare_two = a.replicas(two) > 1;
      if (spare_one != spare_two) return spare_one;
      if (a.share(one) != a.share(two)) return a.share(one) < a.share(two);
      return one < two;
    };
    if (chosen < 0 || before(expert, chosen)) chosen = expert;
  }
  return chosen;
}

}  // namespace

void PackLargestFirst(LayerAssignment& a, std::span<const int> replicas) {
  std::vector<int> order(replicas.size());
  std::iota(order.begin(), order.end(), 0);
  const auto share = [&](int e) { return a.share_of(e, replicas[static_cast<std::size_t>(e)]); };
  // Experts that every worker has are placed while every worker has a slot.
  const auto everywhere = [&](int e) { return replicas[static_cast<std::size_t>(e)] == a.workers(); };
  std::stable_sort(order.begin(), order.end(), [&](int one, int two) {
    if (everywhere(one) != everywhere(two)) return everywhere(one);
    return share(one) > share(two);
  });
  // One of each first, so that no expert is left without for others' replicas: slots are reserved, not filled.
  int reserved = a.experts();
  for (const int expert : order) {
    --reserved;
    for (int r = 0; r < replicas[static_cast<std::size_t>(expert)]; ++r) {
      if (r > 0 && a.total() + reserved >= a.room().total_slots) break;
      int worker = BestHost(a, expert, share(expert));
      if (worker < 0) worker = MakeRoom(a, expert);
      if (worker < 0) break;
      a.Add(worker, expert);
    }
    MOE_CHECK(a.replicas(expert) > 0);
  }
}

void PackAsBefore(LayerAssignment& a, std::span<const std::uint8_t> hosted) {
  // Where there is too little room now, an assignment with enough takes all of it first.
  WorkerRoom room = a.room();
  const std::size_t workers = static_cast<std::size_t>(a.workers());
  room.slots.assign(workers, a.experts());
  LayerAssignment before(room, a.load());
  for (int w = 0; w < a.workers(); ++w)
    for (int e = 0; e < a.experts(); ++e)
      if (hosted[static_cast<std::size_t>(e) * workers + static_cast<std::size_t>(w)] != 0) before.Add(w, e);
  std::vector<int> homeless;
  for (int w = 0; w < a.workers(); ++w) {
    while (static_cast<int>(before.slots(w).size()) > a.room().slots[static_cast<std::size_t>(w)]) {
      const int expert = LastOrLightest(before, w);
      if (before.replicas(expert) == 1) homeless.push_back(expert);
      before.Remove(w, expert);
    }
  }
  while (before.total() + static_cast<int>(homeless.size()) > a.room().total_slots) {
    int from = -1;
    int chosen = -1;
    for (int w = 0; w < a.workers(); ++w) {
      const int expert = LastOrLightest(before, w);
      if (expert < 0 || before.replicas(expert) < 2) continue;
      if (chosen >= 0 && before.share(expert) >= before.share(chosen)) continue;
      from = w;
      chosen = expert;
    }
    MOE_CHECK(chosen >= 0);
    before.Remove(from, chosen);
  }
  for (int w = 0; w < a.workers(); ++w)
    for (const int expert : before.slots(w)) a.Add(w, expert);
  for (const int expert : homeless) {
    const int worker = BestHost(a, expert, a.share_of(expert, 1));
    MOE_CHECK(worker >= 0);
    a.Add(worker, expert);
  }
}

void FillFreeSlots(LayerAssignment& a) {
  const double limit = a.slowest_time();
  const auto lighter = [&](int one, int two) {
    return a.share(one) < a.share(two) || (a.share(one) == a.share(two) && one > two);
  };
  // A heap by share; only that of the expert on top changes, and it goes back with the new one.
  std::vector<int> heap(static_cast<std::size_t>(a.experts()));
  std::iota(heap.begin(), heap.end(), 0);
  std::make_heap(heap.begin(), heap.end(), lighter);
  while (a.HasTotal() && !heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), lighter);
    const int expert = heap.back();
    const double share = a.share_of(expert, a.replicas(expert) + 1);
    const int worker = BestHost(a, expert, share);
    if (worker < 0 || (a.load_on(worker) + share) / a.speed(worker) > limit) {
      heap.pop_back();
      continue;
    }
    a.Add(worker, expert);
    std::push_heap(heap.begin(), heap.end(), lighter);
  }
}

}  // namespace moe
