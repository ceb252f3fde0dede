#include "router/generate_events.h"

#include <moe/v1/inference.pb.h>

#include <algorithm>

#include "router/inference_messages.h"

namespace moe {

void GenerateEvents::Add(std::shared_ptr<const SequenceOutput> output, std::size_t prompt_tokens) {
  sequences_.push_back({.output = std::move(output), .prompt_tokens = prompt_tokens});
}

bool GenerateEvents::Next(v1::GenerateEvent& event) {
  const std::size_t count = sequences_.size();
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t index = (turn_ + i) % count;
    if (!Fill(sequences_[index], event)) continue;
    event.set_sequence(static_cast<std::uint32_t>(index));
    turn_ = index + 1;
    return true;
  }
  return false;
}

bool GenerateEvents::complete() const {
  return std::ranges::all_of(sequences_, [](const Sent& sent) { return sent.finish; });
}

bool GenerateEvents::Fill(Sent& sent, v1::GenerateEvent& event) const {
  const SequenceOutput& output = *sent.output;
  if (sent.finish) return false;
  const bool finished = output.finished();  // before the counts, so that the last event has all tokens
  const std::size_t tokens = output.tokens();
  if (tokens == sent.tokens && !finished) return false;
  event.Clear();
  WriteTokens(output, {.begin = sent.tokens, .end = tokens, .num_logprobs = options_.num_logprobs}, event);
  if (options_.routing) {
    const std::size_t routed = output.routed();
    WriteRouting(output, options_.config, {.begin = sent.routed, .end = routed}, *event.mutable_routing());
    sent.routed = routed;
  }
  sent.tokens = tokens;
  if (finished) {
    sent.finish = true;
    WriteFinish(output.result,
                {.prompt_tokens = sent.prompt_tokens,
                 .generated_tokens = tokens,
                 .parameters = options_.setup.parameters,
                 .encoder = options_.config.has_encoder()},
                *event.mutable_finish());
  }
  return true;
}

}  // namespace moe
