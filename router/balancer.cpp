#include "router/balancer.h"

#include <array>
#include <future>
#include <utility>

#include "core/check.h"
#include "placement/load_window.h"

namespace moe {
namespace {

constexpr std::array kAlgorithms = {PlacementAlgorithm::kLinear, PlacementAlgorithm::kRoundRobin,
                                    PlacementAlgorithm::kEplb, PlacementAlgorithm::kAuto};

}  // namespace

std::optional<double> BalanceAdvice::expected_gain() const {
  const CandidateVerdict* best = verdict.best_candidate();
  if (best == nullptr || !best->step_seconds) return std::nullopt;
  return best->gain;
}

Balancer::Balancer(Options options, Router& router)
    : options_(std::move(options)), router_(router), policy_(options_.policy) {
  MOE_CHECK(options_.mode != RebalanceMode::kAuto || options_.move != nullptr);
}

Balancer::~Balancer() { Stop(); }

void Balancer::Start() {
  const std::lock_guard lock(mutex_);
  MOE_CHECK(!thread_.joinable());
  if (!stopping_) thread_ = std::thread([this] { Run(); });
}

void Balancer::Stop() {
  std::vector<Done> asked;
  std::thread thread;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    asked.swap(asked_);
    thread.swap(thread_);
  }
  changed_.notify_all();
  for (const Done& done : asked) done(Unavailable("the router is stopping"));
  if (thread.joinable()) thread.join();
}

void Balancer::Ask(Done done) {
  Status refused;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) {
      refused = Unavailable("the router is stopping");
    } else if (asked_.size() == kMaxAsked) {
      refused = ResourceExhausted(kMaxAsked, " calls wait for a verdict already");
    } else {
      asked_.push_back(std::move(done));
    }
  }
  if (!refused.ok()) return done(refused);
  changed_.notify_all();
}

std::shared_ptr<const BalanceAdvice> Balancer::last() const {
  const std::lock_guard lock(mutex_);
  return last_;
}

std::optional<double> Balancer::ExpectedGain(std::uint64_t in_force, const Placement& to) const {
  const std::shared_ptr<const BalanceAdvice> advice = last();
  if (advice == nullptr || advice->generation != in_force || advice->placement.layers != to.layers) return std::nullopt;
  return advice->expected_gain();
}

void Balancer::Run() {
  TimePoint due = Clock::now() + options_.interval;
  for (;;) {
    std::vector<Done> asked;
    {
      std::unique_lock lock(mutex_);
      const auto woken = [&] { return stopping_ || !asked_.empty(); };
      if (options_.mode == RebalanceMode::kOff) {
        changed_.wait(lock, woken);
      } else {
        changed_.wait_until(lock, due, woken);
      }
      if (stopping_) return;
      asked.swap(asked_);
    }
    const bool own = options_.mode != RebalanceMode::kOff && Clock::now() >= due;
    // A look for somebody else is no confirmation: those lie an interval apart.
    Look(std::move(asked), own && options_.mode == RebalanceMode::kAuto);
    if (own) due = Clock::now() + options_.interval;
  }
}

Result<Balancer::Snapshot> Balancer::TakeSnapshot() {
  // The engine thread runs this in any case, at the latest when the router ends.
  const auto taken = std::make_shared<std::promise<Snapshot>>();
  const bool running = router_.OnEngineThread([this, taken] {
    const Engine& engine = router_.engine();
    const ExpertExchange* exchange = engine.exchange();
    taken->set_value({.loads = LoadsOf(engine.load_window(), engine.config().sparse_layers()),
                      .cost = router_.cost(),
                      .window_steps = engine.load_window().steps(),
                      .window_seconds = engine.load_window().seconds(),
                      .in_force = options_.in_force(),
                      .present = exchange == nullptr ? WorkerMask() : exchange->attached(),
                      .names = exchange == nullptr ? std::vector<std::string>() : exchange->names()});
  });
  if (!running) return Unavailable("the router has stopped");
  return taken->get_future().get();
}

BalanceAdvice Balancer::Advise(const Snapshot& snapshot) const {
  PlacementProblem problem{.num_experts = snapshot.in_force.num_experts,
                           .workers = snapshot.in_force.workers,
                           .slots = options_.slots,
                           .loads = snapshot.loads,
                           .current = snapshot.in_force,
                           .bytes_per_expert = options_.bytes_per_expert};
  std::vector<std::string> lost;
  for (std::size_t w = 0; w < snapshot.present.size(); ++w)
    if (snapshot.present[w] == 0) lost.push_back(snapshot.names[w]);
  if (!lost.empty()) problem = OfWorkers(problem, snapshot.present);
  std::vector<Candidate> candidates;
  // With one worker every placement is the one in force.
  if (problem.workers > 1) candidates = MakeCandidates(problem, kAlgorithms);
  BalanceAdvice advice{.generation = snapshot.in_force.generation,
                       .window_steps = snapshot.window_steps,
                       .window_seconds = snapshot.window_seconds,
                       .verdict = Judge({.problem = problem,
                                         .window_steps = static_cast<double>(snapshot.window_steps),
                                         .cost = snapshot.cost,
                                         .lost = lost},
                                        candidates, options_.verdict)};
  if (advice.verdict.best_candidate() != nullptr && lost.empty()) {
    advice.placement = std::move(candidates[advice.verdict.best].placement);
    advice.placement.generation = advice.generation + 1;
  }
  return advice;
}

void Balancer::Look(std::vector<Done> asked, bool may_move) {
  const Result<Snapshot> snapshot = TakeSnapshot();
  if (!snapshot.ok()) {
    for (const Done& done : asked) done(snapshot.status());
    return;
  }
  const auto advice = std::make_shared<const BalanceAdvice>(Advise(*snapshot));
  {
    const std::lock_guard lock(mutex_);
    last_ = advice;
  }
  if (options_.on_advice) options_.on_advice(*advice);
  for (const Done& done : asked) done(*advice);
  if (may_move) Act(*advice, snapshot->loads);
}

void Balancer::Act(const BalanceAdvice& advice, const std::vector<LayerLoad>& loads) {
  if (policy_.Look(Clock::now(), advice.verdict.rebalance(), loads) != RebalancePolicy::Decision::kMove) return;
  const Status moved = options_.move(advice);
  if (moved.ok()) {
    policy_.OnMoved(Clock::now(), loads);
  } else {
    policy_.OnFailed(Clock::now());
  }
  if (options_.on_moved) options_.on_moved(advice, moved);
}

}  // namespace moe
