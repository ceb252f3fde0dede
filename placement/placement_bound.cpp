#include "placement/placement_bound.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

namespace moe {
namespace {

/// Largest first; of equals the lowest id.
struct LessUrgent {
  bool operator()(const std::pair<double, int>& a, const std::pair<double, int>& b) const {
    return a.first < b.first || (a.first == b.first && a.second > b.second);
  }
};
using UrgentFirst = std::priority_queue<std::pair<double, int>, std::vector<std::pair<double, int>>, LessUrgent>;

int WorkersWithSlots(const WorkerRoom& room) {
  return static_cast<int>(std::count_if(room.slots.begin(), room.slots.end(), [](int slots) { return slots > 0; }));
}

}  // namespace

std::vector<int> ReplicaCounts(std::span<const double> load, int slots, const WorkerRoom& room) {
  std::vector<int> counts(load.size(), 1);
  const int most = WorkersWithSlots(room);
  UrgentFirst queue;
  for (std::size_t e = 0; e < load.size(); ++e)
    if (most > 1) queue.emplace(load[e], static_cast<int>(e));
  for (int used = static_cast<int>(load.size()); used < slots && !queue.empty(); ++used) {
    const int expert = queue.top().second;
    queue.pop();
    const std::size_t e = static_cast<std::size_t>(expert);
    if (++counts[e] < most) queue.emplace(load[e] / counts[e], expert);
  }
  return counts;
}

double LowerBound(std::span<const double> load, const WorkerRoom& room) {
  if (load.empty()) return 0;
  double all_speeds = 0;
  std::vector<double> speeds;  // of workers that can host anything, fastest first
  for (std::size_t w = 0; w < room.slots.size(); ++w)
    if (room.slots[w] > 0) speeds.push_back(room.speeds[w]);
  for (const double speed : speeds) all_speeds += speed;
  std::sort(speeds.begin(), speeds.end(), std::greater<>());
  // The time of c replicas on the c fastest workers is that of the slowest of them; with unequal speeds more replicas
  // can be worse, so each step goes on to the next number that is better.
  const auto time = [&](std::size_t e, std::size_t c) { return load[e] / static_cast<double>(c) / speeds[c - 1]; };
  UrgentFirst queue;
  std::vector<std::size_t> counts(load.size(), 1);
  for (std::size_t e = 0; e < load.size(); ++e) queue.emplace(time(e, 1), static_cast<int>(e));
  int left = room.total_slots - static_cast<int>(load.size());
  while (left > 0) {
    const auto [slowest, expert] = queue.top();
    const std::size_t e = static_cast<std::size_t>(expert);
    std::size_t next = counts[e] + 1;
    while (next <= speeds.size() && time(e, next) >= slowest) ++next;
    if (next > speeds.size() || next - counts[e] > static_cast<std::size_t>(left)) break;
    left -= static_cast<int>(next - counts[e]);
    counts[e] = next;
    queue.pop();
    queue.emplace(time(e, next), expert);
  }
  return std::max(std::accumulate(load.begin(), load.end(), 0.0) / all_speeds, queue.top().first);
}

}  // namespace moe
