#include "model/gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "tests/kernels/kernel_cases.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;

struct Choice {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

Choice Select(std::vector<float> logits, int k, bool renormalize = true, const Kernels& kernels = SimdKernels()) {
  const GateSpec spec{
      .num_experts = static_cast<int>(logits.size()), .experts_per_token = k, .renormalize = renormalize};
  Choice choice{std::vector<std::int32_t>(static_cast<std::size_t>(k)),
                std::vector<float>(static_cast<std::size_t>(k))};
  SelectExperts(spec, kernels, logits, choice.ids, choice.weights);
  return choice;
}

/// Softmax, top k and renormalisation in double, by sorting.
struct Reference {
  std::vector<std::int32_t> ids;
  std::vector<double> weights;
};
Reference SelectInDouble(const std::vector<float>& logits, int k, bool renormalize) {
  Reference reference{.ids = std::vector<std::int32_t>(logits.size())};
  std::iota(reference.ids.begin(), reference.ids.end(), 0);
  const auto logit = [&](std::int32_t id) { return static_cast<double>(logits[static_cast<std::size_t>(id)]); };
  std::stable_sort(reference.ids.begin(), reference.ids.end(),
                   [&](std::int32_t a, std::int32_t b) { return logit(a) > logit(b); });
  const double highest = logit(reference.ids.front());
  double all = 0;
  for (const std::int32_t id : reference.ids) all += std::exp(logit(id) - highest);
  reference.ids.resize(static_cast<std::size_t>(k));
  double chosen = 0;
  for (const std::int32_t id : reference.ids) {
    reference.weights.push_back(std::exp(logit(id) - highest) / all);
    chosen += reference.weights.back();
  }
  if (renormalize)
    for (double& weight : reference.weights) weight /= chosen;
  return reference;
}

class Gate : public ::testing::TestWithParam<const Kernels*> {};

std::vector<const Kernels*> AllKernels() {
  std::vector<const Kernels*> all = AvailableSimdKernels();
  all.push_back(&ReferenceKernels());
  return all;
}

INSTANTIATE_TEST_SUITE_P(Kernels, Gate, ::testing::ValuesIn(AllKernels()), NameOf);

TEST_P(Gate, IsTheSoftmaxOfTheKLargest) {
  std::uint32_t seed = 0;
  for (const std::size_t experts : Counts{1, 2, 6, 8, 17, 60, 64, 256}) {
    for (const int k : {1, 2, 3, 8, static_cast<int>(experts)}) {
      if (static_cast<std::size_t>(k) > experts) continue;
      for (const bool renormalize : {true, false}) {
        std::vector<float> logits = RandomValues(experts, ++seed);
        for (float& logit : logits) logit *= 3;
        const Choice choice = Select(logits, k, renormalize, *GetParam());
        const Reference expected = SelectInDouble(logits, k, renormalize);
        ASSERT_EQ(choice.ids, expected.ids) << experts << " experts, k " << k;
        // x − max is off by half an ulp of at most 32, which exp makes relative; exp itself, the lane sum (E / 16 + 4
        // additions), the sum of the k weights and two divisions round too.
        const double roundings = 32 + 2 + static_cast<double>(experts) / 16 + 4 + k + 2;
        for (std::size_t j = 0; j < expected.weights.size(); ++j)
          EXPECT_NEAR(choice.weights[j], expected.weights[j], 2 * roundings * kRoundoff * expected.weights[j]);
      }
    }
  }
}

TEST_P(Gate, GivesTiesToTheLowerId) {
  const Choice choice = Select({1, 4, 4, 0, 4, 1}, 5, true, *GetParam());
  EXPECT_THAT(choice.ids, ElementsAre(1, 2, 4, 0, 5));
  EXPECT_EQ(choice.weights[0], choice.weights[1]);
  EXPECT_EQ(choice.weights[1], choice.weights[2]);
  EXPECT_EQ(choice.weights[3], choice.weights[4]);
  EXPECT_THAT(Select(std::vector<float>(8, -2.5f), 3, true, *GetParam()).ids, ElementsAre(0, 1, 2));
}

TEST_P(Gate, ChoosesAnExpertOnceEvenWhenTheOthersWeighNothing) {
  // exp(−200) is 0 in fp32, so two of the three chosen have weight 0.
  const Choice choice = Select({-200, 0, -200, -200}, 3, true, *GetParam());
  EXPECT_THAT(choice.ids, ElementsAre(1, 0, 2));
  EXPECT_THAT(choice.weights, ElementsAre(1, 0, 0));
}

TEST(GateOrder, IsByDescendingWeight) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    const Choice choice = Select(RandomValues(8, seed), 8);
    EXPECT_TRUE(std::is_sorted(choice.weights.rbegin(), choice.weights.rend()));
    std::vector<std::int32_t> ids = choice.ids;
    std::sort(ids.begin(), ids.end());
    EXPECT_THAT(ids, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7)) << "k = E chooses everyone once";
  }
}

TEST(GateWeights, ByHand) {
  const float ln2 = std::log(2.0f);
  // Shares 4, 2, 1, 1 of 8.
  EXPECT_THAT(Select({0, 2 * ln2, 0, ln2}, 2).weights, ElementsAre(FloatEq(2.0f / 3), FloatEq(1.0f / 3)));
  EXPECT_THAT(Select({0, 2 * ln2, 0, ln2}, 2, false).weights, ElementsAre(FloatEq(0.5f), FloatEq(0.25f)));
  EXPECT_THAT(Select({7, 3}, 1).weights, ElementsAre(1));
}

TEST(GateDeathTest, RefusesRowsOfAnotherShape) {
  const GateSpec spec{.num_experts = 4, .experts_per_token = 2};
  std::vector<float> logits(3);
  std::vector<std::int32_t> ids(2);
  std::vector<float> weights(2);
  EXPECT_DEATH(SelectExperts(spec, SimdKernels(), logits, ids, weights), "broken invariant");
  logits.resize(4);
  ids.resize(3);
  EXPECT_DEATH(SelectExperts(spec, SimdKernels(), logits, ids, weights), "broken invariant");
}

}  // namespace
}  // namespace moe
