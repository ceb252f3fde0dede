#include "model/gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "tests/kernels/kernel_cases.h"

namespace moe {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::FloatEq;

using Scoring = GateSpec::Scoring;
using GroupScore = GateSpec::GroupScore;
using Normalization = GateSpec::Normalization;

struct Choice {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

/// The choice of k among `logits`; the number of experts follows from them.
Choice Select(GateSpec spec, int k, std::vector<float> logits, const std::vector<float>& correction = {},
              const Kernels& kernels = SimdKernels()) {
  spec.num_experts = static_cast<int>(logits.size());
  spec.experts_per_token = k;
  spec.correction_bias = !correction.empty();
  Choice choice{std::vector<std::int32_t>(static_cast<std::size_t>(k)),
                std::vector<float>(static_cast<std::size_t>(k))};
  SelectExperts(spec, kernels, correction, logits, choice.ids, choice.weights);
  return choice;
}

/// The rules once more, in double and by sorting.
struct Reference {
  std::vector<std::int32_t> ids;
  std::vector<double> weights;
  /// The least difference on which the choice, its order included, depends.
  double gap = std::numeric_limits<double>::infinity();
};

std::vector<double> Softmax(const std::vector<double>& values) {
  const double highest = std::ranges::max(values);
  std::vector<double> shares;
  double sum = 0;
  for (const double value : values) sum += std::exp(value - highest);
  for (const double value : values) shares.push_back(std::exp(value - highest) / sum);
  return shares;
}

/// Indices of `values` by descending value, the lower index first among equals; the first `count` and the next one are
/// `gap` apart at least.
std::vector<std::int32_t> Descending(const std::vector<double>& values, std::size_t count, double& gap) {
  std::vector<std::int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  const auto value = [&](std::int32_t i) { return values[static_cast<std::size_t>(i)]; };
  std::ranges::stable_sort(order, std::ranges::greater(), value);
  for (std::size_t i = 0; i < count && i + 1 < order.size(); ++i)
    gap = std::min(gap, value(order[i]) - value(order[i + 1]));
  order.resize(count);
  return order;
}

/// The scores of groups of `size` consecutive values.
std::vector<double> GroupScores(const GateSpec& spec, const std::vector<double>& values, std::size_t size) {
  std::vector<double> scores;
  for (auto group = values.begin(); group != values.end(); group += static_cast<std::ptrdiff_t>(size)) {
    std::vector<double> sorted(group, group + static_cast<std::ptrdiff_t>(size));
    std::ranges::sort(sorted, std::ranges::greater());
    scores.push_back(spec.group_score == GroupScore::kMax ? sorted[0] : sorted[0] + sorted[1]);
  }
  return scores;
}

Reference SelectInDouble(const GateSpec& spec, int k, const std::vector<float>& logits,
                         const std::vector<float>& correction) {
  const std::vector<double> raw(logits.begin(), logits.end());
  std::vector<double> scores = raw;
  if (spec.scoring == Scoring::kSoftmax) scores = Softmax(raw);
  if (spec.scoring == Scoring::kSigmoid)
    for (double& score : scores) score = 1 / (1 + std::exp(-score));
  std::vector<double> selection = spec.select_by_logits ? raw : scores;
  for (std::size_t i = 0; i < correction.size(); ++i) selection[i] += static_cast<double>(correction[i]);

  Reference reference;
  if (spec.groups > 1) {
    const std::size_t size = logits.size() / static_cast<std::size_t>(spec.groups);
    const std::vector<std::int32_t> kept =
        Descending(GroupScores(spec, selection, size), static_cast<std::size_t>(spec.top_groups), reference.gap);
    for (std::size_t i = 0; i < selection.size(); ++i) {
      if (std::ranges::find(kept, static_cast<std::int32_t>(i / size)) == kept.end())
        selection[i] = -std::numeric_limits<double>::infinity();
    }
  }
  reference.ids = Descending(selection, static_cast<std::size_t>(k), reference.gap);
  for (const std::int32_t id : reference.ids) reference.weights.push_back(scores[static_cast<std::size_t>(id)]);
  if (spec.normalization == Normalization::kSoftmax) reference.weights = Softmax(reference.weights);
  const double sum = std::accumulate(reference.weights.begin(), reference.weights.end(), 0.0);
  for (double& weight : reference.weights) {
    if (spec.normalization == Normalization::kSum) weight /= sum + static_cast<double>(spec.normalization_eps);
    weight *= static_cast<double>(spec.scale);
  }
  return reference;
}

/// Every combination of options that has a meaning.
std::vector<GateSpec> AllSpecs() {
  std::vector<GateSpec> specs;
  for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid, Scoring::kLogits}) {
    for (const bool by_logits : {false, true}) {
      for (const auto& [groups, top] : {std::pair{1, 1}, {4, 2}, {2, 1}, {4, 3}}) {
        for (const GroupScore group_score : {GroupScore::kMax, GroupScore::kSumOfTwo}) {
          for (const Normalization normalization :
               {Normalization::kNone, Normalization::kSum, Normalization::kSoftmax}) {
            // Logits may cancel in a sum.
            if (scoring == Scoring::kLogits && normalization == Normalization::kSum) continue;
            for (const float scale : {1.0f, 2.5f}) {
              specs.push_back({.scoring = scoring,
                               .select_by_logits = by_logits,
                               .groups = groups,
                               .top_groups = top,
                               .group_score = group_score,
                               .normalization = normalization,
                               .normalization_eps = scale == 1 ? 0.0f : 0.125f,
                               .scale = scale});
            }
          }
        }
      }
    }
  }
  return specs;
}

