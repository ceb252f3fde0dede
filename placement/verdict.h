// Should experts move? What each algorithm's placement would win of a step, what moving to it takes, when that is
// earned back, and one sentence that says yes or no, and why. docs/balancing.md, "Should I rebalance?".
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "placement/placement_problem.h"
#include "placement/step_cost.h"

namespace moe {

/// When the answer is yes, and what moving costs.
struct VerdictOptions {
  double least_gain = 0.05;          // share of a mean step that a move must win
  double horizon_seconds = 3'600;    // how long a load is trusted to last: by then a move must have been earned back
  double migration_bytes_per_s = 0;  // that a worker gets at most; 0: without a limit, so that nobody knows how long
  double migration_slowdown = 0.05;  // share of the throughput that is lost while experts move, where none was measured
  double least_rows = 64;            // of an expert in a layer on average, which tell a load from chance
};

/// What is known when the question is asked.
struct VerdictInput {
  const PlacementProblem& problem;  // with the placement in force as `current`, and checked
  double window_steps = 0;  // that the loads' means are the rows of; 0: unknown, then no seconds are known either
  StepCost cost;
  /// The names of workers that the problem leaves out because they are lost (OfWorkers). Nothing moves without them.
  /// `current` may then be absent.
  std::vector<std::string> lost = {};
};

struct Candidate {
  PlacementAlgorithm algorithm = PlacementAlgorithm::kAuto;
  Placement placement;
};
/// Of the algorithms that can place the problem: eplb cannot divide all slots.
std::vector<Candidate> MakeCandidates(const PlacementProblem& problem, std::span<const PlacementAlgorithm> algorithms);

struct CandidateVerdict {
  PlacementAlgorithm algorithm = PlacementAlgorithm::kAuto;
  double balancedness = 1;       // of the workers, per layer, then averaged over layers
  double slow_balancedness = 1;  // that 95 % of the samples reach
  double slowest_gain = 0;       // share of what the slowest workers of all layers take together that it saves
  double gain = 0;               // share of a mean step that it saves; without a measured cost slowest_gain
  std::uint64_t experts_moved = 0;
  std::optional<double> step_seconds;  // expected
  std::optional<std::uint64_t> bytes_moved;
  std::optional<double> move_seconds;
  /// Until what moving lost is earned back: seconds from its beginning on, and steps after its end. None: never, or not
  /// known.
  std::optional<double> break_even_seconds;
  std::optional<double> break_even_steps;
};

enum class VerdictReason : std::uint8_t {
  kNoExperts,     // there is nothing to place
  kOneWorker,     // or nowhere else
  kFewRows,       // the window tells too little
  kLittleGain,    // under least_gain
  kTooExpensive,  // earned back after the horizon
  kPays,
  kWorkersLost,  // everybody must take part
};
/// "no_experts", "one_worker", "few_rows", "little_gain", "too_expensive", "pays", "workers_lost".
std::string_view Name(VerdictReason reason);

struct Verdict {
  VerdictReason reason = VerdictReason::kNoExperts;
  bool rebalance() const { return reason == VerdictReason::kPays; }
  std::string sentence;
  double balancedness = 1;  // now
  double slow_balancedness = 1;
  double lower_bound_balancedness = 1;  // that no placement in these slots can better
  std::optional<double> step_seconds;   // now, of a mean step
  double migration_slowdown = 0;        // that is reckoned with
  bool slowdown_measured = false;       // by the last migration, not assumed
  std::vector<CandidateVerdict> candidates;
  std::size_t best = 0;  // of `candidates`, if there is any

  const CandidateVerdict* best_candidate() const { return candidates.empty() ? nullptr : &candidates[best]; }
};

/// The same for the same arguments. The best candidate is, of those whose win over the horizon is within a hundredth of
/// it (or least_gain, if that is less) of the most, the one that moves the fewest experts, the last of several.
Verdict Judge(const VerdictInput& input, std::span<const Candidate> candidates, const VerdictOptions& options);

}  // namespace moe
