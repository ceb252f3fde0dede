#include "model/families/decoder_common.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <string>

namespace moe {
namespace {

// theta 1 is the least that makes sense (all frequencies equal); the largest published is 1e9.
constexpr RealRange kThetas = {.min = 1, .max = 1e15};
constexpr RealRange kRopeFactors = {.min = 1, .max = 1e6};
constexpr RealRange kFreqFactors = {.min = 1e-6, .max = 1e6};
constexpr RealRange kEpsilons = {.min = 1e-12, .max = 1};

// The order of RopeScaling's values after the two names of none.
constexpr std::array<std::string_view, 4> kRopeTypes = {"default", "none", "linear", "llama3"};
constexpr std::array<RopeScaling, 4> kRopeScalings = {RopeScaling::kNone, RopeScaling::kNone, RopeScaling::kLinear,
                                                      RopeScaling::kLlama3};

/// `rope_type`, or the older `type`; they must agree when both are there.
RopeScaling ReadRopeType(KeyReader& settings) {
  const auto type = settings.OptionalChoice("rope_type", kRopeTypes);
  const auto older = settings.OptionalChoice("type", kRopeTypes);
  if (type.has_value() && older.has_value() && type != older) {
    settings.Refuse("type", Cat(kRopeTypes[*type], ", as rope_type says"));
  }
  const auto either = type.has_value() ? type : older;
  return either.has_value() ? kRopeScalings[*either] : RopeScaling::kNone;
}

/// Rotation of a part of the head, scaled or sectioned rotation, and dictionaries of one set of keys per layer type.
const std::vector<MathematicalKey>& RopeMathematicalKeys() {
  static const std::vector<MathematicalKey> keys = {
      {"partial_rotary_factor", {"1"}}, {"attention_factor", {"1"}}, {"mrope_section", {}},
      {"full_attention", {}},           {"sliding_attention", {}},   {"chunked_attention", {}},
  };
  return keys;
}

/// The scaling keys of rope_scaling or rope_parameters.
void ReadRopeScaling(KeyReader& settings, ModelConfig& config, RopeSpec& rope) {
  rope.scaling = ReadRopeType(settings);
  const auto original = settings.OptionalInt("original_max_position_embeddings", kContextLengths);
  if (rope.scaling != RopeScaling::kNone) rope.factor = settings.Real("factor", kRopeFactors);
  if (rope.scaling == RopeScaling::kLlama3) {
    rope.low_freq_factor = settings.Real("low_freq_factor", kFreqFactors);
    rope.high_freq_factor = settings.Real("high_freq_factor", kFreqFactors);
    rope.original_max_positions = original.value_or(config.context_length);
    if (rope.high_freq_factor < rope.low_freq_factor) {
      settings.Refuse("high_freq_factor", Cat("at least low_freq_factor, ", rope.low_freq_factor));
    }
  }
  settings.CheckUnread({}, RopeMathematicalKeys(), config.warnings);
}

}  // namespace

void ReadDecoderSizes(KeyReader& keys, ModelConfig& config) {
  config.vocab_size = keys.Int("vocab_size", kVocabSizes);
  config.hidden = keys.Int("hidden_size", kHiddenSizes);
  config.context_length = keys.Int("max_position_embeddings", kContextLengths);
  config.rms_norm_eps = static_cast<float>(keys.Real("rms_norm_eps", kEpsilons));
  config.tied_embeddings = keys.OptionalBool("tie_word_embeddings").value_or(false);
  constexpr std::array<std::string_view, 1> kActivations = {"silu"};
  (void)keys.OptionalChoice("hidden_act", kActivations);
}

AttentionSpec ReadAttention(KeyReader& keys, const ModelConfig& config) {
  AttentionSpec attention;
  attention.num_heads = keys.Int("num_attention_heads", kHeadCounts);
  attention.num_kv_heads = keys.OptionalInt("num_key_value_heads", kHeadCounts).value_or(attention.num_heads);
  if (attention.num_heads % attention.num_kv_heads != 0) {
    keys.Refuse("num_key_value_heads", Cat("a divisor of num_attention_heads, ", attention.num_heads));
  }
  if (const auto head_dim = keys.OptionalInt("head_dim", kHeadDims)) {
    attention.head_dim = *head_dim;
    if (*head_dim % 2 != 0) keys.Refuse("head_dim", "even, as rotary embedding needs");
  } else {
    attention.head_dim = config.hidden / attention.num_heads;
    if (config.hidden % attention.num_heads != 0) {
      keys.Refuse("num_attention_heads", Cat("a divisor of hidden_size, ", config.hidden, " (head_dim is not given)"));
    }
    if (attention.head_dim % 2 != 0) {
      keys.Refuse("num_attention_heads",
                  Cat("one that makes heads of an even width (hidden_size is ", config.hidden, ")"));
    }
    if (attention.head_dim > kHeadDims.max) {
      keys.Refuse("num_attention_heads",
                  Cat("enough for hidden_size ", config.hidden, " (heads of at most ", kHeadDims.max, " elements)"));
    }
  }
  attention.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(std::max(attention.head_dim, 1))));
  return attention;
}

