#include "router/sequence.h"

namespace moe {

SequenceOutput::SequenceOutput(const SequenceRequest& request, const ModelConfig& config) {
  const std::size_t generated = request.max_new_tokens;
  const auto vocab = static_cast<std::size_t>(config.vocab_size);
  token_ids.resize(generated);
  if (request.kind == SequenceKind::kScore) {
    token_logprobs.resize(request.prompt.size() - 1);
    const std::size_t rows = request.score_logits == ScoreLogits::kNone   ? 0
                             : request.score_logits == ScoreLogits::kLast ? 1
                                                                          : request.prompt.size();
    logits.resize(rows * vocab);
  } else if (request.num_logprobs > 0) {
    token_logprobs.resize(generated);
    top_token_ids.resize(generated * request.num_logprobs);
    top_logprobs.resize(generated * request.num_logprobs);
  }
  if (request.return_routing) {
    const std::size_t routed =
        config.sparse_layers().size() * request.kv_tokens() * static_cast<std::size_t>(config.experts_per_token());
    routing_ids.resize(routed);
    routing_weights.resize(routed);
  }
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
  pages.reserve(KvCache::PagesFor(request.kv_tokens()));
  if (request.sampling.has_penalties()) {
    counts = std::make_unique<TokenCounts>(static_cast<std::size_t>(config.vocab_size));
    for (const std::uint32_t token : request.prompt) counts->AddPrompt(token);
  }
}

}  // namespace moe
