#include "router/sequence.h"

namespace moe {

namespace {

// Rows of logits that a score returns.
std::size_t LogitRows(const SequenceRequest& request) {
  switch (request.score_logits) {
    case ScoreLogits::kNone: return 0;
    case ScoreLogits::kLast: return 1;
    case ScoreLogits::kAll: return request.prompt.size();
  }
  return 0;
}

RoutingShape ShapeOfRouting(const SequenceRequest& request, const ModelConfig& config) {
  if (!request.return_routing) return {};
  RoutingShape shape{.experts_per_token = static_cast<std::size_t>(config.experts_per_token()),
                     .source = request.source.size(),
                     .tokens = request.kv_tokens()};
  for (const int layer : config.sparse_layers()) {
    ++(layer < config.encoder_layers ? shape.encoder_layers : shape.decoder_layers);
  }
  return shape;
}

}  // namespace

std::uint64_t SequenceOutput::Bytes(const SequenceRequest& request, const ModelConfig& config) {
  const std::uint64_t tokens = request.prompt.size() + request.max_new_tokens * (2 + 2 * request.num_logprobs);
  const std::uint64_t logits = LogitRows(request) * static_cast<std::uint64_t>(config.vocab_size);
  return 4 * (tokens + logits + 2 * ShapeOfRouting(request, config).size());
}

SequenceOutput::SequenceOutput(const SequenceRequest& request, const ModelConfig& config) {
  const std::size_t generated = request.max_new_tokens;
  token_ids.resize(generated);
  if (request.kind == SequenceKind::kScore) {
    token_logprobs.resize(request.prompt.size() - 1);
    logits.resize(LogitRows(request) * static_cast<std::size_t>(config.vocab_size));
  } else if (request.num_logprobs > 0) {
    token_logprobs.resize(generated);
    top_token_ids.resize(generated * request.num_logprobs);
    top_logprobs.resize(generated * request.num_logprobs);
  }
  routing_shape = ShapeOfRouting(request, config);
  routing_ids.resize(routing_shape.size());
  routing_weights.resize(routing_shape.size());
}

Sequence::Sequence(SequenceRequest asked, std::shared_ptr<SequenceOutput> out, std::shared_ptr<OutputListener> hears,
                   const ModelConfig& config)
    : request(std::move(asked)),
      output(std::move(out)),
      listener(std::move(hears)),
      experts_used(config.sparse_layers().size() * static_cast<std::size_t>(config.num_experts()), false),
      arrived(Clock::now()) {
  tokens.reserve(request.prompt.size() + request.max_new_tokens);
  tokens.assign(request.prompt.begin(), request.prompt.end());
  kv = KvCache::MakePages(config, request.kv_demand());
  encoded = request.source.empty();
  if (request.sampling.has_penalties()) {
    counts = std::make_unique<TokenCounts>(static_cast<std::size_t>(config.vocab_size));
    for (const std::uint32_t token : request.prompt) counts->AddPrompt(token);
  }
}

}  // namespace moe