int ReadSlidingWindow(KeyReader& keys) {
  const auto window = keys.OptionalInt("sliding_window", kContextLengths);
  const auto used = keys.OptionalBool("use_sliding_window");
  // Published software for these families does not read use_sliding_window, so a contradiction has no right reading.
  if (window.has_value() && used == false)
    keys.Refuse("use_sliding_window", Cat("true, as sliding_window ", *window, " needs"));
  return window.value_or(0);
}

RopeSpec ReadRope(KeyReader& keys, ModelConfig& config, int head_dim, double default_theta) {
  RopeSpec rope{.width = head_dim};
  std::optional<double> theta = keys.OptionalReal("rope_theta", kThetas);
  auto scaling = keys.OptionalObject("rope_scaling");
  auto parameters = keys.OptionalObject("rope_parameters");
  if (scaling.has_value() && parameters.has_value()) {
    keys.Refuse("rope_scaling", "absent or null, as rope_parameters is there too");
  }
  if (parameters.has_value()) {
    const auto inner = parameters->OptionalReal("rope_theta", kThetas);
    if (theta.has_value() && inner.has_value() && theta != inner) {
      keys.Refuse("rope_theta", Cat(*inner, ", as rope_parameters says"));
    }
    if (inner.has_value()) theta = inner;
  }
  rope.theta = theta.value_or(default_theta);
  for (auto* settings : {&scaling, &parameters}) {
    if (!settings->has_value()) continue;
    ReadRopeScaling(**settings, config, rope);
    keys.Fail((*settings)->status());
  }
  return rope;
}

std::vector<LayerSpec> ReadLayers(KeyReader& keys, const LayerSpec& layer) {
  return std::vector<LayerSpec>(static_cast<std::size_t>(keys.Int("num_hidden_layers", kLayerCounts)), layer);
}

GateSpec ReadSoftmaxGate(KeyReader& keys, std::string_view experts_key) {
  GateSpec gate;
  gate.num_experts = keys.Int(experts_key, kExpertCounts);
  gate.experts_per_token = keys.Int("num_experts_per_tok", kExpertCounts);
  if (gate.experts_per_token > gate.num_experts) {
    keys.Refuse("num_experts_per_tok", Cat("at most ", experts_key, ", ", gate.num_experts));
  }
  return gate;
}

std::span<const std::string_view> HarmlessKeys() {
  static constexpr auto kKeys = std::to_array<std::string_view>(
      {// Where the files come from.
       "_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "_from_model_config",
       "transformers.js_config", "_attn_implementation", "_attn_implementation_internal",
       "_attn_implementation_autoset", "_flash_attn_2_enabled",
       // Training only.
       "attention_dropout", "hidden_dropout", "hidden_dropout_prob", "attn_pdrop", "embd_pdrop", "resid_pdrop",
       "initializer_range", "router_aux_loss_coef", "router_jitter_noise", "output_router_logits",
       "gradient_checkpointing", "tf_legacy_loss", "problem_type", "finetuning_task", "task_specific_params",
       "label2id", "id2label",
       // How other software runs it or what it returns.
       "use_cache", "output_attentions", "output_hidden_states", "return_dict", "torchscript", "use_bfloat16",
       "chunk_size_feed_forward", "is_decoder", "tokenizer_class", "prefix",
       // Tokens and defaults of generation; stop tokens are read, sampling comes with each request.
       "bos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id", "forced_bos_token_id",
       "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "max_length", "min_length",
       "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
       "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
       "encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores", "return_dict_in_generate",
       "remove_invalid_values", "exponential_decay_length_penalty"});
  return kKeys;
}

std::span<const MathematicalKey> PlainDecoderMathematicalKeys() {
  static const std::vector<MathematicalKey> keys = {
      {"pretraining_tp", {"1"}},  // above 1, published software sums slices of the matrices apart
      {"quantization_config", {}},
      {"compression_config", {}},
      {"text_config", {}},
      {"is_encoder_decoder", {"false"}},
      {"add_cross_attention", {"false"}},
      {"cross_attention_hidden_size", {}},
      {"pruned_heads", {"{}"}},
      {"layer_types", {}},
      {"sliding_window", {}},
      {"use_sliding_window", {"false"}},
      {"attention_chunk_size", {}},
      {"attention_bias", {"false"}},
      {"qkv_bias", {"false"}},
      {"mlp_bias", {"false"}},
      {"use_qk_norm", {"false"}},
      {"qk_layernorm", {"false"}},
      {"clip_qkv", {}},
      {"partial_rotary_factor", {"1"}},
      {"no_rope_layers", {"[]"}},
      {"alibi", {"false"}},
      {"attention_multiplier", {}},
      {"embedding_multiplier", {"1"}},
      {"residual_multiplier", {"1"}},
      {"logits_scaling", {"1"}},
      {"attn_logit_softcapping", {}},
      {"final_logit_softcapping", {}},
      {"query_pre_attn_scalar", {}},
      {"scoring_func", {"\"softmax\""}},
      {"norm_topk_prob", {"true"}},
      {"routed_scaling_factor", {"1"}},
      {"n_shared_experts", {"0"}},
      {"mlp_only_layers", {"[]"}},
      {"decoder_sparse_step", {"1"}},
      {"first_k_dense_replace", {"0"}},
  };
  return keys;
}

}  // namespace moe
