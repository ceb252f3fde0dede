#include "placement/verdict.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "core/check.h"
#include "core/units.h"
#include "placement/placement_figures.h"

namespace moe {
namespace {

// Gains over the horizon that differ by less are as good as one another, unless less is enough to move for.
constexpr double kAsGood = 0.01;

constexpr std::array<std::pair<VerdictReason, std::string_view>, 7> kReasonNames = {{
    {VerdictReason::kNoExperts, "no_experts"},
    {VerdictReason::kOneWorker, "one_worker"},
    {VerdictReason::kFewRows, "few_rows"},
    {VerdictReason::kLittleGain, "little_gain"},
    {VerdictReason::kTooExpensive, "too_expensive"},
    {VerdictReason::kPays, "pays"},
    {VerdictReason::kWorkersLost, "workers_lost"},
}};

std::string Percent(double share) { return Cat(Significant(100 * share, share < 0.1 ? 2 : 3), " %"); }

/// 0.0123 → "12.3 ms".
std::string ShortSeconds(double seconds) {
  if (seconds < 1e-3) return Significant(1e6 * seconds, 3) + " us";
  if (seconds < 1) return Significant(1e3 * seconds, 3) + " ms";
  return Significant(seconds, 3) + " s";
}

bool CostKnown(const VerdictInput& input) { return input.window_steps > 0 && input.cost.known(); }

/// Rows of an expert in a layer, the mean.
double RowsPerExpert(const PlacementProblem& problem) {
  double rows = 0;
  for (const LayerLoad& load : problem.loads)
    for (const double tokens : load.mean) rows += tokens;
  return rows / static_cast<double>(problem.loads.size()) / problem.num_experts;
}

class Judgement {
 public:
  Judgement(const VerdictInput& input, const VerdictOptions& options)
      : input_(input), options_(options), now_(SlowestTimes(*input.problem.current, input.problem)) {}

  double slowdown() const { return input_.cost.migration_slowdown.value_or(options_.migration_slowdown); }
  CandidateVerdict Weigh(const Candidate& candidate) const;
  /// Seconds of the horizon that it wins, less what moving loses.
  double Worth(const CandidateVerdict& candidate) const {
    return candidate.gain * options_.horizon_seconds - LostSeconds(candidate);
  }
  VerdictReason Decide(const CandidateVerdict* best) const;
  std::string Sentence(const Verdict& verdict) const;

 private:
  double LostSeconds(const CandidateVerdict& candidate) const {
    return slowdown() * candidate.move_seconds.value_or(0);
  }
  std::string Effort(const CandidateVerdict& best) const;
  std::string Gain(const CandidateVerdict& best) const;
  std::string LittleGain(const Verdict& verdict) const;