class Gate : public ::testing::TestWithParam<const Kernels*> {};

std::vector<const Kernels*> AllKernels() {
  std::vector<const Kernels*> all = AvailableSimdKernels();
  all.push_back(&ReferenceKernels());
  return all;
}

INSTANTIATE_TEST_SUITE_P(Kernels, Gate, ::testing::ValuesIn(AllKernels()), NameOf);

/// One choice against the reference; false when it hangs on less than fp32 can tell.
bool Compare(const GateSpec& spec, int k, const std::vector<float>& logits, const std::vector<float>& correction,
             const Kernels& kernels) {
  const Reference expected = SelectInDouble(spec, k, logits, correction);
  constexpr double kTellable = 1e-5;  // selection scores here are below 16, with errors of about 1e-6
  if (expected.gap < kTellable) return false;
  const Choice choice = Select(spec, k, logits, correction, kernels);
  EXPECT_EQ(choice.ids, expected.ids) << logits.size() << " experts, k " << k;
  // x − max is off by half an ulp of at most 32, which exp makes relative; exp itself, the lane sum (E / 16 + 4
  // additions), the sum of the k weights, two divisions and the scale round too.
  const double roundings = 32 + 2 + static_cast<double>(logits.size()) / 16 + 4 + k + 3;
  for (std::size_t j = 0; j < expected.weights.size(); ++j) {
    EXPECT_NEAR(choice.weights[j], expected.weights[j], 2 * roundings * kRoundoff * std::abs(expected.weights[j]));
  }
  return true;
}

TEST_P(Gate, FollowsItsSpecification) {
  std::uint32_t seed = 0;
  int compared = 0;
  for (const GateSpec& spec : AllSpecs()) {
    for (const std::size_t experts : Counts{8, 12, 60}) {
      for (const bool corrected : {false, true}) {
        std::vector<float> logits = RandomValues(experts, ++seed);
        for (float& logit : logits) logit *= 3;
        const std::vector<float> correction = corrected ? RandomValues(experts, ++seed) : std::vector<float>();
        compared += Compare(spec, 3, logits, correction, *GetParam());
        if (HasFailure()) FAIL() << "with seed " << seed;
      }
    }
  }
  EXPECT_GT(compared, 1000) << "few of the random values may be too close to tell";
}

TEST_P(Gate, IsTheSoftmaxOfTheKLargest) {
  std::uint32_t seed = 0;
  for (const std::size_t experts : Counts{1, 2, 6, 8, 17, 60, 64, 256}) {
    for (const int k : {1, 2, 3, 8, static_cast<int>(experts)}) {
      if (static_cast<std::size_t>(k) > experts) continue;
      for (const Normalization normalization : {Normalization::kSum, Normalization::kNone}) {
        std::vector<float> logits = RandomValues(experts, ++seed);
        for (float& logit : logits) logit *= 3;
        // Chosen by their logits: probabilities far down are closer than fp32 can tell, logits are not.
        const GateSpec spec{.select_by_logits = true, .normalization = normalization};
        (void)Compare(spec, k, logits, {}, *GetParam());
      }
    }
  }
}

