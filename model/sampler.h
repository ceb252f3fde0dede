// Chooses the next token from logits. Depends on nothing but its arguments, so that a sampled continuation, too, is the
// same whatever runs beside it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/status.h"
#include "kernels/kernels.h"

namespace moe {

/// Order: penalties, temperature, top_k, top_p, min_p. Defaults switch everything off (greedy).
struct SamplingParams {
  float temperature = 0;  // 0 = greedy, ties to the lower id
  std::uint32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::uint64_t seed = 0;

  bool has_penalties() const { return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0; }
};

/// INVALID_ARGUMENT naming the field and the value that is out of range.
Status CheckSampling(const SamplingParams& params);

/// How often each token occurred in a sequence; what the penalties need.
class TokenCounts {
 public:
  explicit TokenCounts(std::size_t vocab) : in_output_(vocab, 0), seen_(vocab, false) {}
  void AddPrompt(std::uint32_t token) { seen_[token] = true; }
  void AddOutput(std::uint32_t token) {
    seen_[token] = true;
    ++in_output_[token];
  }
  bool seen(std::size_t token) const { return seen_[token]; }
  std::uint32_t in_output(std::size_t token) const { return in_output_[token]; }
  std::size_t vocab() const { return seen_.size(); }

 private:
  std::vector<std::uint32_t> in_output_;
  std::vector<bool> seen_;  // in the prompt or the output
};

/// What the random numbers depend on beside the seed.
struct DrawPosition {
  std::uint32_t sequence = 0;  // index in its own request
  std::uint64_t position = 0;  // of the token to be chosen, prompt included
};

/// Uniform in [0, 1) with 53 bits: Philox4x32-10 (Salmon et al., SC 2011), key = seed, counter = (position, sequence).
double UniformDraw(std::uint64_t seed, DrawPosition at);

/// One thread's sampler; its scratch is allocated once.
class Sampler {
 public:
  Sampler(std::size_t vocab, const Kernels& kernels);

  /// `counts` is needed when the parameters have penalties.
  std::uint32_t Sample(std::span<const float> logits, const SamplingParams& params, const TokenCounts* counts,
                       DrawPosition at);

  /// The `ids.size()` largest logits by descending value, ties to the lower id.
  void Largest(std::span<const float> logits, std::span<std::uint32_t> ids);

 private:
  std::uint32_t Draw(const SamplingParams& params, DrawPosition at);

  const Kernels& kernels_;
  std::vector<float> logits_;         // (vocab), penalised
  std::vector<float> probabilities_;  // of candidates
  std::vector<std::uint32_t> candidates_;
};

}  // namespace moe