  const VerdictInput& input_;
  const VerdictOptions& options_;
  const double now_;  // SlowestTimes of the placement in force, in rows of the window
};

CandidateVerdict Judgement::Weigh(const Candidate& candidate) const {
  const PlacementProblem& problem = input_.problem;
  const PlacementFigures figures = FiguresOf(candidate.placement, problem);
  const double then = SlowestTimes(candidate.placement, problem);
  CandidateVerdict made{.algorithm = candidate.algorithm,
                        .balancedness = figures.balancedness,
                        .slow_balancedness = figures.slow_balancedness,
                        .slowest_gain = now_ > 0 ? 1 - then / now_ : 0,
                        .experts_moved = ExpertsMoved(*problem.current, candidate.placement)};
  made.gain = made.slowest_gain;
  if (made.experts_moved == 0 || problem.bytes_per_expert > 0)
    made.bytes_moved = made.experts_moved * problem.bytes_per_expert;
  if (made.bytes_moved == 0u) {
    made.move_seconds = 0;
  } else if (made.bytes_moved && options_.migration_bytes_per_s > 0) {
    const std::uint64_t most = MostExpertsMoved(*problem.current, candidate.placement) * problem.bytes_per_expert;
    made.move_seconds = static_cast<double>(most) / options_.migration_bytes_per_s;
  }
  if (!CostKnown(input_)) return made;
  const StepCost& cost = input_.cost;
  made.step_seconds = cost.StepSeconds(now_ / input_.window_steps, then / input_.window_steps);
  const double saved = cost.step_seconds - *made.step_seconds;
  made.gain = saved / cost.step_seconds;
  if (saved > 0 && made.move_seconds) {
    made.break_even_steps = LostSeconds(made) / saved;
    made.break_even_seconds = *made.move_seconds + *made.break_even_steps * *made.step_seconds;
  }
  return made;
}

VerdictReason Judgement::Decide(const CandidateVerdict* best) const {
  if (RowsPerExpert(input_.problem) < options_.least_rows) return VerdictReason::kFewRows;
  if (best == nullptr || best->gain < options_.least_gain || best->experts_moved == 0)
    return VerdictReason::kLittleGain;
  if (best->break_even_seconds && *best->break_even_seconds > options_.horizon_seconds)
    return VerdictReason::kTooExpensive;
  return VerdictReason::kPays;
}

std::string Judgement::Gain(const CandidateVerdict& best) const {
  if (!best.step_seconds) return Cat("make what the slowest workers take ", Percent(best.gain), " less");
  return Cat("make a mean step ", Percent(best.gain), " shorter (", ShortSeconds(input_.cost.step_seconds), " to ",
             ShortSeconds(*best.step_seconds), ")");
}

/// "47 experts move, 1.60 GiB, in 16 s at 100 MiB/s a worker".
std::string Judgement::Effort(const CandidateVerdict& best) const {
  std::string text = Cat(best.experts_moved, best.experts_moved == 1 ? " expert moves" : " experts move");
  if (!best.bytes_moved) return text + " (nobody said how large one is)";
  text += Cat(", ", ShortBytes(static_cast<double>(*best.bytes_moved)));
  if (!best.move_seconds) return text;
  return text + Cat(", in ", ShortSeconds(*best.move_seconds), " at ", ShortBytes(options_.migration_bytes_per_s),
                    "/s a worker");
}

std::string Judgement::LittleGain(const Verdict& verdict) const {
  const CandidateVerdict& best = verdict.candidates[verdict.best];
  if (best.gain <= 0)
    return Cat(
        "No: no algorithm knows a placement that is faster than the one in force; the balancedness of the workers "
        "is ",
        Significant(verdict.balancedness, 3), ", and at most ", Significant(verdict.lower_bound_balancedness, 3),
        " in these slots.");
  std::string text = Cat("No: the best placement (", Name(best.algorithm), ") would ", Gain(best), ", under the ",
                         Percent(options_.least_gain), " that a move must win; the balancedness of the workers is ",
                         Significant(verdict.balancedness, 3), " and would be ", Significant(best.balancedness, 3));
  if (best.step_seconds && best.slowest_gain >= options_.least_gain)
    text += Cat("; the slowest workers would take ", Percent(best.slowest_gain), " less, but a step waits for them in ",
                Percent(input_.cost.exposed_seconds / input_.cost.step_seconds), " of its time only");
  return text + ".";
}

std::string Judgement::Sentence(const Verdict& verdict) const {
  if (verdict.reason == VerdictReason::kFewRows)
    return Cat("No: the window holds ", Significant(RowsPerExpert(input_.problem), 3),
               " rows of an expert in a layer on average, and ", options_.least_rows,
               " are needed to tell a load from chance.");
  if (verdict.candidates.empty()) return "No: no algorithm has a placement for these slots.";
  if (verdict.reason == VerdictReason::kLittleGain) return LittleGain(verdict);
  const CandidateVerdict& best = verdict.candidates[verdict.best];
  const std::string what =
      Cat(Name(best.algorithm), " would ", Gain(best), ", because the balancedness of the workers goes from ",
          Significant(verdict.balancedness, 3), " to ", Significant(best.balancedness, 3), "; ", Effort(best));
  if (verdict.reason == VerdictReason::kTooExpensive)
    return Cat("No: ", what, ", which is earned back only ", ShortSeconds(*best.break_even_seconds),
               " after it begins, later than the ", ShortSeconds(options_.horizon_seconds),
               " that a load is trusted to last.");
  if (best.break_even_seconds)
    return Cat("Yes: ", what, ", which is earned back ", ShortSeconds(*best.break_even_seconds), " after it begins.");
  if (best.step_seconds) return Cat("Yes: ", what, "; when that is earned back depends on how fast they move.");
  return Cat("Yes, as far as loads can tell: ", what,
             ". A whole step gains less; how much, a measured cost would tell.");
}

Verdict JudgePresent(const VerdictInput& input, std::span<const Candidate> candidates, const VerdictOptions& options) {
  const PlacementProblem& problem = input.problem;
  const PlacementFigures now = FiguresOf(*problem.current, problem);
  Verdict verdict{.balancedness = now.balancedness,
                  .slow_balancedness = now.slow_balancedness,
                  .lower_bound_balancedness = BestBalancedness(problem)};
  if (CostKnown(input)) verdict.step_seconds = input.cost.step_seconds;
  if (problem.workers == 1) {
    verdict.reason = VerdictReason::kOneWorker;
    verdict.sentence = "No: one worker hosts every expert, so there is nothing to balance.";
    return verdict;
  }
  const Judgement judgement(input, options);
  verdict.migration_slowdown = judgement.slowdown();
  verdict.slowdown_measured = input.cost.migration_slowdown.has_value();
  for (const Candidate& candidate : candidates) verdict.candidates.push_back(judgement.Weigh(candidate));
  double most = 0;
  for (const CandidateVerdict& candidate : verdict.candidates) most = std::max(most, judgement.Worth(candidate));
  std::uint64_t fewest = 0;
  bool found = false;
  for (std::size_t i = 0; i < verdict.candidates.size(); ++i) {
    const CandidateVerdict& candidate = verdict.candidates[i];
    if (judgement.Worth(candidate) < most - std::min(kAsGood, options.least_gain) * options.horizon_seconds) continue;
    if (found && candidate.experts_moved > fewest) continue;
    found = true;
    fewest = candidate.experts_moved;
    verdict.best = i;
  }
  verdict.reason = judgement.Decide(verdict.best_candidate());
  verdict.sentence = judgement.Sentence(verdict);
  return verdict;
}

std::string Enumeration(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i)
    text += Cat(i == 0 ? "" : i + 1 == names.size() ? " and " : ", ", names[i]);
  return text;
}

}  // namespace