TEST_P(Gate, GivesTiesToTheLowerId) {
  const Choice choice = Select({}, 5, {1, 4, 4, 0, 4, 1}, {}, *GetParam());
  EXPECT_THAT(choice.ids, ElementsAre(1, 2, 4, 0, 5));
  EXPECT_EQ(choice.weights[0], choice.weights[1]);
  EXPECT_EQ(choice.weights[1], choice.weights[2]);
  EXPECT_EQ(choice.weights[3], choice.weights[4]);
  EXPECT_THAT(Select({}, 3, std::vector<float>(8, -2.5f), {}, *GetParam()).ids, ElementsAre(0, 1, 2));
}

TEST_P(Gate, ChoosesAnExpertOnceEvenWhenTheOthersWeighNothing) {
  // exp(−200) is 0 in fp32, so two of the three chosen have weight 0.
  const Choice choice = Select({}, 3, {-200, 0, -200, -200}, {}, *GetParam());
  EXPECT_THAT(choice.ids, ElementsAre(1, 0, 2));
  EXPECT_THAT(choice.weights, ElementsAre(1, 0, 0));
}

TEST_P(Gate, TellsSaturatedSigmoidsApartByTheirLogits) {
  // sigmoid(x) is 1 in fp32 from 17 on.
  const std::vector<float> logits = {30, 50, 40};
  GateSpec spec{.scoring = Scoring::kSigmoid, .select_by_logits = true, .normalization = Normalization::kNone};
  Choice choice = Select(spec, 2, logits, {}, *GetParam());
  EXPECT_THAT(choice.ids, ElementsAre(1, 2));
  EXPECT_THAT(choice.weights, Each(1.0f));
  spec.select_by_logits = false;
  choice = Select(spec, 2, logits, {}, *GetParam());
  EXPECT_THAT(choice.ids, ElementsAre(0, 1)) << "by scores, all are equal";
}

TEST(GateOrder, IsByDescendingWeight) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    const Choice choice = Select({}, 8, RandomValues(8, seed));
    EXPECT_TRUE(std::is_sorted(choice.weights.rbegin(), choice.weights.rend()));
    std::vector<std::int32_t> ids = choice.ids;
    std::ranges::sort(ids);
    EXPECT_THAT(ids, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7)) << "k = E chooses everyone once";
  }
}

TEST(GateWeights, ByHand) {
  const float ln2 = std::log(2.0f);
  const GateSpec probabilities{.normalization = Normalization::kNone};
  // Shares 4, 2, 1, 1 of 8.
  EXPECT_THAT(Select({}, 2, {0, 2 * ln2, 0, ln2}).weights, ElementsAre(FloatEq(2.0f / 3), FloatEq(1.0f / 3)));
  EXPECT_THAT(Select(probabilities, 2, {0, 2 * ln2, 0, ln2}).weights, ElementsAre(FloatEq(0.5f), FloatEq(0.25f)));
  EXPECT_THAT(Select({}, 1, {7, 3}).weights, ElementsAre(1));
}

// Every rule alone, on scores that are the logits themselves.

GateSpec Plain() { return {.scoring = Scoring::kLogits, .normalization = Normalization::kNone}; }

TEST(GateWeights, TheEpsilonJoinsTheSum) {
  GateSpec spec = Plain();
  spec.normalization = Normalization::kSum;
  EXPECT_THAT(Select(spec, 2, {2, 0, 1}).weights, ElementsAre(FloatEq(2.0f / 3), FloatEq(1.0f / 3)));
  spec.normalization_eps = 1;
  EXPECT_THAT(Select(spec, 2, {2, 0, 1}).weights, ElementsAre(0.5f, 0.25f));
}

TEST(GateWeights, TheScaleComesLast) {
  GateSpec spec = Plain();
  spec.scale = 2.5f;
  EXPECT_THAT(Select(spec, 2, {2, 0, 4}).weights, ElementsAre(10, 5));
  spec.normalization = Normalization::kSum;
  EXPECT_THAT(Select(spec, 2, {3, 0, 5}).weights, ElementsAre(2.5f * (5.0f / 8), 2.5f * (3.0f / 8)));
}

