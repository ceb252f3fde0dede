#include "bench/plan/placement_report.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "bench/table.h"
#include "core/units.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

/// What moe_serve does without flags.
Result<Placement> BeforeOf(const PlacementProblem& problem) {
  if (problem.current) return *problem.current;
  PlacementProblem plain = problem;
  plain.slots = problem.num_experts;
  plain.worker_slots.clear();
  return MakePlacement(PlacementAlgorithm::kLinear, plain);
}

Json FiguresJson(const PlacementFigures& figures) {
  return {{"balancedness", figures.balancedness},
          {"slow_balancedness", figures.slow_balancedness},
          {"imbalance", figures.imbalance},
          {"cv", figures.cv},
          {"jain", figures.jain},
          {"entropy", figures.entropy},
          {"gini", figures.gini}};
}

/// Unknown where something moves and nobody said how large an expert is.
Json BytesMoved(const PlacementPlan& plan, const PlacementProblem& problem) {
  if (plan.experts_moved > 0 && problem.bytes_per_expert == 0) return nullptr;
  return plan.experts_moved * problem.bytes_per_expert;
}

/// The placements of all algorithms, `plan`'s among them.
std::vector<Candidate> AllCandidates(const PlacementPlan& plan, const PlacementProblem& problem) {
  std::vector<PlacementAlgorithm> others = {PlacementAlgorithm::kLinear, PlacementAlgorithm::kRoundRobin,
                                            PlacementAlgorithm::kEplb, PlacementAlgorithm::kAuto};
  std::erase(others, plan.algorithm);
  std::vector<Candidate> candidates = MakeCandidates(problem, others);
  candidates.push_back({.algorithm = plan.algorithm, .placement = plan.placement});
  std::ranges::sort(candidates, {}, &Candidate::algorithm);
  return candidates;
}

template <typename Value>
Json OrNull(const std::optional<Value>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json CostJson(const StepCost& cost) {
  if (!cost.known()) return nullptr;
  return {{"steps", cost.steps},
          {"step_seconds", cost.step_seconds},
          {"exposed_seconds", cost.exposed_seconds},
          {"worker_seconds", cost.worker_seconds},
          {"row_seconds", cost.row_seconds}};
}

Json VerdictJson(const Verdict& verdict, const StepCost& cost) {
  Json candidates = Json::array();
  for (const CandidateVerdict& candidate : verdict.candidates)
    candidates.push_back({{"algorithm", Name(candidate.algorithm)},
                          {"balancedness", candidate.balancedness},
                          {"slow_balancedness", candidate.slow_balancedness},
                          {"slowest_gain", candidate.slowest_gain},
                          {"gain", candidate.gain},
                          {"step_seconds", OrNull(candidate.step_seconds)},
                          {"experts_moved", candidate.experts_moved},
                          {"bytes_moved", OrNull(candidate.bytes_moved)},
                          {"move_seconds", OrNull(candidate.move_seconds)},
                          {"break_even_seconds", OrNull(candidate.break_even_seconds)},
                          {"break_even_steps", OrNull(candidate.break_even_steps)}});
  const CandidateVerdict* best = verdict.best_candidate();
  return {{"rebalance", verdict.rebalance()},
          {"reason", Name(verdict.reason)},
          {"sentence", verdict.sentence},
          {"balancedness", verdict.balancedness},
          {"slow_balancedness", verdict.slow_balancedness},
          {"step_seconds", OrNull(verdict.step_seconds)},
          {"migration_slowdown", verdict.migration_slowdown},
          {"slowdown_measured", verdict.slowdown_measured},
          {"best", best == nullptr ? Json(nullptr) : Json(Name(best->algorithm))},
          {"candidates", std::move(candidates)},
          {"cost", CostJson(cost)}};
}

std::string Written(const std::optional<double>& value, double factor) {
  return value ? Significant(factor * *value, 3) : "-";
}

/// A line for each algorithm, and the sentence.
std::string VerdictText(const Verdict& verdict) {
  std::string text;
  if (!verdict.candidates.empty()) {
    TextTable table({"algorithm", "balancedness", "slowest workers", "step", "ms/step", "experts moved", "bytes", "s",
                     "earned back after s"});
    for (const CandidateVerdict& candidate : verdict.candidates)
      table.Add({std::string(Name(candidate.algorithm)), Format("%.4f", candidate.balancedness),
                 Format("%+.1f%%", -100 * candidate.slowest_gain),
                 candidate.step_seconds ? Format("%+.1f%%", -100 * candidate.gain) : "-",
                 Written(candidate.step_seconds, 1e3), Cat(candidate.experts_moved),
                 candidate.bytes_moved ? ShortBytes(static_cast<double>(*candidate.bytes_moved)) : "-",
                 Written(candidate.move_seconds, 1), Written(candidate.break_even_seconds, 1)});
    text = "\nagainst the placement in force:\n" + table.Text();
  }
  return text + Cat("\nShould I rebalance? ", verdict.sentence, "\n");
}

std::size_t SlotsUsed(const LayerPlacement& layer) {
  std::size_t used = 0;
  for (const std::vector<int>& worker : layer.slots) used += worker.size();
  return used;
}

}  // namespace

