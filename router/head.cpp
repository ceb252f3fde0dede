#include "router/head.h"

#include <algorithm>

#include "core/clock.h"

namespace moe {

Head::Head(Options options, Decoder& decoder, const Kernels& kernels, ThreadPool& pool)
    : decoder_(decoder), kernels_(kernels), pool_(pool) {
  for (int thread = 0; thread < pool.threads(); ++thread) samplers_.emplace_back(options.vocab, kernels);
  wanted_.reserve(options.max_step_tokens);
  rows_.reserve(options.max_step_tokens);
}

HeadTimes Head::Run(std::span<const Chunk> chunks) {
  HeadTimes times;
  Collect(chunks);
  for (const Chunk& chunk : chunks)
    if (chunk.sequence->failure.ok()) chunk.sequence->computed += chunk.tokens;
  for (std::size_t begin = 0; begin < wanted_.size(); begin += decoder_.max_logit_rows()) {
    const std::size_t count = std::min(decoder_.max_logit_rows(), wanted_.size() - begin);
    const TimePoint start = Clock::now();
    const MatrixView<const float> logits = decoder_.Logits(std::span(rows_).subspan(begin, count));
    const TimePoint computed = Clock::now();
    // A sequence that is scored has several rows in a block; their outputs are disjoint.
    pool_.ParallelFor(count, [&](std::size_t i, int thread) {
      Use(wanted_[begin + i], logits.row(i), samplers_[static_cast<std::size_t>(thread)]);
    });
    times.logits += Seconds(computed - start);
    times.sample += Seconds(Clock::now() - computed);
  }
  return times;
}

void Head::Collect(std::span<const Chunk> chunks) {
  wanted_.clear();
  rows_.clear();
  std::uint32_t row = 0;
  for (const Chunk& chunk : chunks) {
    Sequence& sequence = *chunk.sequence;
    if (!sequence.failure.ok()) {
      row += static_cast<std::uint32_t>(chunk.tokens);
      continue;
    }
    const bool score = sequence.request.kind == SequenceKind::kScore;
    const bool complete = chunk.tokens == sequence.remaining();
    for (std::size_t i = 0; i < chunk.tokens; ++i, ++row) {
      const std::size_t position = sequence.computed + i;
      const bool last = complete && i + 1 == chunk.tokens;
      // A score's last position predicts nothing that was given; only its logits can be wanted.
      const bool wanted = score ? !last || sequence.request.score_logits != ScoreLogits::kNone : last;
      if (!wanted) continue;
      wanted_.push_back({&sequence, position});
      rows_.push_back(row);
    }
  }
}

void Head::Use(const Wanted& wanted, std::span<const float> logits, Sampler& sampler) {
  if (wanted.sequence->request.kind == SequenceKind::kScore) {
    Score(*wanted.sequence, wanted.position, logits);
  } else {
    Generate(*wanted.sequence, logits, sampler);
  }
}

void Head::Generate(Sequence& sequence, std::span<const float> logits, Sampler& sampler) {
  const SequenceRequest& request = sequence.request;
  SequenceOutput& output = *sequence.output;
  const std::size_t generated = sequence.generated();
  const DrawPosition at{.sequence = request.index, .position = sequence.tokens.size()};
  const std::uint32_t token = sampler.Sample(logits, request.sampling, sequence.counts.get(), at);
  if (request.num_logprobs > 0) {
    const std::size_t top = request.num_logprobs;
    const float normalizer = kernels_.LogSumExp(logits);
    const std::span<std::uint32_t> ids = std::span(output.top_token_ids).subspan(generated * top, top);
    sampler.Largest(logits, ids);
    for (std::size_t i = 0; i < top; ++i) output.top_logprobs[generated * top + i] = logits[ids[i]] - normalizer;
    output.token_logprobs[generated] = logits[token] - normalizer;
  }
  sequence.tokens.push_back(token);
  if (sequence.counts) sequence.counts->AddOutput(token);
  output.token_ids[generated] = token;
}

void Head::Score(Sequence& sequence, std::size_t position, std::span<const float> logits) {
  SequenceOutput& output = *sequence.output;
  if (position + 1 < sequence.tokens.size())
    output.token_logprobs[position] = logits[sequence.tokens[position + 1]] - kernels_.LogSumExp(logits);
  const bool last = position + 1 == sequence.tokens.size();
  const ScoreLogits wanted = sequence.request.score_logits;
  if (wanted == ScoreLogits::kAll) {
    std::copy(logits.begin(), logits.end(),
              output.logits.begin() + static_cast<std::ptrdiff_t>(position * logits.size()));
  } else if (wanted == ScoreLogits::kLast && last) {
    std::copy(logits.begin(), logits.end(), output.logits.begin());
  }
}

}  // namespace moe