TEST(GateWeights, SoftmaxOverTheChosenLeavesTheOthersOut) {
  GateSpec spec = Plain();
  spec.normalization = Normalization::kSoftmax;
  const float ln3 = std::log(3.0f);
  EXPECT_THAT(Select(spec, 2, {0, ln3, 0, 0, 0, 0}).weights, ElementsAre(FloatEq(0.75f), FloatEq(0.25f)));
  EXPECT_THAT(Select(spec, 1, {-5, -6}).weights, ElementsAre(1));
}

TEST(GateCorrection, SelectsAndNeverWeighs) {
  const Choice choice = Select(Plain(), 2, {1, 2, 3, 4}, {9, 0, 0, -9});
  EXPECT_THAT(choice.ids, ElementsAre(0, 2)) << "by 10, 2, 3, -5";
  EXPECT_THAT(choice.weights, ElementsAre(1, 3)) << "in the order of selection, not of weights";
}

TEST(GateCorrection, JoinsTheSelectionScoresOfGroupsToo) {
  GateSpec spec = Plain();
  spec.groups = 2;
  EXPECT_THAT(Select(spec, 1, {4, 0, 3, 0}).ids, ElementsAre(0));
  EXPECT_THAT(Select(spec, 1, {4, 0, 3, 0}, {0, 0, 0, 5}).ids, ElementsAre(3));
}

TEST(GateGroups, AreOfConsecutiveExpertsByTheirBestOne) {
  GateSpec spec = Plain();
  spec.groups = 3;
  EXPECT_THAT(Select(spec, 2, {5, 1, 9, 0, 7, 8}).ids, ElementsAre(2, 3)) << "the second best of all is elsewhere";
  spec.top_groups = 2;
  EXPECT_THAT(Select(spec, 3, {5, 1, 9, 0, 7, 8}).ids, ElementsAre(2, 5, 4));
}

TEST(GateGroups, MayScoreTheSumOfTheirTwoBest) {
  GateSpec spec = Plain();
  spec.groups = 2;
  const std::vector<float> logits = {9, 0, 0, 6, 5, 5};
  EXPECT_THAT(Select(spec, 2, logits).ids, ElementsAre(0, 1)) << "9 against 6";
  spec.group_score = GroupScore::kSumOfTwo;
  EXPECT_THAT(Select(spec, 2, logits).ids, ElementsAre(3, 4)) << "9 against 11, not 16";
  EXPECT_THAT(Select(spec, 1, {9, 9, 0, 6, 6, 6}).ids, ElementsAre(0)) << "equal ones are two: 18 against 12";
}

TEST(GateGroups, TiesGoToTheLowerGroup) {
  GateSpec spec = Plain();
  spec.groups = 3;
  EXPECT_THAT(Select(spec, 2, {1, 2, 2, 2, 2, 0}).ids, ElementsAre(1, 0));
  spec.top_groups = 2;
  EXPECT_THAT(Select(spec, 4, {1, 2, 2, 2, 2, 0}).ids, ElementsAre(1, 2, 3, 0));
}

TEST(GateGroups, ExcludedExpertsLoseToAnyScore) {
  // All selection scores are negative: an excluded expert with the score 0 would win.
  GateSpec spec{.scoring = Scoring::kSigmoid, .groups = 2, .group_score = GroupScore::kSumOfTwo};
  const Choice choice = Select(spec, 3, {3, 2, 1, 0, 1, 1}, std::vector<float>(6, -4.0f));
  EXPECT_THAT(choice.ids, ElementsAre(0, 1, 2));
  // The last of a kept group, with a score far below those of the other group.
  EXPECT_THAT(Select(spec, 3, {3, 3, 1, 2, 2, 2}, {0, 0, -1e30f, 0, 0, 0}).ids, ElementsAre(0, 1, 2));
}

// Rows of published models, by hand.

