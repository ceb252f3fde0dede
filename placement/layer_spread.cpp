#include "placement/layer_spread.h"

#include <algorithm>
#include <array>
#include <utility>

namespace moe {
namespace {

constexpr double kLeastSpreadGain = 1e-3;
constexpr int kMostSpreadSteps = 64;

/// An exchange of `expert` on one worker for `other` on another; −1: for a free slot.
struct Exchanged {
  int from = 0;
  int to = 0;
  int expert = 0;
  int other = -1;
};

class SpreadRelief {
 public:
  SpreadRelief(LayerAssignment& assignment, std::span<const std::vector<double>> samples, const SpreadGoal& goal)
      : a_(assignment),
        samples_(samples),
        goal_(goal),
        loads_(samples.size() * Workers(), 0),
        slowest_(samples.size()),
        top_(samples.size()),
        ranked_(samples.size()) {
    for (std::size_t s = 0; s < samples.size(); ++s)
      for (int w = 0; w < a_.workers(); ++w)
        for (const int expert : a_.slots(w)) Load(s, w) += Share(s, expert);
  }

  double SlowTime() {
    for (std::size_t s = 0; s < samples_.size(); ++s) RankWorkers(s);
    ranked_ = slowest_;
    return Percentile();
  }

  void Run() {
    for (int i = 0; i < kMostSpreadSteps; ++i) {
      now_ = SlowTime();
      if (!FindExchange()) return;
      Apply();
    }
  }

 private:
  std::size_t Workers() const { return static_cast<std::size_t>(a_.workers()); }
  double& Load(std::size_t sample, int worker) { return loads_[sample * Workers() + static_cast<std::size_t>(worker)]; }
  double Share(std::size_t sample, int expert) const {
    return samples_[sample][static_cast<std::size_t>(expert)] / a_.replicas(expert);
  }

  /// The three slowest workers of a sample, slowest first: of all but any two, the slowest is among them.
  void RankWorkers(std::size_t s) {
    std::array<int, 3>& top = top_[s];
    top.fill(-1);
    for (int w = 0; w < a_.workers(); ++w) {
      int candidate = w;
      for (int& place : top) {
        if (candidate < 0) break;
        if (place < 0 || Load(s, candidate) / a_.speed(candidate) > Load(s, place) / a_.speed(place))
          std::swap(candidate, place);
      }
    }
    slowest_[s] = Load(s, top[0]) / a_.speed(top[0]);
  }

  /// Of what ranked_ holds, which loses its order.
  double Percentile() {
    const std::size_t rank = (95 * ranked_.size() + 99) / 100 - 1;
    std::nth_element(ranked_.begin(), ranked_.begin() + static_cast<std::ptrdiff_t>(rank), ranked_.end());
    return ranked_[rank];
  }

  /// The best exchange of the slowest worker in a sample whose time is the percentile.
  bool FindExchange() {
    std::size_t slow = 0;
    while (slowest_[slow] != now_) ++slow;
    const int from = top_[slow][0];
    double best_score = 0;
    for (int to = 0; to < a_.workers(); ++to) {
      if (to == from) continue;
      for (const int expert : a_.slots(from)) {
        if (a_.Hosts(to, expert)) continue;
        if (a_.HasSlot(to)) Consider({from, to, expert, -1}, slow, best_score);
        for (const int other : a_.slots(to))
          if (!a_.Hosts(from, other)) Consider({from, to, expert, other}, slow, best_score);
      }
    }
    return best_score > 0;
  }

  int MovesFor(const Exchanged& step) const {
    if (goal_.base.empty()) return 1;
    const auto moved = [&](int worker, int expert) {
      return goal_.base[static_cast<std::size_t>(expert) * Workers() + static_cast<std::size_t>(worker)] == 0 ? 1 : 0;
    };
    return std::max(1, moved(step.to, step.expert) + (step.other < 0 ? 0 : moved(step.from, step.other)));
  }

  void Consider(const Exchanged& step, std::size_t slow, double& best_score) {
    const double least_gain = kLeastSpreadGain * now_ * MovesFor(step);
    if (std::max(TimeAfter(step, slow, step.from), TimeAfter(step, slow, step.to)) > now_ - least_gain) return;
    const double mean_change = a_.share(step.expert) - (step.other < 0 ? 0 : a_.share(step.other));
    if ((a_.load_on(step.from) - mean_change) / a_.speed(step.from) > goal_.mean_limit) return;
    if ((a_.load_on(step.to) + mean_change) / a_.speed(step.to) > goal_.mean_limit) return;
    for (std::size_t s = 0; s < samples_.size(); ++s) {
      double slowest = std::max(TimeAfter(step, s, step.from), TimeAfter(step, s, step.to));
      for (const int w : top_[s])
        if (w >= 0 && w != step.from && w != step.to) slowest = std::max(slowest, Load(s, w) / a_.speed(w));
      ranked_[s] = slowest;
    }
    const double after = Percentile();
    const double score = (now_ - after) / MovesFor(step);
    if (now_ - after < least_gain || score <= best_score) return;
    best_score = score;
    chosen_ = step;
  }

  double TimeAfter(const Exchanged& step, std::size_t s, int worker) {
    const double change = Share(s, step.expert) - (step.other < 0 ? 0 : Share(s, step.other));
    return (Load(s, worker) + (worker == step.from ? -change : change)) / a_.speed(worker);
  }

  void Apply() {
    const Exchanged step = chosen_;
    for (std::size_t s = 0; s < samples_.size(); ++s) {
      const double change = Share(s, step.expert) - (step.other < 0 ? 0 : Share(s, step.other));
      Load(s, step.from) -= change;
      Load(s, step.to) += change;
    }
    a_.Remove(step.from, step.expert);
    if (step.other >= 0) a_.Remove(step.to, step.other);
    a_.Add(step.to, step.expert);
    if (step.other >= 0) a_.Add(step.from, step.other);
  }

  LayerAssignment& a_;
  std::span<const std::vector<double>> samples_;
  const SpreadGoal& goal_;
  std::vector<double> loads_;            // (samples, workers)
  std::vector<double> slowest_;          // (samples): time of the slowest worker
  std::vector<std::array<int, 3>> top_;  // (samples): the three slowest workers
  std::vector<double> ranked_;           // (samples), to find the percentile in
  double now_ = 0;
  Exchanged chosen_;
};

}  // namespace

void RelieveSpread(LayerAssignment& assignment, std::span<const std::vector<double>> samples, const SpreadGoal& goal) {
  SpreadRelief(assignment, samples, goal).Run();
}

}  // namespace moe
