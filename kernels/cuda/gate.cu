// A gate's logits to experts and weights: one warp a token. Expert e belongs to lane e % 32 wherever a lane looks at
// its own experts only.
#include "core/check.h"
#include "kernels/cuda/arithmetic.cuh"
#include "kernels/cuda/execution.cuh"
#include "kernels/cuda/router_kernels.h"

namespace moe::cuda {
namespace {

constexpr std::uint32_t kNobody = 0xffffffffu;

MOE_DEVICE float Excluded() { return FloatOf(0xff800000u); }  // -infinity

/// The "lane sum" of kernels/kernels.h over up to 32 values, one a lane: 16 partial sums, then + 8, + 4, + 2, + 1.
MOE_DEVICE float LaneSum(float value) {
  for (unsigned distance = 16; distance > 0; distance /= 2) value = value + ShuffleXor(value, distance);
  return Shuffle(value, 0);
}

struct Best {
  float value;
  std::uint32_t id;
};

/// The largest of the lanes' values, the lower id of equals. A lane without one brings -infinity and kNobody.
MOE_DEVICE Best BestOfWarp(Best mine) {
  for (unsigned distance = 16; distance > 0; distance /= 2) {
    const float value = ShuffleXor(mine.value, distance);
    const std::uint32_t id = ShuffleXor(mine.id, distance);
    if (value > mine.value || (value == mine.value && id < mine.id)) mine = {value, id};
  }
  return {Shuffle(mine.value, 0), Shuffle(mine.id, 0)};
}

/// scores = softmax(scores), as Kernels::Softmax.
template <typename Shared>
MOE_DEVICE void Softmax(Shared& scores, std::uint32_t experts) {
  float highest = Excluded();
  for (std::uint32_t e = LaneIndex(); e < experts; e += kWarpLanes) {
    const float score = scores[e];
    highest = score > highest ? score : highest;
  }
  highest = WarpMax(highest);
  for (std::uint32_t e = LaneIndex(); e < experts; e += kWarpLanes) scores[e] = Exp(scores[e] - highest);
  Barrier();
  float partial = 0;  // of the experts e with e % 16 = lane
  for (std::uint32_t e = LaneIndex(); e < experts && LaneIndex() < 16; e += 16) partial = partial + scores[e];
  const float sum = LaneSum(partial);
  Barrier();  // partial sums are of two lanes' experts
  for (std::uint32_t e = LaneIndex(); e < experts; e += kWarpLanes) scores[e] = scores[e] / sum;
}

/// The score of group `LaneIndex()`: the largest selection score, or the sum of the two largest.
template <typename Shared>
MOE_DEVICE float GroupScoreOf(const GateRules& rules, Shared& selection, std::uint32_t size) {
  float first = Excluded();
  float second = Excluded();
  for (std::uint32_t e = LaneIndex() * size; e < (LaneIndex() + 1) * size; ++e) {
    const float score = selection[e];
    if (score > first) {
      second = first;
      first = score;
    } else if (score > second) {
      second = score;
    }
  }
  return rules.group_score == GateRules::GroupScore::kMax ? first : first + second;
}

/// Excludes all but the best groups of consecutive experts.
template <typename Shared>
MOE_DEVICE void LimitGroups(const GateRules& rules, Shared& selection) {
  const std::uint32_t size = rules.num_experts / rules.groups;
  Barrier();  // a group is of all lanes' experts
  Best mine{Excluded(), kNobody};
  if (LaneIndex() < rules.groups) mine = {GroupScoreOf(rules, selection, size), LaneIndex()};
  std::uint32_t kept = 0;
  for (std::uint32_t i = 0; i < rules.top_groups; ++i) {
    const std::uint32_t best = BestOfWarp(mine).id;
    kept |= 1u << best;
    if (best == LaneIndex()) mine = {Excluded(), kNobody};
  }
  Barrier();
  for (std::uint32_t e = LaneIndex(); e < rules.num_experts; e += kWarpLanes)
    if ((kept >> (e / size) & 1u) == 0) selection[e] = Excluded();
}

/// Of the chosen experts, one a lane; the first experts_per_token lanes have one.
MOE_DEVICE float Normalized(const GateRules& rules, float weight) {
  const bool chosen = LaneIndex() < rules.experts_per_token;
  switch (rules.normalization) {
    case GateRules::Normalization::kNone: break;
    case GateRules::Normalization::kSoftmax: {
      const float highest = WarpMax(chosen ? weight : Excluded());
      weight = chosen ? Exp(weight - highest) : 0.0f;
      weight = weight / LaneSum(weight);
      break;
    }
    case GateRules::Normalization::kSum: {
      float sum = rules.normalization_eps;
      for (std::uint32_t i = 0; i < rules.experts_per_token; ++i) sum = sum + Shuffle(weight, i);
      weight = weight / sum;
      break;
    }
  }
  return rules.scale != 1.0f ? weight * rules.scale : weight;
}

/// A block, of one warp, for each token.
MOE_KERNEL void GateKernel(GateTask task) {
  const GateRules& rules = task.rules;
  const std::uint32_t experts = rules.num_experts;
  auto scores = DynamicShared<float>();  // (2, experts): scores, then selection scores
  auto selection = DynamicShared<float>(experts);
  const float* logits = task.logits + static_cast<std::size_t>(BlockIndex().x) * experts;
  for (std::uint32_t e = LaneIndex(); e < experts; e += kWarpLanes) scores[e] = logits[e];
  if (rules.scoring == GateRules::Scoring::kSoftmax) {
    Softmax(scores, experts);
  } else if (rules.scoring == GateRules::Scoring::kSigmoid) {
    for (std::uint32_t e = LaneIndex(); e < experts; e += kWarpLanes) scores[e] = 1.0f / (1.0f + Exp(-scores[e]));
  }
  for (std::uint32_t e = LaneIndex(); e < experts; e += kWarpLanes) {
    const float score = rules.select_by_logits ? logits[e] : static_cast<float>(scores[e]);
    selection[e] = task.correction != nullptr ? score + task.correction[e] : score;
  }
  if (rules.groups > 1) LimitGroups(rules, selection);

  std::uint32_t chosen = 0;  // the lane's
  for (std::uint32_t i = 0; i < rules.experts_per_token; ++i) {
    Best mine{Excluded(), kNobody};
    for (std::uint32_t e = LaneIndex(); e < experts; e += kWarpLanes) {
      const float score = selection[e];
      if (mine.id == kNobody || score > mine.value) mine = {score, e};
    }
    const std::uint32_t best = BestOfWarp(mine).id;
    if (best % kWarpLanes == LaneIndex()) selection[best] = Excluded();
    if (i == LaneIndex()) chosen = best;
  }
  Barrier();
  const float weight = Normalized(rules, scores[chosen]);
  if (LaneIndex() >= rules.experts_per_token) return;
  const std::size_t at = static_cast<std::size_t>(BlockIndex().x) * rules.experts_per_token + LaneIndex();
  task.ids[at] = static_cast<std::int32_t>(chosen);
  task.weights[at] = weight;
}

}  // namespace

void SelectExperts(const GateTask& task, DeviceStream stream) {
  const GateRules& rules = task.rules;
  MOE_CHECK(rules.num_experts >= 1 && rules.num_experts <= GateRules::kMaxExperts &&
                rules.experts_per_token <= rules.num_experts && rules.experts_per_token <= GateRules::kMaxPerToken,
            "a gate of more experts than a warp of a device takes");
  MOE_CHECK(rules.groups >= 1 && rules.groups <= GateRules::kMaxGroups && rules.num_experts % rules.groups == 0 &&
                rules.top_groups <= rules.groups,
            "a gate of more groups than a warp of a device takes");
  if (task.tokens == 0) return;
  Launch("Gate", GateKernel,
         {.blocks = {.x = task.tokens},
          .threads = kWarpLanes,
          .shared_bytes = 2 * rules.num_experts * sizeof(float),
          .stream = stream},
         task);
}

}  // namespace moe::cuda
