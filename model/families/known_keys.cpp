#include "model/families/known_keys.h"

#include <array>
#include <vector>

namespace moe {

std::span<const std::string_view> HarmlessKeys() {
  static constexpr auto kKeys = std::to_array<std::string_view>(
      {// Where the files come from.
       "_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "_from_model_config", "auto_map",
       "transformers.js_config", "_attn_implementation", "_attn_implementation_internal",
       "_attn_implementation_autoset", "_experts_implementation", "_experts_implementation_internal",
       "_flash_attn_2_enabled",
       // Training only.
       "attention_dropout", "hidden_dropout", "hidden_dropout_prob", "attn_pdrop", "embd_pdrop", "resid_pdrop",
       "dropout_rate", "classifier_dropout", "initializer_range", "initializer_factor", "router_aux_loss_coef",
       "router_z_loss_coef", "router_jitter_noise", "aux_loss_alpha", "seq_aux", "output_router_logits",
       "gradient_checkpointing", "tf_legacy_loss", "problem_type", "finetuning_task", "task_specific_params",
       "label2id", "id2label",
       // How other software runs it or what it returns.
       "use_cache", "cache_implementation", "output_attentions", "output_hidden_states", "output_past", "return_dict",
       "torchscript", "use_bfloat16", "chunk_size_feed_forward", "is_decoder", "tokenizer_class", "prefix", "ep_size",
       // Tokens and defaults of generation; stop tokens are read, sampling comes with each request.
       "bos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id", "forced_bos_token_id",
       "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "max_length", "min_length",
       "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
       "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
       "encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores", "return_dict_in_generate",
       "remove_invalid_values", "exponential_decay_length_penalty"});
  return kKeys;
}

std::span<const MathematicalKey> MathematicalKeys() {
  static const std::vector<MathematicalKey> keys = {
      {"pretraining_tp", {"1"}},  // above 1, published software sums slices of the matrices apart
      // Another model around this one, or another kind of model.
      {"compression_config", {}},
      {"text_config", {}},
      {"vision_config", {}},
      {"is_encoder_decoder", {"false"}},
      {"add_cross_attention", {"false"}},
      {"cross_attention_hidden_size", {}},
      {"pruned_heads", {"{}"}},
      {"num_nextn_predict_layers", {"0"}},
      // Which keys a query sees.
      {"layer_types", {}},
      {"sliding_window", {}},
      {"use_sliding_window", {"false"}},
      {"attention_chunk_size", {}},
      {"dual_chunk_attention_config", {}},
      {"use_bidirectional_attention", {"false"}},
      // Projections.
      {"attention_bias", {"false"}},
      {"attention_out_bias", {"false"}},
      {"qkv_bias", {"false"}},
      {"mlp_bias", {"false"}},
      {"use_bias", {"false"}},
      {"use_qk_norm", {"false"}},
      {"qk_layernorm", {"false"}},
      {"clip_qkv", {}},
      // Positions.
      {"partial_rotary_factor", {"1"}},
      {"rotary_pct", {"1"}},
      {"rope_interleave", {"false"}},
      {"rope_local_base_freq", {}},
      {"no_rope_layers", {"[]"}},
      {"no_rope_layer_interval", {}},
      {"alibi", {"false"}},
      {"position_embedding_type", {"\"rope\""}},
      // Scores and multipliers.
      {"attention_multiplier", {}},
      {"embedding_multiplier", {"1"}},
      {"residual_multiplier", {"1"}},
      {"logits_scaling", {"1"}},
      {"logit_scale", {"1"}},
      {"attn_temperature_tuning", {"false", "0"}},
      {"attn_logit_softcapping", {}},
      {"final_logit_softcapping", {}},
      {"query_pre_attn_scalar", {}},
      // Activations.
      {"hidden_activation", {"\"silu\""}},
      {"swiglu_limit", {}},
      // Routing, and which layers route.
      {"scoring_func", {"\"softmax\""}},
      {"topk_method", {"\"greedy\""}},
      {"n_group", {"1"}},
      {"topk_group", {"1"}},
      {"norm_topk_prob", {"true"}},
      {"routed_scaling_factor", {"1"}},
      {"router_bias", {"false"}},
      {"expert_capacity", {}},
      {"n_shared_experts", {"0"}},
      {"num_shared_experts", {"0"}},
      {"shared_expert_intermediate_size", {"0"}},
      {"shared_intermediate_size", {"0"}},
      {"mlp_only_layers", {"[]"}},
      {"mlp_layer_types", {}},
      {"decoder_sparse_step", {"1"}},
      {"moe_layer_freq", {"1"}},
      {"moe_layers", {}},
      {"interleave_moe_layer_step", {"1"}},
      {"first_k_dense_replace", {"0"}},
  };
  return keys;
}

std::span<const std::string_view> HarmlessForCounting() {
  static constexpr auto kKeys = std::to_array<std::string_view>(
      {"hidden_act", "hidden_activation", "activation_function", "rope_theta", "rope_scaling", "rope_parameters",
       "rope_local_base_freq", "partial_rotary_factor", "original_max_position_embeddings", "sliding_window",
       "sliding_window_pattern", "_sliding_window_pattern", "use_sliding_window", "max_window_layers", "layer_types",
       "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"});
  return kKeys;
}

}  // namespace moe
