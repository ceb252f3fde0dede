// The last part of a step: logits of the rows that need them, and from them the next tokens, log-probabilities, scores.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "model/decoder.h"
#include "model/sampler.h"
#include "router/scheduler.h"

namespace moe {

struct HeadTimes {
  double logits = 0;
  double sample = 0;
};

class Head {
 public:
  struct Options {
    std::size_t vocab = 0;
    std::size_t max_step_tokens = 0;
  };
  Head(Options options, Decoder& decoder, const Kernels& kernels, ThreadPool& pool);

  /// For the chunks of a step whose rows lie one after the other in the decoder: appends the next token of every
  /// generating sequence whose known positions are now all computed, and writes scores. Moves `computed` on.
  HeadTimes Run(std::span<const Chunk> chunks);

 private:
  /// A row whose logits somebody wants.
  struct Wanted {
    Sequence* sequence = nullptr;
    std::size_t position = 0;
  };
  void Collect(std::span<const Chunk> chunks);
  void Use(const Wanted& wanted, std::span<const float> logits, Sampler& sampler);
  void Generate(Sequence& sequence, std::span<const float> logits, Sampler& sampler);
  void Score(Sequence& sequence, std::size_t position, std::span<const float> logits);

  Decoder& decoder_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  std::vector<Sampler> samplers_;    // by thread
  std::vector<Wanted> wanted_;       // in row order
  std::vector<std::uint32_t> rows_;  // of the step, one for each of wanted_
};

}  // namespace moe
