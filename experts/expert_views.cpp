#include "experts/expert_views.h"

#include <algorithm>
#include <set>
#include <utility>

#include "model/weight_bytes.h"

namespace moe {
namespace {

Status CheckExpert(int layer, int expert, int num_experts) {
  if (expert >= 0 && expert < num_experts) return Status::Ok();
  return InvalidArgument("layer ", layer, ": expert ", expert, " is not in 0 … ", num_experts - 1);
}

}  // namespace

Status CheckSlots(const WorkerAssignment::Layer& slots, int num_experts) {
  std::vector<bool> here(static_cast<std::size_t>(num_experts), false);
  for (const int expert : slots.slots) {
    MOE_RETURN_IF_ERROR(CheckExpert(slots.layer, expert, num_experts));
    if (here[static_cast<std::size_t>(expert)])
      return InvalidArgument("layer ", slots.layer, ": expert ", expert, " is there twice");
    here[static_cast<std::size_t>(expert)] = true;
  }
  return Status::Ok();
}

ExpertViews::ExpertViews(Options options) : options_(std::move(options)) {}

const ExpertShard* ExpertViews::Find(int router, std::uint64_t generation) const {
  for (const Holding& holding : holdings_)
    if (holding.router == router && holding.generation == generation) return holding.shard.get();
  return nullptr;
}

const ExpertShard* ExpertViews::Use(int router, std::uint64_t generation) {
  for (Holding& holding : holdings_) {
    if (holding.router != router || holding.generation != generation) continue;
    holding.prepared = false;
    return holding.shard.get();
  }
  return nullptr;
}

void ExpertViews::Hold(int router, std::uint64_t generation, Shard shard) {
  std::erase_if(holdings_, [&](const Holding& h) {
    return (h.router == router && h.generation == generation) || (h.router == kNobody && h.shard == shard);
  });
  holdings_.push_back({.router = router, .generation = generation, .shard = std::move(shard)});
  Show();
}

void ExpertViews::HoldForAll(std::uint64_t generation, Shard shard) {
  for_all_ = {.generation = generation, .shard = std::move(shard)};
  Show();
}

void ExpertViews::Meet(int router) {
  if (std::ranges::find(met_, router) != met_.end()) return;
  met_.push_back(router);
  if (for_all_) Hold(router, for_all_->generation, for_all_->shard);
}

ExpertViews::Shard ExpertViews::FindSame(const std::vector<WorkerAssignment::Layer>& layers) const {
  const auto same = [](const ExpertShard::Layer& ours, const WorkerAssignment::Layer& wanted) {
    return ours.layer == wanted.layer && ours.experts == wanted.slots;
  };
  for (const Holding& holding : holdings_)
    if (std::ranges::equal(holding.shard->layers(), layers, same)) return holding.shard;
  return nullptr;
}

void ExpertViews::Share(ExpertShard& shard) const {
  for (const Holding& holding : holdings_) shard.TakeFrom(*holding.shard);
}

void ExpertViews::Leave(int router) {
  for (Preparation& preparation : preparations_)
    if (preparation.router == router) GiveUp(preparation);
  std::erase_if(preparations_, [&](const Preparation& p) { return p.router == router; });
  std::erase_if(holdings_, [&](const Holding& h) { return h.router == router && h.prepared; });
  for (Holding& holding : holdings_)
    if (holding.router == router) holding.router = kNobody;
  Show();
}

void ExpertViews::DropDetached(const std::function<bool(int router)>& attached, TimePoint now, Clock::duration keep) {
  const auto gone = [&](int router) { return router == kNobody || !attached(router); };
  for (Preparation& preparation : preparations_)
    if (gone(preparation.router)) GiveUp(preparation);
  std::erase_if(preparations_, [&](const Preparation& p) { return gone(p.router); });
  EndLoads();
  const bool others = std::ranges::any_of(holdings_, [&](const Holding& h) { return !gone(h.router); });
  const std::size_t dropped = std::erase_if(holdings_, [&](Holding& holding) {
    if (!gone(holding.router)) return false;
    if (holding.prepared) return true;
    if (!holding.left_at) holding.left_at = now;
    return others && now - *holding.left_at >= keep;
  });
  if (dropped > 0) Show();
}

Status ExpertViews::Prepare(int router, const WorkerPreparation& wanted) {
  EndLoads();
  for (Preparation& preparation : preparations_) {
    Settle(preparation);
    if (preparation.loading != nullptr || preparation.router == router)
      return FailedPrecondition("another migration is under way here, to generation ", preparation.generation);
  }
  MOE_ASSIGN_OR_RETURN(ExpertShard shard, Arrange(router, wanted));
  MOE_ASSIGN_OR_RETURN(std::vector<ShardLoading::Options::Check> checks,
                       FindChecks(*Find(router, wanted.from), shard, wanted));
  Share(shard);
  MOE_RETURN_IF_ERROR(CheckMemory(shard));
  preparations_.push_back({.router = router, .generation = wanted.generation, .from = wanted.from});
  preparations_.back().loading = std::make_unique<ShardLoading>(ShardLoading::Options{.shard = std::move(shard),
                                                                                      .load = options_.load,
                                                                                      .bytes_per_s = wanted.bytes_per_s,
                                                                                      .checks = std::move(checks)});
  return Status::Ok();
}

Result<ExpertShard> ExpertViews::Arrange(int router, const WorkerPreparation& wanted) const {
  const ExpertShard* const from = Find(router, wanted.from);
  if (from == nullptr) return InvalidArgument("placement generation ", wanted.from, " is unknown here");
  if (wanted.generation <= wanted.from)
    return InvalidArgument("placement generation ", wanted.generation, " does not come after ", wanted.from);
  if (Find(router, wanted.generation) != nullptr)
    return InvalidArgument("placement generation ", wanted.generation, " is hosted already");
  for (const WorkerAssignment::Layer& layer : wanted.layers)
    MOE_RETURN_IF_ERROR(CheckSlots(layer, options_.config.num_experts()));
  return from->Rearranged(wanted.generation, wanted.layers);
}

Result<std::vector<ShardLoading::Options::Check>> ExpertViews::FindChecks(const ExpertShard& from,
                                                                          const ExpertShard& shard,
                                                                          const WorkerPreparation& wanted) const {
  std::vector<ShardLoading::Options::Check> checks;
  for (const WorkerPreparation::Checks& of : wanted.checks) {
    const ExpertShard::Layer* const layer = shard.Find(static_cast<std::uint32_t>(of.layer));
    if (layer == nullptr) return InvalidArgument("layer ", of.layer, " has no experts");
    for (const int expert : of.experts) {
      MOE_RETURN_IF_ERROR(CheckExpert(of.layer, expert, options_.config.num_experts()));
      std::shared_ptr<const MlpWeights> here = from.Expert(of.layer, expert);
      if (here == nullptr && std::ranges::find(layer->experts, expert) == layer->experts.end())
        return InvalidArgument("layer ", of.layer, ": expert ", expert, " is to be checked and not here");
      checks.push_back({.layer = of.layer, .expert = expert, .weights = std::move(here)});
    }
  }
  return checks;
}

Status ExpertViews::CheckMemory(const ExpertShard& shard) const {
  std::uint64_t bytes = 0;
  for (const ExpertShard::Missing& missing : shard.missing())
    bytes += ExpertBytes(options_.config, shard.layers()[missing.index].layer, options_.types);
  const std::uint64_t free = options_.free_memory();
  if (free == 0 || bytes <= free) return Status::Ok();
  return ResourceExhausted("its new experts would take ", bytes, " bytes, ", free, " are free");
}

void ExpertViews::Settle(Preparation& preparation) {
  ShardLoading* const loading = preparation.loading.get();
  if (loading == nullptr) return;
  const bool done = loading->done();  // before the figures, which do not change any more then
  preparation.status.loaded_experts = loading->loaded_experts();
  preparation.status.loaded_bytes = loading->loaded_bytes();
  if (!done) return;
  if (loading->outcome().ok()) {
    preparation.status.state = PreparationState::kReady;
    preparation.checksums = loading->checksums();
    Hold(preparation.router, preparation.generation, std::make_shared<const ExpertShard>(loading->TakeShard()));
    holdings_.back().prepared = true;
  } else {
    preparation.status.state = PreparationState::kFailed;
    preparation.status.failure = loading->outcome();
  }
  preparation.loading.reset();
}

Result<PreparationStatus> ExpertViews::StatusOf(int router, const PreparationQuery& query) {
  const auto preparation = std::ranges::find_if(
      preparations_, [&](const Preparation& p) { return p.router == router && p.generation == query.generation; });
  if (preparation == preparations_.end())
    return InvalidArgument("placement generation ", query.generation, " is not being prepared here");
  Settle(*preparation);
  PreparationStatus status = preparation->status;
  const std::vector<std::uint64_t>& all = preparation->checksums;
  const std::size_t first = std::min<std::uint64_t>(query.first_checksum, all.size());
  const std::size_t count = std::min(all.size() - first, kMostChecksums);
  status.checksums.assign(all.begin() + static_cast<std::ptrdiff_t>(first),
                          all.begin() + static_cast<std::ptrdiff_t>(first + count));
  return status;
}

void ExpertViews::Drop(int router, std::uint64_t generation) {
  const auto meant = [&](const Preparation& p) {
    return p.router == router && (p.generation == generation || p.from == generation);
  };
  for (Preparation& preparation : preparations_)
    if (meant(preparation)) GiveUp(preparation);
  std::erase_if(preparations_, meant);
  std::erase_if(holdings_, [&](const Holding& h) { return h.router == router && h.generation == generation; });
  if (for_all_ && for_all_->generation == generation) for_all_.reset();
  EndLoads();
  Show();
}

void ExpertViews::GiveUp(Preparation& preparation) {
  if (preparation.loading == nullptr) return;
  preparation.loading->GiveUp();
  given_up_.push_back(std::move(preparation.loading));
}

void ExpertViews::EndLoads() {
  std::erase_if(given_up_, [](const std::unique_ptr<ShardLoading>& loading) { return loading->done(); });
}

HostedExperts ExpertViews::hosted() const {
  const std::lock_guard lock(mutex_);
  return hosted_;
}

void ExpertViews::Show() {
  HostedExperts now;
  std::set<const MlpWeights*> counted;
  const auto count = [&](const Holding& holding) {
    for (const ExpertShard::Layer& layer : holding.shard->layers()) {
      for (const std::shared_ptr<const MlpWeights>& weights : layer.weights) {
        if (!counted.insert(weights.get()).second) continue;
        now.parameters += weights->parameters();
        now.bytes += weights->bytes();
      }
    }
  };
  const Holding* last = for_all_ ? &*for_all_ : nullptr;
  if (for_all_) count(*for_all_);
  for (const Holding& holding : holdings_) {
    count(holding);
    last = &holding;
  }
  if (last != nullptr) {
    now.generation = last->generation;
    now.slots = last->shard->slots();
    for (const ExpertShard::Layer& layer : last->shard->layers())
      now.layers.push_back({.layer = layer.layer, .experts = layer.experts});
  }
  {
    const std::lock_guard lock(mutex_);
    hosted_ = now;
  }
  if (options_.on_hosted) options_.on_hosted(now);
}

}  // namespace moe
