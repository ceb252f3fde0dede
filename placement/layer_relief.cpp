#include "placement/layer_relief.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

namespace moe {
namespace {

struct SlotChange {
  int worker = 0;
  int expert = 0;
  bool added = false;
};

/// One to four changes that belong together.
struct ReliefStep {
  double score = 0;  // 0: none found
  double time = 0;   // of the slowest of those whom it changes
  std::array<SlotChange, 4> changes{};
  std::size_t count = 0;
};

class Relief {
 public:
  Relief(LayerAssignment& assignment, const ReliefGoal& goal) : a_(assignment), goal_(goal) {
    moves_ = CountMoves(a_, goal_.base);
  }

  int Run() {
    double best = Cost(a_.slowest_time());
    int best_moves = moves_;
    std::size_t best_length = 0;
    while (looks_ < goal_.budget) {
      const int slowest = a_.slowest();
      if (a_.time(slowest) <= goal_.target) break;
      FindStep(slowest);
      if (step_.score <= 0) break;
      for (std::size_t i = 0; i < step_.count; ++i) Apply(step_.changes[i]);
      const double cost = Cost(a_.slowest_time());
      if (cost >= best * (1 - kNoise)) continue;
      best = cost;
      best_moves = moves_;
      best_length = journal_.size();
    }
    while (journal_.size() > best_length) Undo();
    return best_moves;
  }

 private:
  // Differences that rounding alone makes; no step is taken for them, so the search ends.
  static constexpr double kNoise = 1e-9;
  // A step that only brings experts back to where they were counts as much as one that moves a single one.
  static constexpr double kCostOfReturn = 1;

  double Cost(double slowest) const { return WeighedTime(slowest, moves_, goal_); }

  bool InBase(int worker, int expert) const {
    return goal_.base[static_cast<std::size_t>(expert) * static_cast<std::size_t>(a_.workers()) +
                      static_cast<std::size_t>(worker)] != 0;
  }
  int MovesOf(const SlotChange& change) const {
    if (goal_.base.empty() || InBase(change.worker, change.expert)) return 0;
    return change.added ? 1 : -1;
  }

  void Apply(const SlotChange& change) {
    moves_ += MovesOf(change);
    journal_.push_back(change);
    change.added ? a_.Add(change.worker, change.expert) : a_.Remove(change.worker, change.expert);
  }
  void Undo() {
    const SlotChange change = journal_.back();
    journal_.pop_back();
    moves_ -= MovesOf(change);
    change.added ? a_.Remove(change.worker, change.expert) : a_.Add(change.worker, change.expert);
  }

  /// Of relief to `time`, for each move.
  double Score(double time, double moves) const { return (slowest_time_ - std::max(time, goal_.target)) / moves; }

  /// Keeps the step if it is the best so far. `time` is of the slowest of those whom it changes.
  template <typename... Changes>
  void Consider(double time, Changes... changes) {
    if (time > limit_) return;
    double moves = 1;
    if (!goal_.base.empty()) moves = std::max<double>(kCostOfReturn, (MovesOf(changes) + ...));
    const double score = Score(time, moves);
    if (score < step_.score || (score == step_.score && time >= step_.time)) return;
    step_ = {.score = score, .time = time, .changes = {changes...}, .count = sizeof...(changes)};
    // Nothing above this can score better, however little it moves.
    const double least_moves = goal_.base.empty() ? 1 : kCostOfReturn;
    limit_ = std::min(limit_, std::max(goal_.target, slowest_time_ - score * least_moves));
  }

  void FindStep(int from) {
    step_ = {};
    slowest_time_ = a_.time(from);
    limit_ = slowest_time_ * (1 - kNoise);
    LookAtDrops(from);
    // The lightest first: they are the likeliest to help, and what they can do rules most others out unseen.
    by_time_.clear();
    for (int w = 0; w < a_.workers(); ++w) by_time_.emplace_back(a_.time(w), w);
    std::sort(by_time_.begin(), by_time_.end());
    for (const auto& [time, to] : by_time_)
      if (to != from && MayHelp(from, to)) LookAtPair(from, to);
  }

  /// Whether anything between the two can beat what was found: at best both end at their common mean.
  bool MayHelp(int from, int to) const {
    const double even = (a_.load_on(from) + a_.load_on(to)) / (a_.speed(from) + a_.speed(to));
    return even < limit_ && Score(even, goal_.base.empty() ? 1 : kCostOfReturn) > step_.score;
  }

  void LookAtPair(int from, int to) {
    const bool slot = a_.HasSlot(to);
    for (const int expert : a_.slots(from)) {
      if (a_.Hosts(to, expert)) continue;
      if (slot) {
        LookAtMove(from, to, expert);
        if (a_.HasTotal()) LookAtReplica(from, to, expert);
      }
      LookAtSwaps(from, to, expert);
    }
  }

