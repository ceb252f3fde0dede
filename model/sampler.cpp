#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/check.h"

namespace moe {
namespace {

bool Finite(float value) { return std::isfinite(value); }

// What overflows stays a number, so that differences of logits are numbers too.
float Bounded(float value) {
  constexpr float kMost = std::numeric_limits<float>::max();
  return std::clamp(value, -kMost, kMost);
}

void ApplyPenalties(const SamplingParams& params, const TokenCounts& counts, std::span<float> logits) {
  for (std::size_t token = 0; token < logits.size(); ++token) {
    if (!counts.seen(token)) continue;
    float& logit = logits[token];
    logit = Bounded(logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty);
    const std::uint32_t count = counts.in_output(token);
    if (count > 0)
      logit = Bounded(logit - (params.presence_penalty + params.frequency_penalty * static_cast<float>(count)));
  }
}

std::uint32_t ArgMax(std::span<const float> logits) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < logits.size(); ++i)
    if (logits[i] > logits[best]) best = i;
  return static_cast<std::uint32_t>(best);
}

// Larger logit first, ties to the lower id.
auto Before(std::span<const float> logits) {
  return [logits](std::uint32_t a, std::uint32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
}

}  // namespace

Status CheckSampling(const SamplingParams& p) {
  if (!Finite(p.temperature) || p.temperature < 0)
    return InvalidArgument("sampling.temperature ", p.temperature, " is not a finite number >= 0");
  if (!(p.top_p > 0 && p.top_p <= 1)) return InvalidArgument("sampling.top_p ", p.top_p, " is not in (0, 1]");
  if (!(p.min_p >= 0 && p.min_p <= 1)) return InvalidArgument("sampling.min_p ", p.min_p, " is not in [0, 1]");
  if (!Finite(p.repetition_penalty) || p.repetition_penalty <= 0)
    return InvalidArgument("sampling.repetition_penalty ", p.repetition_penalty, " is not a finite number > 0");
  if (!Finite(p.presence_penalty))
    return InvalidArgument("sampling.presence_penalty ", p.presence_penalty, " is not finite");
  if (!Finite(p.frequency_penalty))
    return InvalidArgument("sampling.frequency_penalty ", p.frequency_penalty, " is not finite");
  return Status::Ok();
}

double UniformDraw(std::uint64_t seed, DrawPosition at) {
  std::array<std::uint32_t, 4> counter = {static_cast<std::uint32_t>(at.position),
                                          static_cast<std::uint32_t>(at.position >> 32), at.sequence, 0};
  std::uint32_t key0 = static_cast<std::uint32_t>(seed);
  std::uint32_t key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(product0)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  const std::uint64_t bits = (std::uint64_t{counter[0]} << 32 | counter[1]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

Sampler::Sampler(std::size_t vocab, const Kernels& kernels) : kernels_(kernels), logits_(vocab) {
  probabilities_.reserve(vocab);
  candidates_.reserve(vocab);
}

std::uint32_t Sampler::Sample(std::span<const float> logits, const SamplingParams& params, const TokenCounts* counts,
                              DrawPosition at) {
  MOE_CHECK(logits.size() == logits_.size());
  if (params.temperature == 0 && !params.has_penalties()) return ArgMax(logits);
  std::copy(logits.begin(), logits.end(), logits_.begin());
  if (params.has_penalties()) {
    MOE_CHECK(counts != nullptr && counts->vocab() == logits.size());
    ApplyPenalties(params, *counts, logits_);
  }
  if (params.temperature == 0) return ArgMax(logits_);
  // From the largest down, so that a small temperature takes the others to -infinity and never two to +infinity.
  const float largest = *std::max_element(logits_.begin(), logits_.end());
  for (float& logit : logits_) logit = (logit - largest) / params.temperature;
  return Draw(params, at);
}

std::uint32_t Sampler::Draw(const SamplingParams& params, DrawPosition at) {
  candidates_.resize(logits_.size());
  std::iota(candidates_.begin(), candidates_.end(), 0u);
  const std::size_t kept = params.top_k == 0 ? candidates_.size() : std::min<std::size_t>(params.top_k, logits_.size());
  // Without a filter the order does not matter, and id order needs no sorting.
  const bool sorted = kept < candidates_.size() || params.top_p < 1;
  if (sorted) {
    const auto middle = candidates_.begin() + static_cast<std::ptrdiff_t>(kept);
    std::partial_sort(candidates_.begin(), middle, candidates_.end(), Before(logits_));
    candidates_.resize(kept);
  }
  probabilities_.resize(candidates_.size());
  for (std::size_t i = 0; i < candidates_.size(); ++i) probabilities_[i] = logits_[candidates_[i]];
  kernels_.Softmax(probabilities_);

  if (params.top_p < 1) {
    // The fewest of the likeliest whose sum reaches top_p.
    double sum = 0;
    std::size_t count = 0;
    while (count < probabilities_.size() && sum < static_cast<double>(params.top_p))
      sum += static_cast<double>(probabilities_[count++]);
    candidates_.resize(count);
    probabilities_.resize(count);
  }
  const float largest = *std::max_element(probabilities_.begin(), probabilities_.end());
  const float least = params.min_p * largest;

  double total = 0;
  for (float& p : probabilities_) {
    if (p < least) p = 0;
    total += static_cast<double>(p);
  }
  double left = UniformDraw(params.seed, at) * total;
  std::size_t last = 0;
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    if (probabilities_[i] == 0) continue;
    last = i;
    left -= static_cast<double>(probabilities_[i]);
    if (left < 0) break;
  }
  return candidates_[last];
}

void Sampler::Largest(std::span<const float> logits, std::span<std::uint32_t> ids) {
  MOE_CHECK(ids.size() <= logits.size());
  candidates_.resize(logits.size());
  std::iota(candidates_.begin(), candidates_.end(), 0u);
  const auto middle = candidates_.begin() + static_cast<std::ptrdiff_t>(ids.size());
  std::partial_sort(candidates_.begin(), middle, candidates_.end(), Before(logits));
  std::copy(candidates_.begin(), middle, ids.begin());
}

}  // namespace moe
