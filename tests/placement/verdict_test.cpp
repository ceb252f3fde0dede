#include "placement/verdict.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <numeric>

#include "placement/placement_figures.h"

namespace moe {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

constexpr std::array kAll = {PlacementAlgorithm::kLinear, PlacementAlgorithm::kRoundRobin, PlacementAlgorithm::kEplb,
                             PlacementAlgorithm::kAuto};

/// Two layers of eight experts on two workers, linear in force.
PlacementProblem Problem(const std::vector<double>& load) {
  PlacementProblem problem{.num_experts = 8, .workers = 2, .slots = 8, .bytes_per_expert = 1'000'000};
  for (const int layer : {1, 3}) problem.loads.push_back({.layer = layer, .mean = load, .samples = {}});
  problem.current = *MakePlacement(PlacementAlgorithm::kLinear, problem);
  return problem;
}

/// The first worker of linear has three times the rows of the second: 1,200 against 400 in each layer.
const std::vector<double> kSkewed = {300, 300, 300, 300, 100, 100, 100, 100};
const std::vector<double> kEven(8, 200);

/// Of a hundred steps: the slowest workers have 24 rows a step, 16 when balanced.
const StepCost kCost = {.steps = 100,
                        .step_seconds = 0.010,
                        .exposed_seconds = 0.005,
                        .worker_seconds = 1e-4,
                        .row_seconds = 204.1666667e-6};

Verdict Ask(const PlacementProblem& problem, const VerdictOptions& options = {}, const StepCost& cost = kCost) {
  return Judge({.problem = problem, .window_steps = 100, .cost = cost}, MakeCandidates(problem, kAll), options);
}

const CandidateVerdict& Of(const Verdict& verdict, PlacementAlgorithm algorithm) {
  return *std::find_if(verdict.candidates.begin(), verdict.candidates.end(),
                       [&](const CandidateVerdict& candidate) { return candidate.algorithm == algorithm; });
}

TEST(Verdict, ASkewedLoadPaysAndSaysWhy) {
  const PlacementProblem problem = Problem(kSkewed);
  const Verdict verdict = Ask(problem, {.migration_bytes_per_s = 1e6});
  EXPECT_TRUE(verdict.rebalance());
  EXPECT_DOUBLE_EQ(verdict.balancedness, 800.0 / 1200);
  EXPECT_EQ(verdict.step_seconds, 0.010);
  const CandidateVerdict& ours = Of(verdict, PlacementAlgorithm::kAuto);
  EXPECT_EQ(verdict.best_candidate(), &ours) << "of those as good with as few moves, the last";
  EXPECT_DOUBLE_EQ(ours.balancedness, 1);
  EXPECT_NEAR(ours.slowest_gain, 1.0 / 3, 1e-9);
  // All of the slowest workers' 0.0001 + 24 * 0.000204 s is waited for; a third of the rows' part goes.
  EXPECT_NEAR(*ours.step_seconds, 0.010 - 8 * 204.1666667e-6, 1e-9);
  EXPECT_NEAR(ours.gain, 0.163, 1e-3);
  EXPECT_EQ(ours.bytes_moved, ours.experts_moved * 1'000'000);
  EXPECT_EQ(ours.experts_moved, 8u);
  EXPECT_DOUBLE_EQ(*ours.move_seconds, 4) << "each worker gets half of them";
  const double lost = 0.05 * *ours.move_seconds;
  EXPECT_NEAR(*ours.break_even_steps, lost / (8 * 204.1666667e-6), 1e-6);
  EXPECT_NEAR(*ours.break_even_seconds, *ours.move_seconds + *ours.break_even_steps * *ours.step_seconds, 1e-9);
  EXPECT_EQ(Of(verdict, PlacementAlgorithm::kLinear).experts_moved, 0u);
  EXPECT_EQ(Of(verdict, PlacementAlgorithm::kLinear).gain, 0);
  EXPECT_THAT(verdict.sentence, StartsWith("Yes: auto would make a mean step 16.3 % shorter (10.0 ms to 8.37 ms)"));
  EXPECT_THAT(verdict.sentence,
              HasSubstr("from 0.667 to 1.00; 8 experts move, 7.63 MiB, in 4.00 s at 976.56 KiB/s a worker"));
  EXPECT_THAT(verdict.sentence, HasSubstr("is earned back 5.02 s after it begins."));
}

TEST(Verdict, AnEvenLoadStays) {
  const Verdict verdict = Ask(Problem(kEven));
  EXPECT_EQ(verdict.reason, VerdictReason::kLittleGain);
  EXPECT_THAT(verdict.sentence, StartsWith("No: no algorithm knows a placement that is faster"));
}

TEST(Verdict, ASmallGainStaysAndTheWaitingSaysWhy) {
  StepCost mostly_dense = kCost;
  mostly_dense.exposed_seconds = 0.0005;
  const Verdict verdict = Ask(Problem(kSkewed), {}, mostly_dense);
  EXPECT_EQ(verdict.reason, VerdictReason::kLittleGain);
  EXPECT_NEAR(verdict.best_candidate()->gain, 0.0163, 1e-4);
  EXPECT_THAT(verdict.sentence, StartsWith("No: the best placement (auto) would make a mean step 1.6 % shorter"));
  EXPECT_THAT(verdict.sentence, HasSubstr("under the 5.0 % that a move must win"));
  EXPECT_THAT(verdict.sentence,
              HasSubstr("would take 33.3 % less, but a step waits for them in 5.0 % of its time only."));
}

TEST(Verdict, WhatIsEarnedBackTooLateStays) {
  const Verdict verdict = Ask(Problem(kSkewed), {.horizon_seconds = 300, .migration_bytes_per_s = 1e4});
  EXPECT_EQ(verdict.reason, VerdictReason::kTooExpensive);
  EXPECT_THAT(verdict.sentence, StartsWith("No: auto would make a mean step"));
  EXPECT_THAT(verdict.sentence, HasSubstr("later than the 300 s that a load is trusted to last."));
}

TEST(Verdict, AGainThatIsAskedForIsNotTakenForNone) {
  StepCost hidden = kCost;
  hidden.exposed_seconds = 0.0001;
  const PlacementProblem problem = Problem(kSkewed);
  EXPECT_EQ(Ask(problem, {}, hidden).best_candidate()->experts_moved, 0u) << "0.3 % is as good as staying";
  const Verdict any = Ask(problem, {.least_gain = 0}, hidden);
  EXPECT_TRUE(any.rebalance());
  EXPECT_GT(any.best_candidate()->experts_moved, 0u);
  EXPECT_FALSE(Ask(Problem(kEven), {.least_gain = 0}).rebalance()) << "there is nothing to move";
}

TEST(Verdict, ReckonsWithTheSlowdownThatAMigrationShowed) {
  const PlacementProblem problem = Problem(kSkewed);
  const VerdictOptions options{.migration_bytes_per_s = 1e6, .migration_slowdown = 0.05};
  const Verdict assumed = Ask(problem, options);
  EXPECT_EQ(assumed.migration_slowdown, 0.05);
  EXPECT_FALSE(assumed.slowdown_measured);
  StepCost measured = kCost;
  measured.migration_slowdown = 0.2;
  const Verdict shown = Ask(problem, options, measured);
  EXPECT_EQ(shown.migration_slowdown, 0.2);
  EXPECT_TRUE(shown.slowdown_measured);
  EXPECT_NEAR(*shown.best_candidate()->break_even_steps, 4 * *assumed.best_candidate()->break_even_steps, 1e-6);
}

TEST(Verdict, FewRowsTellNothing) {
  const Verdict verdict = Ask(Problem({30, 30, 30, 30, 10, 10, 10, 10}));
  EXPECT_EQ(verdict.reason, VerdictReason::kFewRows);
  EXPECT_THAT(verdict.sentence, HasSubstr("holds 20.0 rows of an expert in a layer on average, and 64 are needed"));
  EXPECT_TRUE(Ask(Problem({30, 30, 30, 30, 10, 10, 10, 10}), {.least_gain = 0.01, .least_rows = 0}).rebalance());
}

TEST(Verdict, WithoutACostItSpeaksOfTheSlowestWorkersAlone) {
  const PlacementProblem problem = Problem(kSkewed);
  const Verdict verdict = Judge({.problem = problem, .window_steps = 0, .cost = {}}, MakeCandidates(problem, kAll), {});
  EXPECT_TRUE(verdict.rebalance());
  EXPECT_FALSE(verdict.step_seconds);
  EXPECT_NEAR(verdict.best_candidate()->gain, 1.0 / 3, 1e-9);
  EXPECT_FALSE(verdict.best_candidate()->step_seconds);
  EXPECT_FALSE(verdict.best_candidate()->break_even_seconds);
  EXPECT_THAT(verdict.sentence, StartsWith("Yes, as far as loads can tell: auto would make what the slowest workers"));
}

TEST(Verdict, WithoutBytesNobodyKnowsWhatMovingTakes) {
  PlacementProblem problem = Problem(kSkewed);
  problem.bytes_per_expert = 0;
  const Verdict verdict = Ask(problem, {.migration_bytes_per_s = 1e6});
  EXPECT_FALSE(verdict.best_candidate()->bytes_moved);
  EXPECT_FALSE(verdict.best_candidate()->break_even_seconds);
  EXPECT_EQ(Of(verdict, PlacementAlgorithm::kLinear).bytes_moved, 0u) << "nothing is of no size";
  EXPECT_THAT(verdict.sentence, HasSubstr("(nobody said how large one is)"));
}

TEST(Verdict, TheSpreadOfTheLoadCounts) {
  // In the mean all is even; in each half of the window one worker has everything.
  PlacementProblem problem = Problem(kEven);
  for (LayerLoad& load : problem.loads)
    load.samples = {{400, 400, 400, 400, 0, 0, 0, 0}, {0, 0, 0, 0, 400, 400, 400, 400}};
  EXPECT_DOUBLE_EQ(SlowestTimes(*problem.current, problem), 2 * 1600);
  const Verdict verdict = Ask(problem);
  EXPECT_DOUBLE_EQ(verdict.balancedness, 1);
  EXPECT_DOUBLE_EQ(verdict.slow_balancedness, 0.5);
  EXPECT_TRUE(verdict.rebalance()) << verdict.sentence;
  EXPECT_NEAR(verdict.best_candidate()->slowest_gain, 0.5, 1e-9);
}

TEST(Verdict, OneWorkerOrNoExpertsHaveNothingToMove) {
  PlacementProblem alone = Problem(kSkewed);
  alone.workers = 1;
  alone.current =
      *MakePlacement(PlacementAlgorithm::kLinear, {.num_experts = 8, .workers = 1, .slots = 8, .loads = alone.loads});
  EXPECT_EQ(Ask(alone).reason, VerdictReason::kOneWorker);
  PlacementProblem dense{.workers = 2};
  dense.current = Placement{.workers = 2};
  EXPECT_EQ(Ask(dense).reason, VerdictReason::kNoExperts);
}

/// Three workers with two slots each; expert 3 has a second copy.
PlacementProblem Spread() {
  PlacementProblem problem{.num_experts = 4, .workers = 3, .slots = 6, .bytes_per_expert = 1'000'000};
  problem.loads.push_back({.layer = 0, .mean = {9'000, 3'000, 1'000, 1'000}, .samples = {}});
  problem.current = Placement{.num_experts = 4, .workers = 3, .layers = {{0, {{0, 1}, {2, 3}, {3}}}}};
  return problem;
}

TEST(Verdict, ALostWorkerIsNoPlace) {
  const PlacementProblem all = Spread();
  EXPECT_TRUE(Ask(all).rebalance());
  const PlacementProblem left = OfWorkers(all, {1, 1, 0});
  EXPECT_EQ(left.workers, 2);
  EXPECT_EQ(left.slots, 4);
  EXPECT_TRUE(CheckProblem(left).ok());
  const std::vector<Candidate> candidates = MakeCandidates(left, kAll);
  ASSERT_EQ(candidates.size(), 4u);
  for (const Candidate& candidate : candidates) EXPECT_EQ(candidate.placement.layers[0].slots.size(), 2u);
  const Verdict verdict =
      Judge({.problem = left, .window_steps = 100, .cost = kCost, .lost = {"rank 3"}}, candidates, {});
  EXPECT_FALSE(verdict.rebalance());
  EXPECT_EQ(Name(verdict.reason), "workers_lost");
  EXPECT_DOUBLE_EQ(verdict.balancedness, 7'000.0 / 12'000) << "over the two that are there";
  EXPECT_EQ(verdict.candidates.size(), 4u);
  EXPECT_THAT(verdict.sentence,
              StartsWith("No: rank 3 is lost and has no slots until it is back, and experts move only "
                         "while every worker is there; of the others alone: Yes: "));
}

TEST(Verdict, WithTheLastCopyOfAnExpertLostThereIsNothingToWeigh) {
  const PlacementProblem left = OfWorkers(Spread(), {0, 1, 0});
  EXPECT_FALSE(left.current);
  const Verdict verdict = Judge({.problem = left, .window_steps = 100, .cost = kCost, .lost = {"rank 1", "rank 3"}},
                                MakeCandidates(left, kAll), {});
  EXPECT_EQ(verdict.reason, VerdictReason::kWorkersLost);
  EXPECT_TRUE(verdict.candidates.empty());
  EXPECT_THAT(verdict.sentence, StartsWith("No: rank 1 and rank 3 are lost"));
  EXPECT_THAT(verdict.sentence, HasSubstr("some experts have no copy left."));
  EXPECT_THAT(Judge({.problem = OfWorkers(Spread(), {1, 1, 0}), .cost = {}, .lost = {"rank 3"}}, {}, {}).sentence,
              HasSubstr("no algorithm has a placement for these slots."));
  EXPECT_FALSE(OfWorkers(Spread(), {0, 0, 0}).current);
}

TEST(Verdict, AnAlgorithmThatCannotPlaceTheSlotsIsNoCandidate) {
  PlacementProblem problem = Problem(kSkewed);
  problem.slots = 9;  // eplb cannot divide them by two workers
  const std::vector<Candidate> candidates = MakeCandidates(problem, kAll);
  EXPECT_EQ(candidates.size(), 3u);
  for (const Candidate& candidate : candidates) EXPECT_NE(candidate.algorithm, PlacementAlgorithm::kEplb);
}

}  // namespace
}  // namespace moe