  void LookAtMove(int from, int to, int expert) {
    ++looks_;
    Consider((a_.load_on(to) + a_.share(expert)) / a_.speed(to), SlotChange{from, expert, false},
             SlotChange{to, expert, true});
  }

  /// One more replica, in a free slot.
  void LookAtReplica(int from, int to, int expert) {
    ++looks_;
    const double share = a_.share_of(expert, a_.replicas(expert) + 1);
    Consider(std::max((a_.load_on(to) + share) / a_.speed(to),
                      (a_.load_on(from) - a_.share(expert) + share) / a_.speed(from)),
             SlotChange{to, expert, true});
  }

  /// Another expert comes back, or gives its slot away.
  void LookAtSwaps(int from, int to, int expert) {
    const double share = a_.share(expert);
    const double smaller = a_.share_of(expert, a_.replicas(expert) + 1);
    const double from_without = a_.load_on(from) - share;
    const double per_from = 1 / a_.speed(from);
    const double per_to = 1 / a_.speed(to);
    const double to_with = a_.load_on(to) + share;
    const double to_with_smaller = a_.load_on(to) + smaller;
    const bool may_replace = (from_without + smaller) * per_from < limit_;
    looks_ += a_.slots(to).size();
    for (const int other : a_.slots(to)) {
      const double other_share = a_.share(other);
      const double swapped = std::max((from_without + other_share) * per_from, (to_with - other_share) * per_to);
      if (swapped < limit_ && !a_.Hosts(from, other))
        Consider(swapped, SlotChange{from, expert, false}, SlotChange{to, other, false}, SlotChange{to, expert, true},
                 SlotChange{from, other, true});
      if (may_replace && a_.replicas(other) > 1 && (to_with_smaller - other_share) * per_to < limit_)
        LookAtReplacement(from, to, expert, other);
    }
  }

  /// One more replica of `expert`, in the slot of a replica of `other`, whose others get more.
  void LookAtReplacement(int from, int to, int expert, int other) {
    const double smaller = a_.share_of(expert, a_.replicas(expert) + 1);
    double time = std::max((a_.load_on(from) - a_.share(expert) + smaller) / a_.speed(from),
                           (a_.load_on(to) + smaller - a_.share(other)) / a_.speed(to));
    time = std::max(time, SlowestWithout(to, other, from, smaller - a_.share(expert)));
    Consider(time, SlotChange{to, other, false}, SlotChange{to, expert, true});
  }

  /// The slowest of the other hosts of `expert` once `worker` no longer is one; `relieved` also gets `change`.
  double SlowestWithout(int worker, int expert, int relieved, double change) {
    const double more = a_.share_of(expert, a_.replicas(expert) - 1) - a_.share(expert);
    const std::span<const std::uint8_t> hosts = a_.hosts(expert);
    double slowest = 0;
    ++looks_;
    for (std::size_t w = 0; w < hosts.size(); ++w) {
      if (hosts[w] == 0 || static_cast<int>(w) == worker) continue;
      const int host = static_cast<int>(w);
      const double load = a_.load_on(host) + more + (host == relieved ? change : 0);
      slowest = std::max(slowest, load / a_.speed(host));
      if (slowest >= limit_) break;
    }
    return slowest;
  }

  /// Its other replicas take over.
  void LookAtDrops(int from) {
    for (const int expert : a_.slots(from)) {
      if (a_.replicas(expert) < 2) continue;
      const double time =
          std::max((a_.load_on(from) - a_.share(expert)) / a_.speed(from), SlowestWithout(from, expert, from, 0));
      Consider(time, SlotChange{from, expert, false});
    }
  }

  LayerAssignment& a_;
  const ReliefGoal& goal_;
  std::vector<SlotChange> journal_;
  std::vector<std::pair<double, int>> by_time_;  // workers
  ReliefStep step_;
  double slowest_time_ = 0;
  double limit_ = 0;  // a step must end below it
  std::size_t looks_ = 0;
  int moves_ = 0;
};

}  // namespace

int Relieve(LayerAssignment& assignment, const ReliefGoal& goal) { return Relief(assignment, goal).Run(); }

double WeighedTime(double slowest_time, int moves, const ReliefGoal& goal) {
  // Large enough that nothing which moves cost makes up for a ten-millionth of the time.
  constexpr double kWeightOfRequired = 1e4;
  const double above = goal.required ? std::max(0.0, slowest_time - *goal.required) : 0;
  return slowest_time + goal.cost_per_move * moves + kWeightOfRequired * above;
}

int CountMoves(const LayerAssignment& assignment, std::span<const std::uint8_t> base) {
  if (base.empty()) return 0;
  int moves = 0;
  for (int w = 0; w < assignment.workers(); ++w)
    for (const int expert : assignment.slots(w))
      if (base[static_cast<std::size_t>(expert) * static_cast<std::size_t>(assignment.workers()) +
               static_cast<std::size_t>(w)] == 0)
        ++moves;
  return moves;
}

}  // namespace moe