TEST(GateFamilies, DeepSeekV3) {
  const GateSpec spec{.scoring = Scoring::kSigmoid,
                      .groups = 2,
                      .top_groups = 1,
                      .group_score = GroupScore::kSumOfTwo,
                      .normalization = Normalization::kSum,
                      .normalization_eps = 1e-20f,
                      .scale = 2.5f};
  const float ln3 = std::log(3.0f);
  // Scores ¾ ½ ¼ ½ | ¾ ¾ ¾ ¾; corrections lift the first group: 0.75 0.5 1.25 0.5 | 0.75 ….
  const Choice choice = Select(spec, 2, {ln3, 0, -ln3, 0, ln3, ln3, ln3, ln3}, {0, 0, 1, 0, 0, 0, 0, 0});
  EXPECT_THAT(choice.ids, ElementsAre(2, 0));
  EXPECT_THAT(choice.weights, ElementsAre(FloatEq(2.5f * 0.25f), FloatEq(2.5f * 0.75f)));
  // Scores that vanish do not make weights of 0/0.
  EXPECT_THAT(Select(spec, 2, std::vector<float>(8, -200.0f)).weights, Each(0.0f));
}

TEST(GateFamilies, Llama4) {
  const GateSpec spec{.scoring = Scoring::kSigmoid, .select_by_logits = true, .normalization = Normalization::kNone};
  const Choice choice = Select(spec, 1, {-7, -std::log(3.0f), -2});
  EXPECT_THAT(choice.ids, ElementsAre(1));
  EXPECT_THAT(choice.weights, ElementsAre(FloatEq(0.25f)));
}

TEST(GateInput, ThatIsNotANumberNamesExpertsThatExist) {
  std::vector<GateSpec> specs = AllSpecs();
  for (const GateSpec& spec : specs) {
    for (const std::int32_t id : Select(spec, 3, std::vector<float>(12, std::nanf(""))).ids) {
      EXPECT_GE(id, 0);
      EXPECT_LT(id, 12);
    }
  }
}

TEST(GateDeathTest, RefusesRowsOfAnotherShape) {
  const auto select = [](std::size_t logits_size, std::size_t ids_size, std::size_t correction_size) {
    const GateSpec spec{.num_experts = 4, .experts_per_token = 2};
    std::vector<float> logits(logits_size);
    std::vector<std::int32_t> ids(ids_size);
    std::vector<float> weights(ids_size);
    SelectExperts(spec, SimdKernels(), std::vector<float>(correction_size), logits, ids, weights);
  };
  EXPECT_DEATH(select(3, 2, 0), "broken invariant");
  EXPECT_DEATH(select(4, 3, 0), "broken invariant");
  EXPECT_DEATH(select(4, 2, 4), "broken invariant") << "a correction that the gate does not have";
}

// Capacity.

/// The weights of tokens that chose `ids` (tokens, k), all 1, after an expert of two has `capacity`.
std::vector<float> WeightsLeft(int capacity, std::size_t k, const std::vector<std::int32_t>& ids) {
  const GateSpec spec{.num_experts = 3, .experts_per_token = static_cast<int>(k), .capacity = capacity};
  std::vector<std::uint32_t> taken = {7, 7, 7};  // of an earlier call
  std::vector<float> weights(ids.size(), 1.0f);
  ApplyCapacity(spec, {ids.data(), ids.size() / k, k}, taken, {weights.data(), ids.size() / k, k});
  return weights;
}

TEST(Capacity, GoesToTheFirstTokensOfASequence) {
  EXPECT_THAT(WeightsLeft(2, 1, {0, 1, 0, 0, 1, 1, 2, 0}), ElementsAre(1, 1, 1, 0, 1, 0, 1, 0));
  EXPECT_THAT(WeightsLeft(1, 1, {0, 0, 0, 1}), ElementsAre(1, 0, 0, 1));
}

TEST(Capacity, CountsEveryChoiceOfAToken) {
  EXPECT_THAT(WeightsLeft(2, 2, {0, 1, 1, 2, 1, 0, 0, 2}), ElementsAre(1, 1, 1, 1, 0, 1, 0, 1));
}

TEST(Capacity, OfZeroIsNoLimit) { EXPECT_THAT(WeightsLeft(0, 1, std::vector<std::int32_t>(50, 1)), Each(1.0f)); }

TEST(Capacity, ThatIsNotReachedChangesNothing) { EXPECT_THAT(WeightsLeft(3, 1, {0, 0, 0, 1, 1, 2}), Each(1.0f)); }

}  // namespace
}  // namespace moe
