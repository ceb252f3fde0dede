// Asks beside the engine whether experts should move, now and then and when somebody wants to know, and has them moved
// where that is its task: `moe_serve --rebalance`, Cluster.Rebalance.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "core/clock.h"
#include "core/status.h"
#include "core/worker_mask.h"
#include "placement/placement.h"
#include "placement/rebalance_policy.h"
#include "placement/verdict.h"
#include "router/router.h"

namespace moe {

enum class RebalanceMode : std::uint8_t {
  kOff,     // only when asked
  kAdvise,  // also every interval
  kAuto,    // and moves experts
};

/// A verdict, on what, and the placement that it speaks for.
struct BalanceAdvice {
  std::uint64_t generation = 0;  // in force
  std::size_t window_steps = 0;
  double window_seconds = 0;
  Verdict verdict;
  /// Of the best candidate, as the generation after; without layers where there is none, or workers are lost.
  Placement placement;

  /// The share of a mean step that the placement saves; none while what a step costs is not known.
  std::optional<double> expected_gain() const;
};

class Balancer {
 public:
  struct Options {
    RebalanceMode mode = RebalanceMode::kOff;
    Clock::duration interval = std::chrono::seconds(30);
    VerdictOptions verdict;
    RebalancePolicy::Options policy;
    int slots = 0;  // of a layer, over all workers
    std::uint64_t bytes_per_expert = 0;
    /// The placement in force; by the engine thread, between two steps.
    std::function<Placement()> in_force;
    /// Of kAuto: has the experts move, and returns once the placement of the advice is in force or has failed to be. By
    /// the balancer's thread.
    std::function<Status(const BalanceAdvice&)> move = {};
    /// Told of every verdict, and of every move that ended and how; by the balancer's thread. May be empty.
    std::function<void(const BalanceAdvice&)> on_advice = {};
    std::function<void(const BalanceAdvice&, const Status&)> on_moved = {};
  };
  /// `router` outlives this.
  Balancer(Options options, Router& router);
  ~Balancer();
  Balancer(const Balancer&) = delete;
  Balancer& operator=(const Balancer&) = delete;

  /// From here on it looks and answers: the router runs, or will. Once.
  void Start();
  /// Answers nobody any more: who waits hears UNAVAILABLE.
  void Stop();

  // By any thread.

  using Done = std::function<void(const Result<BalanceAdvice>&)>;
  /// The question asked now, answered by the balancer's thread, after a move that is under way. RESOURCE_EXHAUSTED at
  /// once when kMaxAsked wait already, UNAVAILABLE when the router has stopped.
  void Ask(Done done);
  static constexpr std::size_t kMaxAsked = 16;

  /// The last verdict; null before the first.
  std::shared_ptr<const BalanceAdvice> last() const;
  /// What the last verdict expects of moving from the placement in force, of this generation, to `to`; none unless that
  /// is what it was about.
  std::optional<double> ExpectedGain(std::uint64_t in_force, const Placement& to) const;

 private:
  /// What the engine thread lets go of.
  struct Snapshot {
    std::vector<LayerLoad> loads;
    StepCost cost;
    std::size_t window_steps = 0;
    double window_seconds = 0;
    Placement in_force;
    WorkerMask present;
    std::vector<std::string> names;  // of the workers
  };

  void Run();
  Result<Snapshot> TakeSnapshot();
  BalanceAdvice Advise(const Snapshot& snapshot) const;
  /// A look of its own, or for who asked.
  void Look(std::vector<Done> asked, bool may_move);
  void Act(const BalanceAdvice& advice, const std::vector<LayerLoad>& loads);

  const Options options_;
  Router& router_;
  RebalancePolicy policy_;

  mutable std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::vector<Done> asked_;
  std::shared_ptr<const BalanceAdvice> last_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace moe
