#include "placement/layer_assignment.h"

#include <algorithm>

#include "core/check.h"

namespace moe {

LayerAssignment::LayerAssignment(const WorkerRoom& room, std::span<const double> load)
    : room_(&room),
      load_(load),
      stride_(room.slots.empty()
                  ? 0
                  : static_cast<std::size_t>(std::min(*std::max_element(room.slots.begin(), room.slots.end()),
                                                      static_cast<int>(load.size())))),
      hosted_(load.size() * room.slots.size(), 0),
      slots_(stride_ * room.slots.size()),
      sizes_(room.slots.size(), 0),
      replicas_(load.size(), 0),
      shares_(load.begin(), load.end()),
      loads_(room.slots.size(), 0) {}

int LayerAssignment::slowest() const {
  int slowest = 0;
  double longest = time(0);
  for (int w = 1; w < workers(); ++w) {
    const double here = time(w);
    if (here > longest) {
      longest = here;
      slowest = w;
    }
  }
  return slowest;
}

void LayerAssignment::ShareAmong(int expert, int replicas) {
  const std::size_t e = static_cast<std::size_t>(expert);
  replicas_[e] = replicas;
  const double share = replicas == 0 ? load_[e] : load_[e] / replicas;
  const double change = share - shares_[e];
  shares_[e] = share;
  const std::span<const std::uint8_t> hosting = hosts(expert);
  for (std::size_t w = 0; w < hosting.size(); ++w)
    if (hosting[w] != 0) loads_[w] += change;
}

void LayerAssignment::Add(int worker, int expert) {
  const std::size_t w = static_cast<std::size_t>(worker);
  MOE_CHECK(!Hosts(worker, expert) && sizes_[w] < static_cast<int>(stride_));
  ShareAmong(expert, replicas(expert) + 1);
  hosted_[At(worker, expert)] = 1;
  loads_[w] += share(expert);
  slots_[w * stride_ + static_cast<std::size_t>(sizes_[w]++)] = expert;
  ++total_;
}

void LayerAssignment::Remove(int worker, int expert) {
  const std::size_t w = static_cast<std::size_t>(worker);
  MOE_CHECK(Hosts(worker, expert));
  hosted_[At(worker, expert)] = 0;
  loads_[w] -= share(expert);
  ShareAmong(expert, replicas(expert) - 1);
  const std::span<int> mine = std::span(slots_).subspan(w * stride_, static_cast<std::size_t>(sizes_[w]));
  *std::find(mine.begin(), mine.end(), expert) = mine.back();
  --sizes_[w];
  --total_;
}

}  // namespace moe
