// The kernels of a router, on the emulated device, against the CPU's: to the bit.
#include "kernels/cuda/router_kernels.h"

#include <algorithm>
#include <random>
#include <vector>

#include "kernels/kernels.h"
#include "model/gate.h"
#include "tests/emulation/findings.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/kernel_cases.h"

namespace moe::cuda {
namespace {

using emulation::KernelTest;
using emulation::kThreadOrders;
using emulation::ScopedThreadOrder;
using emulation::ThreadOrder;

GateRules RulesOf(const GateSpec& spec) {
  const auto scoring = [&] {
    switch (spec.scoring) {
      case GateSpec::Scoring::kSoftmax: return GateRules::Scoring::kSoftmax;
      case GateSpec::Scoring::kSigmoid: return GateRules::Scoring::kSigmoid;
      case GateSpec::Scoring::kLogits: break;
    }
    return GateRules::Scoring::kLogits;
  };
  const auto normalization = [&] {
    switch (spec.normalization) {
      case GateSpec::Normalization::kNone: return GateRules::Normalization::kNone;
      case GateSpec::Normalization::kSum: return GateRules::Normalization::kSum;
      case GateSpec::Normalization::kSoftmax: break;
    }
    return GateRules::Normalization::kSoftmax;
  };
  return {.num_experts = static_cast<std::uint32_t>(spec.num_experts),
          .experts_per_token = static_cast<std::uint32_t>(spec.experts_per_token),
          .scoring = scoring(),
          .select_by_logits = spec.select_by_logits,
          .groups = static_cast<std::uint32_t>(spec.groups),
          .top_groups = static_cast<std::uint32_t>(spec.top_groups),
          .group_score = spec.group_score == GateSpec::GroupScore::kMax ? GateRules::GroupScore::kMax
                                                                        : GateRules::GroupScore::kSumOfTwo,
          .normalization = normalization(),
          .normalization_eps = spec.normalization_eps,
          .scale = spec.scale};
}

struct Choice {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

Choice OnDevice(const GateSpec& spec, const std::vector<float>& logits, const std::vector<float>& correction) {
  const std::size_t tokens = logits.size() / static_cast<std::size_t>(spec.num_experts);
  const std::size_t chosen = tokens * static_cast<std::size_t>(spec.experts_per_token);
  DeviceArray<float> device_logits(logits);
  DeviceArray<float> device_correction(correction);
  DeviceArray<std::int32_t> ids(chosen, -1);
  DeviceArray<float> weights(chosen);
  cuda::SelectExperts({.rules = RulesOf(spec),
                       .tokens = static_cast<std::uint32_t>(tokens),
                       .logits = device_logits.data(),
                       .correction = correction.empty() ? nullptr : device_correction.data(),
                       .ids = ids.data(),
                       .weights = weights.data()},
                      {});
  return {ids.values(), weights.values()};
}

Choice OnCpu(const GateSpec& spec, std::vector<float> logits, const std::vector<float>& correction) {
  const auto experts = static_cast<std::size_t>(spec.num_experts);
  const auto k = static_cast<std::size_t>(spec.experts_per_token);
  const std::size_t tokens = logits.size() / experts;
  Choice choice{std::vector<std::int32_t>(tokens * k), std::vector<float>(tokens * k)};
  for (std::size_t token = 0; token < tokens; ++token)
    moe::SelectExperts(spec, SimdKernels(), correction, std::span(logits).subspan(token * experts, experts),
                       std::span(choice.ids).subspan(token * k, k), std::span(choice.weights).subspan(token * k, k));
  return choice;
}

void ExpectTheSame(const GateSpec& spec, const std::vector<float>& logits, const std::vector<float>& correction) {
  const Choice expected = OnCpu(spec, logits, correction);
  for (const ThreadOrder order : kThreadOrders) {
    const ScopedThreadOrder scope(order);
    const Choice got = OnDevice(spec, logits, correction);
    ASSERT_EQ(got.ids, expected.ids) << spec.num_experts << " experts, " << spec.experts_per_token << " chosen";
    ASSERT_TRUE(SameBits(got.weights, expected.weights)) << spec.num_experts << " experts";
  }
}

/// The settings of the families that model/families/ knows, and then some.
std::vector<GateSpec> Specs() {
  using Scoring = GateSpec::Scoring;
  using Normalization = GateSpec::Normalization;
  return {
      {.scoring = Scoring::kSoftmax},                                           // renormalised
      {.scoring = Scoring::kSoftmax, .normalization = Normalization::kNone},    // not
      {.scoring = Scoring::kLogits, .normalization = Normalization::kSoftmax},  // softmax after top-k
      {.scoring = Scoring::kSigmoid, .select_by_logits = true, .normalization = Normalization::kNone},
      {.scoring = Scoring::kSigmoid, .correction_bias = true, .normalization_eps = 1e-20f, .scale = 2.5f},
      {.scoring = Scoring::kSoftmax, .normalization = Normalization::kNone, .scale = 16},
  };
}

class RouterKernels : public KernelTest {};

TEST_F(RouterKernels, GatesChooseAsTheCpuDoes) {
  for (GateSpec spec : Specs()) {
    for (const auto& [experts, k] : {std::pair{1, 1}, {8, 2}, {31, 31}, {33, 5}, {60, 4}, {128, 8}, {257, 10}}) {
      spec.num_experts = experts;
      spec.experts_per_token = k;
      const auto count = static_cast<std::size_t>(experts);
      const std::vector<float> correction = spec.correction_bias ? RandomValues(count, 2) : std::vector<float>();
      ASSERT_NO_FATAL_FAILURE(ExpectTheSame(spec, RandomValues(3 * count, 1), correction));
    }
  }
}

TEST_F(RouterKernels, TiesGoToTheLowerId) {
  for (GateSpec spec : Specs()) {
    spec.correction_bias = false;
    spec.num_experts = 70;
    spec.experts_per_token = 6;
    std::vector<float> logits(140, 0.25f);
    for (const std::size_t i : Counts{3, 40, 64, 69}) logits[70 + i] = 1;
    ASSERT_NO_FATAL_FAILURE(ExpectTheSame(spec, logits, {}));
  }
}

TEST_F(RouterKernels, GroupsAreLimitedAsOnTheCpu) {
  for (const auto rule : {GateSpec::GroupScore::kMax, GateSpec::GroupScore::kSumOfTwo}) {
    for (const auto& [experts, groups, top] :
         {std::tuple{8, 4, 2}, {64, 8, 3}, {160, 8, 3}, {256, 8, 4}, {96, 32, 5}}) {
      GateSpec spec{.num_experts = experts,
                    .experts_per_token = 4,
                    .scoring = GateSpec::Scoring::kSigmoid,
                    .correction_bias = rule == GateSpec::GroupScore::kSumOfTwo,
                    .groups = groups,
                    .top_groups = top,
                    .group_score = rule};
      const auto count = static_cast<std::size_t>(experts);
      const std::vector<float> correction = spec.correction_bias ? RandomValues(count, 4) : std::vector<float>();
      ASSERT_NO_FATAL_FAILURE(ExpectTheSame(spec, RandomValues(4 * count, 3), correction));
    }
  }
}

TEST_F(RouterKernels, AGateThatADeviceCannotTakeIsRefused) {
  EXPECT_DEATH(cuda::SelectExperts({.rules = {.num_experts = 6145, .experts_per_token = 1}}, {}), "broken invariant");
  EXPECT_DEATH(cuda::SelectExperts({.rules = {.num_experts = 64, .experts_per_token = 33}}, {}), "broken invariant");
  EXPECT_DEATH(cuda::SelectExperts({.rules = {.num_experts = 66, .experts_per_token = 1, .groups = 33}}, {}),
               "broken invariant");
}

/// Slots of pairs, some of which are not wanted.
std::vector<std::int32_t> RandomSlots(std::uint32_t pairs, std::uint32_t slots, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::int32_t> wanted(pairs);
  for (std::int32_t& slot : wanted) slot = static_cast<std::int32_t>(random() % (slots + 1)) - 1;
  return wanted;
}

struct Sorted {
  std::vector<std::uint32_t> offsets;
  std::vector<std::uint32_t> row_of_pair;
};

Sorted SortOnDevice(const std::vector<std::int32_t>& wanted, std::uint32_t slots) {
  DeviceArray<std::int32_t> slot(wanted);
  DeviceArray<std::uint32_t> offsets(slots + 1, 77);
  DeviceArray<std::uint32_t> rows(wanted.size(), 77);
  SortBySlot({.pairs = static_cast<std::uint32_t>(wanted.size()),
              .slots = slots,
              .slot = slot.data(),
              .offsets = offsets.data(),
              .row_of_pair = rows.data()},
             {});
  return {offsets.values(), rows.values()};
}

TEST_F(RouterKernels, PairsAreSortedBySlotAndStayInOrder) {
  for (const auto& [pairs, slots] :
       {std::pair{0u, 5u}, {1u, 1u}, {7u, 1u}, {32u, 3u}, {100u, 31u}, {129u, 32u}, {300u, 33u}, {1000u, 150u}}) {
    const std::vector<std::int32_t> wanted = RandomSlots(pairs, slots, pairs + slots);
    Sorted expected{std::vector<std::uint32_t>(slots + 1, 0), std::vector<std::uint32_t>(pairs, kNoRow)};
    std::uint32_t row = 0;
    for (std::uint32_t slot = 0; slot < slots; ++slot) {
      for (std::uint32_t pair = 0; pair < pairs; ++pair)
        if (wanted[pair] == static_cast<std::int32_t>(slot)) expected.row_of_pair[pair] = row++;
      expected.offsets[slot + 1] = row;
    }
    for (const ThreadOrder order : kThreadOrders) {
      const ScopedThreadOrder scope(order);
      const Sorted got = SortOnDevice(wanted, slots);
      ASSERT_EQ(got.offsets, expected.offsets) << pairs << " pairs, " << slots << " slots";
      ASSERT_EQ(got.row_of_pair, expected.row_of_pair) << pairs << " pairs, " << slots << " slots";
    }
  }
}

TEST_F(RouterKernels, AllPairsMayWantOneSlotOrNone) {
  EXPECT_EQ(SortOnDevice(std::vector<std::int32_t>(70, 2), 4).offsets, (std::vector<std::uint32_t>{0, 0, 0, 70, 70}));
  const Sorted none = SortOnDevice(std::vector<std::int32_t>(70, -1), 4);
  EXPECT_EQ(none.offsets, (std::vector<std::uint32_t>(5, 0)));
  EXPECT_EQ(none.row_of_pair, (std::vector<std::uint32_t>(70, kNoRow)));
}

TEST_F(RouterKernels, RowsGoToTheirSlotsAndComeBackWeighted) {
  constexpr std::uint32_t kPerToken = 3;
  for (const auto& [tokens, hidden] : {std::pair{1u, 1u}, {5u, 127u}, {11u, 300u}}) {
    const std::uint32_t pairs = tokens * kPerToken;
    const std::vector<std::int32_t> wanted = RandomSlots(pairs, 7, 9);
    Sorted sorted = SortOnDevice(wanted, 7);
    const std::vector<float> in = RandomValues(tokens * hidden, 1);
    std::vector<float> weights = RandomValues(pairs, 2);
    weights[pairs / 2] = 0;
    DeviceArray<float> device_tokens(in);
    DeviceArray<float> rows(sorted.offsets.back() * hidden);
    DeviceArray<std::uint32_t> row_of_pair(sorted.row_of_pair);
    PermuteRows({.pairs = pairs,
                 .pairs_per_token = kPerToken,
                 .hidden = hidden,
                 .tokens = device_tokens.data(),
                 .row_of_pair = row_of_pair.data(),
                 .rows = rows.data()},
                {});
    for (std::size_t pair = 0; pair < pairs; ++pair) {
      if (sorted.row_of_pair[pair] == kNoRow) continue;
      ASSERT_TRUE(SameBits(rows.span().subspan(sorted.row_of_pair[pair] * hidden, hidden),
                           std::span(in).subspan(pair / kPerToken * hidden, hidden)));
    }
    for (const bool weighted : {true, false}) {
      DeviceArray<float> device_weights(weights);
      DeviceArray<float> out(tokens * hidden, 77);
      CombineRows({.tokens = tokens,
                   .pairs_per_token = kPerToken,
                   .hidden = hidden,
                   .rows = rows.data(),
                   .row_of_pair = row_of_pair.data(),
                   .weights = weighted ? device_weights.data() : nullptr,
                   .out = out.data()},
                  {});
      std::vector<float> expected(tokens * hidden, 0.0f);
      for (std::size_t pair = 0; pair < pairs; ++pair) {
        const float weight = weighted ? weights[pair] : 1;
        if (sorted.row_of_pair[pair] == kNoRow || weight == 0) continue;
        SimdKernels().AddScaled(weight, std::span(in).subspan(pair / kPerToken * hidden, hidden),
                                std::span(expected).subspan(pair / kPerToken * hidden, hidden));
      }
      ASSERT_TRUE(SameBits(out.values(), expected)) << tokens << " tokens";
    }
  }
}

}  // namespace
}  // namespace moe::cuda
