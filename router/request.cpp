#include "router/request.h"

#include <moe/v1/inference.pb.h>

#include <algorithm>

namespace moe {
namespace {

Status CheckTokens(const v1::TokenSequence& sequence, int index, const ModelConfig& config,
                   const RequestLimits& limits) {
  if (sequence.token_ids().empty()) return InvalidArgument("sequences[", index, "].token_ids is empty");
  if (sequence.token_ids_size() > config.context_length)
    return InvalidArgument("sequences[", index, "].token_ids has ", sequence.token_ids_size(),
                           " tokens, the context is ", config.context_length);
  if (config.has_encoder() && static_cast<std::uint32_t>(sequence.token_ids_size()) > limits.max_source_tokens)
    return InvalidArgument("sequences[", index, "].token_ids has ", sequence.token_ids_size(),
                           " tokens; an encoder takes them in one step, of at most ", limits.max_source_tokens,
                           " (--max-step-tokens)");
  for (int i = 0; i < sequence.token_ids_size(); ++i)
    if (sequence.token_ids(i) >= static_cast<std::uint32_t>(config.vocab_size))
      return InvalidArgument("sequences[", index, "].token_ids[", i, "] ", sequence.token_ids(i),
                             " is not below the vocabulary size ", config.vocab_size);
  return Status::Ok();
}

/// The tokens where the model takes them: its decoder, or its encoder while the decoder begins with its start token.
SequenceRequest MakeRequest(SequenceKind kind, int index, const v1::TokenSequence& sequence,
                            const ModelConfig& config) {
  SequenceRequest request{.kind = kind, .index = static_cast<std::uint32_t>(index)};
  std::vector<std::uint32_t> tokens(sequence.token_ids().begin(), sequence.token_ids().end());
  if (config.has_encoder()) {
    request.source = std::move(tokens);
    request.prompt = {*config.decoder_start_token};
  } else {
    request.prompt = std::move(tokens);
  }
  return request;
}

Status CheckBatch(int sequences, const RequestLimits& limits) {
  if (sequences == 0) return InvalidArgument("sequences is empty");
  if (static_cast<std::uint32_t>(sequences) > limits.max_sequences_per_request)
    return InvalidArgument("sequences has ", sequences, " entries, at most ", limits.max_sequences_per_request,
                           " are allowed");
  return Status::Ok();
}

SamplingParams ReadSampling(const v1::Sampling& s, std::uint64_t drawn_seed) {
  SamplingParams params;
  params.temperature = s.temperature();
  params.top_k = s.top_k();
  if (s.has_top_p()) params.top_p = s.top_p();
  if (s.has_min_p()) params.min_p = s.min_p();
  if (s.has_repetition_penalty()) params.repetition_penalty = s.repetition_penalty();
  params.presence_penalty = s.presence_penalty();
  params.frequency_penalty = s.frequency_penalty();
  params.seed = s.has_seed() ? s.seed() : drawn_seed;
  return params;
}

// The request's own stop tokens and, unless ignored, the model's; sorted.
Result<std::vector<std::uint32_t>> ReadStops(const v1::GenerateRequest& message, const ModelConfig& config,
                                             const RequestLimits& limits) {
  if (static_cast<std::uint32_t>(message.stop_token_ids_size()) > limits.max_stop_token_ids)
    return InvalidArgument("stop_token_ids has ", message.stop_token_ids_size(), " entries, at most ",
                           limits.max_stop_token_ids, " are allowed");
  std::vector<std::uint32_t> stops(message.stop_token_ids().begin(), message.stop_token_ids().end());
  for (const std::uint32_t token : stops)
    if (token >= static_cast<std::uint32_t>(config.vocab_size))
      return InvalidArgument("stop_token_ids ", token, " is not below the vocabulary size ", config.vocab_size);
  if (!message.ignore_eos()) stops.insert(stops.end(), config.eos_token_ids.begin(), config.eos_token_ids.end());
  std::sort(stops.begin(), stops.end());
  return stops;
}

}  // namespace

Result<std::vector<SequenceRequest>> ParseGenerate(const v1::GenerateRequest& message, const ModelConfig& config,
                                                   const RequestLimits& limits, std::uint64_t drawn_seed) {
  MOE_RETURN_IF_ERROR(CheckBatch(message.sequences_size(), limits));
  if (message.max_new_tokens() == 0) return InvalidArgument("max_new_tokens 0 is not at least 1");
  if (message.logprobs() > limits.max_logprobs)
    return InvalidArgument("logprobs ", message.logprobs(), " is over the limit of ", limits.max_logprobs);
  const SamplingParams sampling = ReadSampling(message.sampling(), drawn_seed);
  MOE_RETURN_IF_ERROR(CheckSampling(sampling));
  MOE_ASSIGN_OR_RETURN(const std::vector<std::uint32_t> stops, ReadStops(message, config, limits));
  std::vector<SequenceRequest> requests;
  for (int i = 0; i < message.sequences_size(); ++i) {
    const v1::TokenSequence& sequence = message.sequences(i);
    MOE_RETURN_IF_ERROR(CheckTokens(sequence, i, config, limits));
    // An encoder's input and the decoder's output are two contexts.
    const auto prompt = config.has_encoder() ? 0 : static_cast<std::uint64_t>(sequence.token_ids_size());
    const std::uint64_t length = prompt + message.max_new_tokens();
    if (length > static_cast<std::uint64_t>(config.context_length))
      return InvalidArgument("sequences[", i, "]: ", prompt, " prompt tokens and max_new_tokens ",
                             message.max_new_tokens(), " exceed the context of ", config.context_length);
    SequenceRequest request = MakeRequest(SequenceKind::kGenerate, i, sequence, config);
    request.max_new_tokens = message.max_new_tokens();
    request.sampling = sampling;
    request.stop_token_ids = stops;
    request.num_logprobs = std::min(message.logprobs(), static_cast<std::uint32_t>(config.vocab_size));
    request.return_routing = message.return_routing();
    requests.push_back(std::move(request));
  }
  return requests;
}

Result<std::vector<SequenceRequest>> ParseScore(const v1::ScoreRequest& message, const ModelConfig& config,
                                                const RequestLimits& limits) {
  MOE_RETURN_IF_ERROR(CheckBatch(message.sequences_size(), limits));
  if (!v1::LogitsMode_IsValid(message.return_logits()))
    return InvalidArgument("return_logits ", static_cast<int>(message.return_logits()),
                           " is unknown (NONE, LAST, ALL)");
  if (config.has_encoder() && message.return_logits() != v1::LOGITS_MODE_LAST)
    return Unimplemented("return_logits ", v1::LogitsMode_Name(message.return_logits()),
                         ": an encoder-decoder model gives the logits of the first decoder step only (LAST)");
  std::vector<SequenceRequest> requests;
  std::uint64_t reply_bytes = 0;
  for (int i = 0; i < message.sequences_size(); ++i) {
    const v1::TokenSequence& sequence = message.sequences(i);
    MOE_RETURN_IF_ERROR(CheckTokens(sequence, i, config, limits));
    SequenceRequest request = MakeRequest(SequenceKind::kScore, i, sequence, config);
    request.return_routing = message.return_routing();
    if (message.return_logits() == v1::LOGITS_MODE_LAST) request.score_logits = ScoreLogits::kLast;
    if (message.return_logits() == v1::LOGITS_MODE_ALL) request.score_logits = ScoreLogits::kAll;
    reply_bytes += SequenceOutput::Bytes(request, config);
    requests.push_back(std::move(request));
  }
  if (reply_bytes > limits.max_reply_bytes)
    return InvalidArgument("return_logits and return_routing: the answer would take ", reply_bytes,
                           " bytes, over the limit of ", limits.max_reply_bytes,
                           "; ask for fewer sequences or positions");
  return requests;
}

}  // namespace moe
