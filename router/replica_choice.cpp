#include "router/replica_choice.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "core/check.h"

namespace moe {

ReplicaChoice::ReplicaChoice(std::size_t num_experts, int workers)
    : local_(NoWorkers(workers)),
      worker_rows_(static_cast<std::size_t>(workers)),
      first_share_(num_experts),
      seen_(worker_rows_.size()),
      hops_(worker_rows_.size()),
      goes_(worker_rows_.size()) {
  choices_.reserve(num_experts);
  shares_.reserve(num_experts * worker_rows_.size());
  reached_.reserve(worker_rows_.size());
}

void ReplicaChoice::SetLocal(WorkerMask local) {
  MOE_CHECK(local.size() == worker_rows_.size());
  local_ = std::move(local);
  const auto count = static_cast<std::size_t>(CountWorkers(local_));
  some_local_ = count > 0 && count < local_.size();
}

void ReplicaChoice::BeginLayer() { std::ranges::fill(worker_rows_, 0); }

void ReplicaChoice::Deal(const ReplicaTable& replicas, std::size_t sparse_index,
                         std::span<const std::uint32_t> expert_rows) {
  choices_.clear();
  shares_.clear();
  for (std::size_t expert = 0; expert < expert_rows.size(); ++expert) {
    if (expert_rows[expert] == 0) continue;
    const std::span<const ReplicaSlot> slots = replicas.replicas(sparse_index, expert);
    MOE_CHECK(!slots.empty());
    if (slots.size() == 1) {
      worker_rows_[slots[0].worker.index()] += expert_rows[expert];
      continue;
    }
    first_share_[expert] = static_cast<std::uint32_t>(shares_.size());
    choices_.push_back({.expert = static_cast<std::uint32_t>(expert),
                        .rows = expert_rows[expert],
                        .first = first_share_[expert],
                        .replicas = static_cast<std::uint32_t>(slots.size())});
    for (const ReplicaSlot& slot : slots)
      shares_.push_back({.worker = static_cast<std::uint32_t>(slot.worker.value())});
  }
  if (choices_.empty()) return;
  level_ = LeastLevel();
  // The heaviest first: the light ones find room in the gaps, whole.
  std::ranges::sort(choices_, [](const Choice& a, const Choice& b) {
    return std::tuple(b.rows, a.expert) < std::tuple(a.rows, b.expert);
  });
  for (const Choice& choice : choices_) Pour(choice);
  while (Relieve()) {
  }
  level_ = std::ranges::max(worker_rows_);
  if (some_local_)
    for (const Choice& choice : choices_) BringHome(choice);
  for (Share& share : shares_) share.computes = share.rows > 0;
}

// The fullest worker has at least this: what a worker has without a choice, and the mean of those that can get any.
std::uint32_t ReplicaChoice::LeastLevel() {
  std::uint64_t rows = 0;
  for (std::size_t w = 0; w < worker_rows_.size(); ++w) {
    rows += worker_rows_[w];
    seen_[w] = worker_rows_[w] > 0 ? 1 : 0;
  }
  for (const Choice& choice : choices_) rows += choice.rows;
  for (const Share& share : shares_) seen_[share.worker] = 1;
  const auto workers = static_cast<std::uint64_t>(std::ranges::count(seen_, std::uint8_t{1}));
  return std::max(std::ranges::max(worker_rows_), static_cast<std::uint32_t>((rows + workers - 1) / workers));
}

ReplicaChoice::Share& ReplicaChoice::Emptiest(std::span<Share> shares) {
  return *std::ranges::min_element(shares, {}, [&](const Share& share) { return worker_rows_[share.worker]; });
}

void ReplicaChoice::Give(Share& share, std::uint32_t rows) {
  share.rows += rows;
  worker_rows_[share.worker] += rows;
}

// Up to the level one replica after the other, so that few get a part each; beyond it as evenly as can be.
void ReplicaChoice::Pour(const Choice& choice) {
  for (std::uint32_t left = choice.rows; left > 0;) {
    Share& share = Emptiest(shares(choice));
    const std::uint32_t full = worker_rows_[share.worker];
    const std::uint32_t room = level_ > full ? level_ - full : std::max(1u, left / choice.replicas);
    const std::uint32_t rows = std::min(left, room);
    Give(share, rows);
    left -= rows;
  }
}

// All workers to which rows of `worker` could move, over as many others as it takes.
void ReplicaChoice::Reach(std::uint32_t worker) {
  std::ranges::fill(seen_, std::uint8_t{0});
  reached_.assign(1, worker);
  seen_[worker] = 1;
  for (std::size_t next = 0; next < reached_.size(); ++next) {
    for (const Choice& choice : choices_) {
      const std::span<const Share> of_expert = shares(choice);
      const auto from = std::ranges::find(of_expert, reached_[next], &Share::worker);
      if (from == of_expert.end() || from->rows == 0) continue;
      for (std::size_t i = 0; i < of_expert.size(); ++i) {
        const std::uint32_t to = of_expert[i].worker;
        if (seen_[to] != 0) continue;
        seen_[to] = 1;
        hops_[to] = {.from = choice.first + static_cast<std::uint32_t>(from - of_expert.begin()),
                     .to = choice.first + static_cast<std::uint32_t>(i)};
        reached_.push_back(to);
      }
    }
  }
}

// Moves rows of the fullest worker to the emptiest that it can reach, until no worker that it reaches has two rows
// fewer. Then all that they have must be computed by them, and is spread evenly: nothing less is possible (the
// cost-reducing paths of Harvey, Ladner, Lovász and Tamir, "Semi-matchings for bipartite graphs and load balancing",
// 2006). Each move lowers the sum of the squares of the workers' rows, so it ends.
bool ReplicaChoice::Relieve() {
  const auto fullest = static_cast<std::uint32_t>(std::ranges::max_element(worker_rows_) - worker_rows_.begin());
  if (worker_rows_[fullest] <= level_) return false;
  Reach(fullest);
  const std::uint32_t emptiest =
      *std::ranges::min_element(reached_, {}, [&](std::uint32_t w) { return worker_rows_[w]; });
  const std::uint32_t gap = worker_rows_[fullest] - worker_rows_[emptiest];
  if (gap < 2) return false;
  std::uint32_t rows = gap / 2;
  for (std::uint32_t w = emptiest; w != fullest; w = shares_[hops_[w].from].worker)
    rows = std::min(rows, shares_[hops_[w].from].rows);
  for (std::uint32_t w = emptiest; w != fullest; w = shares_[hops_[w].from].worker) {
    shares_[hops_[w].from].rows -= rows;
    shares_[hops_[w].to].rows += rows;
  }
  worker_rows_[fullest] -= rows;
  worker_rows_[emptiest] += rows;
  return true;
}

// Nobody gets fuller than the fullest, and no more workers compute the expert than before.
void ReplicaChoice::BringHome(const Choice& choice) {
  const std::span<Share> of_expert = shares(choice);
  for (Share& away : of_expert) {
    if (away.rows == 0 || local_[away.worker] != 0) continue;
    Share* home = nullptr;
    for (Share& share : of_expert) {
      if (local_[share.worker] == 0) continue;
      const std::uint32_t room = level_ - worker_rows_[share.worker];
      if (room == 0 || (share.rows == 0 && room < away.rows)) continue;
      // The most room; of equals the lowest worker.
      if (home == nullptr || worker_rows_[share.worker] < worker_rows_[home->worker]) home = &share;
    }
    if (home == nullptr) continue;
    const std::uint32_t rows = std::min(away.rows, level_ - worker_rows_[home->worker]);
    away.rows -= rows;
    worker_rows_[away.worker] -= rows;
    Give(*home, rows);
  }
}

const ReplicaSlot& ReplicaChoice::Take(std::size_t expert, std::span<const ReplicaSlot> replicas) {
  const std::span<Share> dealt = std::span(shares_).subspan(first_share_[expert], replicas.size());
  Share* most = &*std::ranges::max_element(dealt, {}, &Share::rows);
  Share* beside = nullptr;  // another row of the token
  for (Share& share : dealt) {
    if (goes_[share.worker] != token_ || !share.computes) continue;
    if (share.rows == 0 && (worker_rows_[share.worker] >= level_ || local_[share.worker] < local_[most->worker]))
      continue;
    if (beside == nullptr || share.rows > beside->rows) beside = &share;
  }
  MOE_CHECK(most->rows > 0, "more rows are taken than were dealt");
  Share& taken = beside != nullptr ? *beside : *most;
  if (taken.rows == 0) {
    // One of another replica's, whose worker gets as much less.
    --worker_rows_[most->worker];
    ++worker_rows_[taken.worker];
    --most->rows;
  } else {
    --taken.rows;
  }
  return replicas[static_cast<std::size_t>(&taken - dealt.data())];
}

}  // namespace moe
