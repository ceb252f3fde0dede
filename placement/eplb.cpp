#include "placement/eplb.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <utility>

#include "core/check.h"

namespace moe {
namespace {

/// Indices of `weights` by descending weight, lower index first on a tie.
std::vector<int> HeaviestFirst(std::span<const double> weights) {
  std::vector<int> order(weights.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return weights[static_cast<std::size_t>(a)] > weights[static_cast<std::size_t>(b)];
  });
  return order;
}

/// `weights` into `packs` packs of equally many, heaviest first into the lightest pack that is not full: the items of
/// each pack, in the order in which they were put there.
std::vector<std::vector<int>> PackEvenly(std::span<const double> weights, int packs) {
  const std::size_t each = weights.size() / static_cast<std::size_t>(packs);
  std::vector<std::vector<int>> packed(static_cast<std::size_t>(packs));
  if (each == 1) {
    for (std::size_t i = 0; i < packed.size(); ++i) packed[i].push_back(static_cast<int>(i));
    return packed;
  }
  using Pack = std::pair<double, int>;  // (weight, index): the least is the lightest, lowest index on a tie
  std::priority_queue<Pack, std::vector<Pack>, std::greater<>> open;
  for (int p = 0; p < packs; ++p) open.emplace(0, p);
  for (const int item : HeaviestFirst(weights)) {
    const auto [weight, p] = open.top();
    open.pop();
    std::vector<int>& pack = packed[static_cast<std::size_t>(p)];
    pack.push_back(item);
    if (pack.size() < each) open.emplace(weight + weights[static_cast<std::size_t>(item)], p);
  }
  return packed;
}

/// Every slot's item: all of `weights` once, then each further slot to the item with most weight per slot. The rule
/// wants the items in this order, and knows no most number of an item (ReplicaCounts does).
std::vector<int> ReplicateHeaviest(std::span<const double> weights, std::size_t slots) {
  std::vector<int> items(weights.size());
  std::iota(items.begin(), items.end(), 0);
  std::vector<int> counts(weights.size(), 1);
  const auto lighter = [](const std::pair<double, int>& a, const std::pair<double, int>& b) {
    return a.first < b.first || (a.first == b.first && a.second > b.second);
  };
  std::priority_queue<std::pair<double, int>, std::vector<std::pair<double, int>>, decltype(lighter)> queue(lighter);
  for (const int item : items) queue.emplace(weights[static_cast<std::size_t>(item)], item);
  while (items.size() < slots) {
    const int item = queue.top().second;
    queue.pop();
    items.push_back(item);
    const std::size_t i = static_cast<std::size_t>(item);
    queue.emplace(weights[i] / ++counts[i], item);
  }
  return items;
}

/// The slots of one node whose experts are `experts`: replicated to `slots`, packed onto `devices`.
void FillNode(std::span<const double> load, std::span<const int> experts, int slots, int devices,
              std::vector<int>& out) {
  std::vector<double> weights;
  for (const int expert : experts) weights.push_back(load[static_cast<std::size_t>(expert)]);
  const std::vector<int> items = ReplicateHeaviest(weights, static_cast<std::size_t>(slots));
  std::vector<int> counts(weights.size(), 0);
  for (const int item : items) ++counts[static_cast<std::size_t>(item)];
  std::vector<double> shares;
  for (const int item : items)
    shares.push_back(weights[static_cast<std::size_t>(item)] / counts[static_cast<std::size_t>(item)]);
  for (const std::vector<int>& device : PackEvenly(shares, devices))
    for (const int slot : device)
      out.push_back(experts[static_cast<std::size_t>(items[static_cast<std::size_t>(slot)])]);
}

}  // namespace

Status CheckEplb(const EplbShape& shape, int num_experts) {
  if (shape.slots < 1 || shape.devices < 1 || shape.nodes < 1 || shape.groups < 1)
    return InvalidArgument("eplb: slots ", shape.slots, ", workers ", shape.devices, ", nodes ", shape.nodes,
                           ", groups ", shape.groups, ": each must be at least 1");
  if (shape.slots < num_experts)
    return InvalidArgument("eplb: ", shape.slots, " slots are fewer than the ", num_experts, " experts");
  if (shape.slots % shape.devices != 0)
    return InvalidArgument("eplb: ", shape.slots, " slots cannot be divided evenly by ", shape.devices, " workers");
  if (shape.devices % shape.nodes != 0)
    return InvalidArgument("eplb: ", shape.devices, " workers cannot be divided evenly by ", shape.nodes, " nodes");
  if (num_experts % shape.groups != 0)
    return InvalidArgument("eplb: ", num_experts, " experts cannot be divided evenly by ", shape.groups, " groups");
  return Status::Ok();
}

std::vector<int> EplbSlots(std::span<const double> load, const EplbShape& shape) {
  MOE_CHECK(CheckEplb(shape, static_cast<int>(load.size())).ok());
  const bool hierarchical = shape.groups % shape.nodes == 0;
  const int nodes = hierarchical ? shape.nodes : 1;
  const int groups = hierarchical ? shape.groups : 1;
  const std::size_t group_size = load.size() / static_cast<std::size_t>(groups);
  std::vector<double> group_loads(static_cast<std::size_t>(groups), 0);
  for (std::size_t e = 0; e < load.size(); ++e) group_loads[e / group_size] += load[e];
  std::vector<int> slots;
  for (const std::vector<int>& node : PackEvenly(group_loads, nodes)) {
    std::vector<int> experts;
    for (const int group : node) {
      const int first = group * static_cast<int>(group_size);
      for (int e = first; e < first + static_cast<int>(group_size); ++e) experts.push_back(e);
    }
    FillNode(load, experts, shape.slots / nodes, shape.devices / nodes, slots);
  }
  return slots;
}

std::vector<std::vector<int>> EplbHosted(std::span<const int> slots, int devices) {
  const std::size_t each = slots.size() / static_cast<std::size_t>(devices);
  std::vector<std::vector<int>> hosted(static_cast<std::size_t>(devices));
  for (std::size_t s = 0; s < slots.size(); ++s) {
    std::vector<int>& device = hosted[s / each];
    if (std::find(device.begin(), device.end(), slots[s]) == device.end()) device.push_back(slots[s]);
  }
  return hosted;
}

std::vector<double> EplbDeviceLoads(std::span<const double> load, std::span<const int> slots, int devices) {
  std::vector<int> counts(load.size(), 0);
  for (const int expert : slots) ++counts[static_cast<std::size_t>(expert)];
  const std::size_t each = slots.size() / static_cast<std::size_t>(devices);
  std::vector<double> loads(static_cast<std::size_t>(devices), 0);
  for (std::size_t s = 0; s < slots.size(); ++s) {
    const std::size_t expert = static_cast<std::size_t>(slots[s]);
    loads[s / each] += load[expert] / counts[expert];
  }
  return loads;
}

}  // namespace moe