Result<PlacementPlan> PlanPlacement(PlacementAlgorithm algorithm, const PlacementProblem& problem,
                                    const VerdictSetup& setup) {
  PlacementPlan plan{.algorithm = algorithm};
  const auto start = std::chrono::steady_clock::now();
  MOE_ASSIGN_OR_RETURN(plan.placement, MakePlacement(algorithm, problem));
  plan.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  PlacementProblem in_force = problem;
  MOE_ASSIGN_OR_RETURN(in_force.current, BeforeOf(problem));
  const Placement& before = *in_force.current;
  plan.before = FiguresOf(before, problem);
  plan.after = FiguresOf(plan.placement, problem);
  plan.lower_bound_balancedness = BestBalancedness(problem);
  plan.experts_moved = ExpertsMoved(before, plan.placement);
  plan.cost = setup.cost;
  plan.verdict = Judge({.problem = in_force, .window_steps = setup.window_steps, .cost = setup.cost},
                       AllCandidates(plan, problem), setup.options);
  return plan;
}

std::string PlacementPlanJson(const PlacementPlan& plan, const PlacementProblem& problem) {
  Json layers = Json::array();
  for (const LayerPlacement& layer : plan.placement.layers)
    layers.push_back({{"layer", layer.layer}, {"slots", layer.slots}});
  const Json json = {{"schema", 1},
                     {"algorithm", Name(plan.algorithm)},
                     {"num_experts", plan.placement.num_experts},
                     {"workers", plan.placement.workers},
                     {"layers", layers},
                     {"figures",
                      {{"balancedness_before", plan.before.balancedness},
                       {"balancedness_after", plan.after.balancedness},
                       {"lower_bound_balancedness", plan.lower_bound_balancedness},
                       {"experts_moved", plan.experts_moved},
                       {"bytes_moved", BytesMoved(plan, problem)},
                       {"seconds", plan.seconds},
                       {"before", FiguresJson(plan.before)},
                       {"after", FiguresJson(plan.after)}}},
                     {"verdict", VerdictJson(plan.verdict, plan.cost)}};
  return json.dump() + "\n";
}

std::string PlacementPlanText(const PlacementPlan& plan, const PlacementProblem& problem) {
  TextTable table({"mean over layers", problem.current ? "current" : "linear", std::string(Name(plan.algorithm))});
  const auto row = [&](const char* name, double before, double after) {
    table.Add({name, Format("%.4f", before), Format("%.4f", after)});
  };
  row("balancedness", plan.before.balancedness, plan.after.balancedness);
  row("slow balancedness", plan.before.slow_balancedness, plan.after.slow_balancedness);
  row("imbalance", plan.before.imbalance, plan.after.imbalance);
  row("cv", plan.before.cv, plan.after.cv);
  row("jain", plan.before.jain, plan.after.jain);
  row("entropy", plan.before.entropy, plan.after.entropy);
  row("gini", plan.before.gini, plan.after.gini);
  std::size_t fewest = static_cast<std::size_t>(problem.slots);
  for (const LayerPlacement& layer : plan.placement.layers) fewest = std::min(fewest, SlotsUsed(layer));
  const std::string bytes =
      problem.bytes_per_expert == 0
          ? ""
          : Cat(", ", ShortBytes(static_cast<double>(plan.experts_moved * problem.bytes_per_expert)));
  return table.Text() +
         Cat("\n", problem.loads.size(), " layers, ", problem.num_experts, " experts on ", problem.workers,
             " workers, ", problem.slots, " slots a layer",
             fewest < static_cast<std::size_t>(problem.slots) ? Cat(", of which at least ", fewest, " are used") : "",
             ". No placement has a balancedness above ", Format("%.4f", plan.lower_bound_balancedness), ".\n",
             plan.experts_moved, " experts move from the one to the other", bytes, ". It took ",
             Format("%.1f", 1e3 * plan.seconds), " ms.\n") +
         VerdictText(plan.verdict);
}

}  // namespace moe
