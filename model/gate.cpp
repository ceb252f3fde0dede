#include "model/gate.h"

#include <limits>

#include "core/check.h"

namespace moe {
namespace {

// The k largest scores by descending value, ties to the lower id: k passes over E scores, which for the k of the field
// (1 … 10) costs less than sorting them.
void TopK(std::span<float> scores, std::span<std::int32_t> ids, std::span<float> values) {
  constexpr float kTaken = -std::numeric_limits<float>::infinity();
  for (std::size_t j = 0; j < ids.size(); ++j) {
    std::size_t best = 0;
    for (std::size_t e = 1; e < scores.size(); ++e)
      if (scores[e] > scores[best]) best = e;
    ids[j] = static_cast<std::int32_t>(best);
    values[j] = scores[best];
    scores[best] = kTaken;
  }
}

}  // namespace

void SelectExperts(const GateSpec& spec, const Kernels& kernels, std::span<float> logits, std::span<std::int32_t> ids,
                   std::span<float> weights) {
  MOE_CHECK(ids.size() == static_cast<std::size_t>(spec.experts_per_token) && weights.size() == ids.size());
  MOE_CHECK(logits.size() == static_cast<std::size_t>(spec.num_experts));
  switch (spec.scoring) {
    case GateSpec::Scoring::kSoftmax: kernels.Softmax(logits); break;
  }
  TopK(logits, ids, weights);
  if (spec.renormalize) {
    float sum = 0;
    for (const float weight : weights) sum += weight;
    for (float& weight : weights) weight /= sum;
  }
}

}  // namespace moe
