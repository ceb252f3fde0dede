#include "model/gate.h"

#include <algorithm>
#include <array>
#include <limits>

#include "core/check.h"

namespace moe {
namespace {

constexpr float kExcluded = -std::numeric_limits<float>::infinity();

/// Where the largest value lies, the first of equals.
std::size_t ArgMax(std::span<const float> values) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < values.size(); ++i)
    if (values[i] > values[best]) best = i;
  return best;
}

/// The ids of the largest values, descending, ties to the lower id; their values become kExcluded. k passes over E
/// values, which for the k of the field (1 … 10) costs less than sorting them.
void TakeLargest(std::span<float> values, std::span<std::int32_t> ids) {
  for (std::int32_t& id : ids) {
    const std::size_t best = ArgMax(values);
    id = static_cast<std::int32_t>(best);
    values[best] = kExcluded;
  }
}

float GroupScore(GateSpec::GroupScore rule, std::span<const float> group) {
  const std::size_t best = ArgMax(group);
  if (rule == GateSpec::GroupScore::kMax) return group[best];
  float second = kExcluded;
  for (std::size_t i = 0; i < group.size(); ++i)
    if (i != best) second = std::max(second, group[i]);
  return group[best] + second;
}

/// Excludes all but the best groups of consecutive experts. `scores` (groups) is scratch.
void LimitGroups(const GateSpec& spec, std::span<float> selection, std::span<float> scores) {
  const auto groups = static_cast<std::size_t>(spec.groups);
  const std::size_t size = selection.size() / groups;
  for (std::size_t g = 0; g < groups; ++g) scores[g] = GroupScore(spec.group_score, selection.subspan(g * size, size));
  // The best top_groups of them are marked, by a score that no group has.
  constexpr float kKept = std::numeric_limits<float>::infinity();
  for (int i = 0; i < spec.top_groups; ++i) {
    std::size_t best = groups;
    for (std::size_t g = 0; g < groups; ++g)
      if (scores[g] != kKept && (best == groups || scores[g] > scores[best])) best = g;
    scores[best] = kKept;
  }
  for (std::size_t g = 0; g < groups; ++g)
    if (scores[g] != kKept) std::ranges::fill(selection.subspan(g * size, size), kExcluded);
}

void Normalize(const GateSpec& spec, const Kernels& kernels, std::span<float> weights) {
  switch (spec.normalization) {
    case GateSpec::Normalization::kNone: break;
    case GateSpec::Normalization::kSoftmax: kernels.Softmax(weights); break;
    case GateSpec::Normalization::kSum: {
      float sum = spec.normalization_eps;
      for (const float weight : weights) sum += weight;
      for (float& weight : weights) weight /= sum;
      break;
    }
  }
  if (spec.scale != 1)
    for (float& weight : weights) weight *= spec.scale;
}

}  // namespace

void SelectExperts(const GateSpec& spec, const Kernels& kernels, std::span<const float> correction,
                   std::span<float> logits, std::span<std::int32_t> ids, std::span<float> weights) {
  const std::size_t experts = logits.size();
  MOE_CHECK(ids.size() == static_cast<std::size_t>(spec.experts_per_token) && weights.size() == ids.size());
  MOE_CHECK(experts == static_cast<std::size_t>(spec.num_experts) && experts <= kMaxExperts);
  MOE_CHECK(correction.size() == (spec.correction_bias ? experts : 0));

  std::array<float, kMaxExperts> selection_values;
  const std::span<float> selection(selection_values.data(), experts);
  if (spec.select_by_logits) std::ranges::copy(logits, selection.begin());
  switch (spec.scoring) {
    case GateSpec::Scoring::kSoftmax: kernels.Softmax(logits); break;
    case GateSpec::Scoring::kSigmoid: kernels.Sigmoid(logits); break;
    case GateSpec::Scoring::kLogits: break;
  }
  if (!spec.select_by_logits) std::ranges::copy(logits, selection.begin());
  if (!correction.empty()) kernels.Add(correction, selection);
  if (spec.groups > 1) {
    std::array<float, kMaxExperts> group_scores;
    LimitGroups(spec, selection, group_scores);
  }
  TakeLargest(selection, ids);
  for (std::size_t j = 0; j < ids.size(); ++j) weights[j] = logits[static_cast<std::size_t>(ids[j])];
  Normalize(spec, kernels, weights);
}

void ApplyCapacity(const GateSpec& spec, MatrixView<const std::int32_t> ids, std::span<std::uint32_t> taken,
                   MatrixView<float> weights) {
  if (spec.capacity == 0) return;
  std::ranges::fill(taken, 0u);
  for (std::size_t token = 0; token < ids.rows(); ++token) {
    for (std::size_t j = 0; j < ids.cols(); ++j) {
      std::uint32_t& count = taken[static_cast<std::size_t>(ids(token, j))];
      if (count == static_cast<std::uint32_t>(spec.capacity)) {
        weights(token, j) = 0;
      } else {
        ++count;
      }
    }
  }
}

}  // namespace moe