std::string_view Name(VerdictReason reason) {
  for (const auto& [known, name] : kReasonNames)
    if (known == reason) return name;
  return "unknown";
}

std::vector<Candidate> MakeCandidates(const PlacementProblem& problem, std::span<const PlacementAlgorithm> algorithms) {
  std::vector<Candidate> candidates;
  for (const PlacementAlgorithm algorithm : algorithms) {
    Result<Placement> placement = MakePlacement(algorithm, problem);
    if (placement.ok()) candidates.push_back({.algorithm = algorithm, .placement = *std::move(placement)});
  }
  return candidates;
}

Verdict Judge(const VerdictInput& input, std::span<const Candidate> candidates, const VerdictOptions& options) {
  if (input.problem.loads.empty() || input.problem.num_experts == 0)
    return {.reason = VerdictReason::kNoExperts, .sentence = "No: the model has no experts."};
  MOE_CHECK(input.problem.current.has_value() || !input.lost.empty());
  Verdict verdict;
  if (input.problem.current) verdict = JudgePresent(input, candidates, options);
  if (input.lost.empty()) return verdict;
  const std::string others =
      verdict.sentence.empty() ? "some experts have no copy left." : Cat("of the others alone: ", verdict.sentence);
  verdict.reason = VerdictReason::kWorkersLost;
  verdict.sentence = Cat("No: ", Enumeration(input.lost),
                         input.lost.size() == 1 ? " is lost and has no slots until it is back"
                                                : " are lost and have no slots until they are back",
                         ", and experts move only while every worker is there; ", others);
  return verdict;
}

}  // namespace moe
