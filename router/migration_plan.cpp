#include "router/migration_plan.h"

#include <algorithm>
#include <map>
#include <utility>

#include "core/check.h"

namespace moe {
namespace {

bool Hosts(const std::vector<int>& slots, int expert) { return std::ranges::find(slots, expert) != slots.end(); }

/// Whose checksums each worker is to tell, in order.
class ChecksumList {
 public:
  explicit ChecksumList(MigrationPlan& plan) : plan_(plan) {}

  void BeginLayer(int layer) {
    layer_ = layer;
    places_.clear();
  }
  /// Its place among the checksums of the worker; the same again for an expert that is there already.
  std::size_t Add(std::size_t worker, int expert) {
    const auto [place, added] = places_.try_emplace({worker, expert}, plan_.checksums[worker]);
    if (!added) return place->second;
    std::vector<WorkerPreparation::Checks>& checks = plan_.workers[worker].checks;
    if (checks.empty() || checks.back().layer != layer_) checks.push_back({.layer = layer_, .experts = {}});
    checks.back().experts.push_back(expert);
    ++plan_.checksums[worker];
    return place->second;
  }

 private:
  MigrationPlan& plan_;
  int layer_ = 0;
  std::map<std::pair<std::size_t, int>, std::size_t> places_;
};

}  // namespace

MigrationPlan PlanMigration(const Placement& from, const Placement& to, std::uint64_t bytes_per_s) {
  MOE_CHECK(from.workers == to.workers && from.layers.size() == to.layers.size());
  MigrationPlan plan;
  const auto workers = static_cast<std::size_t>(to.workers);
  plan.workers.assign(workers, {.generation = to.generation, .from = from.generation, .bytes_per_s = bytes_per_s});
  plan.checksums.assign(workers, 0);
  ChecksumList list(plan);
  for (std::size_t i = 0; i < to.layers.size(); ++i) {
    const LayerPlacement& before = from.layers[i];
    const LayerPlacement& after = to.layers[i];
    list.BeginLayer(after.layer);
    for (std::size_t w = 0; w < workers; ++w) {
      if (before.slots[w] == after.slots[w]) continue;
      plan.workers[w].layers.push_back({.layer = after.layer, .slots = after.slots[w]});
      for (const int expert : after.slots[w]) {
        if (Hosts(before.slots[w], expert)) continue;
        const auto host =
            std::ranges::find_if(before.slots, [&](const std::vector<int>& slots) { return Hosts(slots, expert); });
        const auto known = static_cast<std::size_t>(host - before.slots.begin());
        plan.comparisons.push_back({.layer = after.layer,
                                    .expert = expert,
                                    .known_worker = known,
                                    .known_index = list.Add(known, expert),
                                    .new_worker = w,
                                    .new_index = list.Add(w, expert)});
      }
    }
  }
  return plan;
}

}  // namespace moe
