#include "router/inference_messages.h"

#include <google/protobuf/repeated_field.h>
#include <moe/v1/inference.pb.h>

namespace moe {
namespace {

v1::FinishReason Reason(FinishKind kind) {
  switch (kind) {
    case FinishKind::kStop: return v1::FINISH_REASON_STOP;
    case FinishKind::kLength: return v1::FINISH_REASON_LENGTH;
    case FinishKind::kCancelled: return v1::FINISH_REASON_CANCELLED;
    case FinishKind::kFailed: return v1::FINISH_REASON_FAILED;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

}  // namespace

void WriteTokens(const SequenceOutput& output, TokenRange range, v1::GenerateEvent& event) {
  const std::size_t top = range.num_logprobs;
  for (std::size_t i = range.begin; i < range.end; ++i) {
    event.add_token_ids(output.token_ids[i]);
    if (top == 0) continue;
    v1::TokenLogprobs& logprobs = *event.add_logprobs();
    logprobs.set_logprob(output.token_logprobs[i]);
    for (std::size_t j = 0; j < top; ++j) {
      logprobs.add_top_token_ids(output.top_token_ids[i * top + j]);
      logprobs.add_top_logprobs(output.top_logprobs[i * top + j]);
    }
  }
}

void WriteRouting(const SequenceOutput& output, const ModelConfig& config, PositionRange range,
                  google::protobuf::RepeatedPtrField<v1::LayerRouting>& routing) {
  const auto k = static_cast<std::size_t>(config.experts_per_token());
  const std::vector<int> layers = config.sparse_layers();
  if (range.begin >= range.end || layers.empty()) return;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    v1::LayerRouting& layer = *routing.Add();
    layer.set_layer(static_cast<std::uint32_t>(layers[i]));
    layer.set_experts_per_token(static_cast<std::uint32_t>(k));
    const bool encoder = i < output.routing_shape.encoder_layers;
    const std::size_t begin = encoder && range.begin > 0 ? output.routing_shape.source : range.begin;
    const std::size_t end = encoder ? output.routing_shape.source : range.end;
    const std::size_t at = output.routing_shape.begin(i);
    for (std::size_t j = at + begin * k; j < at + end * k; ++j) {
      layer.add_expert_ids(static_cast<std::uint32_t>(output.routing_ids[j]));
      layer.add_weights(output.routing_weights[j]);
    }
  }
}

void WriteFinish(const SequenceResult& result, FinishCounts counts, v1::Finish& finish) {
  finish.set_reason(Reason(result.finish));
  finish.set_message(result.status.message());
  v1::Usage& usage = *finish.mutable_usage();
  usage.set_prompt_tokens(static_cast<std::uint32_t>(counts.prompt_tokens));
  usage.set_generated_tokens(static_cast<std::uint32_t>(counts.generated_tokens));
  usage.set_queue_seconds(result.queue_seconds);
  usage.set_time_to_first_token_seconds(result.time_to_first_token_seconds);
  usage.set_total_seconds(result.total_seconds);
  usage.set_active_parameters_per_token(counts.parameters.active);
  usage.set_touched_parameters(counts.parameters.Touched(
      {.encoder = counts.encoder, .decoder = true, .distinct_experts = result.unique_experts}));
  usage.set_expert_rows(result.expert_rows);
  usage.set_unique_experts(result.unique_experts);
}

void WriteScore(const SequenceOutput& output, v1::SequenceScore& score) {
  double sum = 0;
  for (const float logprob : output.token_logprobs) {
    score.add_token_logprobs(logprob);
    sum += static_cast<double>(logprob);
  }
  const std::size_t scored = output.token_logprobs.size();
  score.set_mean_nll(scored == 0 ? 0 : -sum / static_cast<double>(scored));
  score.mutable_logits()->Add(output.logits.begin(), output.logits.end());
}

void WriteParameters(const ParameterCount& count, v1::Parameters& parameters) {
  parameters.set_total(count.total);
  parameters.set_active(count.active);
  parameters.set_active_without_embedding(count.active_without_embedding);
}

void WriteModel(const InferenceSetup& setup, const ModelConfig& config, v1::ModelDescription& model) {
  const auto u32 = [](auto value) { return static_cast<std::uint32_t>(value); };
  model.set_name(setup.model_name);
  model.set_architecture(config.architecture);
  model.set_weight_type(setup.weight_type);
  model.set_routing(setup.routing);
  model.set_vocab_size(u32(config.vocab_size));
  model.set_hidden_size(u32(config.hidden));
  model.set_num_layers(u32(config.num_layers()));
  model.set_num_experts(u32(config.num_experts()));
  model.set_experts_per_token(u32(config.experts_per_token()));
  model.set_context_length(u32(config.context_length));
  WriteParameters(setup.parameters, *model.mutable_parameters());
  for (const std::uint32_t token : config.eos_token_ids) model.add_eos_token_ids(token);
  v1::Limits& limits = *model.mutable_limits();
  limits.set_max_sequences(setup.max_sequences);
  limits.set_max_queued(setup.max_queued);
  limits.set_max_step_tokens(setup.max_step_tokens);
  limits.set_kv_tokens(setup.kv_tokens);
  limits.set_max_sequences_per_request(setup.limits.max_sequences_per_request);
  limits.set_max_message_bytes(setup.max_message_bytes);
  limits.set_max_logprobs(setup.limits.max_logprobs);
  limits.set_max_streams(setup.limits.max_streams);
  limits.set_max_stop_token_ids(setup.limits.max_stop_token_ids);
  limits.set_max_output_bytes(setup.limits.max_output_bytes);
}

}  // namespace moe
