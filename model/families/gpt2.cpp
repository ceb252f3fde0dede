// GPT-2, counted only: learnt positions, biases everywhere, norms with biases, tied embeddings.
#include <array>
#include <vector>

#include "model/families/decoder_common.h"
#include "model/families/family.h"
#include "model/families/known_keys.h"

namespace moe {
namespace {

TensorNames Names() {
  TensorNames names;
  names.embedding = "transformer.wte";
  names.positions = "transformer.wpe";
  names.final_norm = "transformer.ln_f";
  names.attention_norm = "transformer.h.{layer}.ln_1";
  names.ffn_norm = "transformer.h.{layer}.ln_2";
  names.attention_out = "transformer.h.{layer}.attn.c_proj";
  names.mlp_gate = "";
  names.mlp_up = "transformer.h.{layer}.mlp.c_fc";
  names.mlp_down = "transformer.h.{layer}.mlp.c_proj";
  // One tensor in the files, c_attn; the count is the same.
  names.query = "transformer.h.{layer}.attn.c_attn.q";
  names.key = "transformer.h.{layer}.attn.c_attn.k";
  names.value = "transformer.h.{layer}.attn.c_attn.v";
  return names;
}

void Parse(KeyReader& keys, ModelConfig& config) {
  config.vocab_size = keys.Int("vocab_size", kVocabSizes);
  config.hidden = keys.Int("n_embd", kHiddenSizes);
  config.learned_positions = keys.Int("n_positions", kPositionCounts);
  config.context_length = config.learned_positions;
  config.rms_norm_eps = static_cast<float>(keys.Real("layer_norm_epsilon", kEpsilons));
  config.norm_bias = true;
  config.tied_embeddings = keys.OptionalBool("tie_word_embeddings").value_or(true);

  LayerSpec layer{.attention = {.num_heads = keys.Int("n_head", kHeadCounts)}};
  AttentionSpec& attention = layer.attention;
  attention.num_kv_heads = attention.num_heads;
  attention.head_dim = config.hidden / attention.num_heads;
  if (config.hidden % attention.num_heads != 0) keys.Refuse("n_head", Cat("a divisor of n_embd, ", config.hidden));
  attention.rope = false;
  attention.qkv_bias = true;
  attention.out_bias = true;
  layer.dense_mlp = {.intermediate = keys.OptionalInt("n_inner", kIntermediateSizes).value_or(4 * config.hidden),
                     .bias = true,
                     .activation = Activation::kGelu};
  config.layers.assign(static_cast<std::size_t>(keys.Int("n_layer", kLayerCounts)), layer);
  config.tensor_names = Names();
}

std::vector<std::string_view> Harmless() {
  std::vector<std::string_view> keys(HarmlessForCounting().begin(), HarmlessForCounting().end());
  keys.insert(keys.end(), {"n_ctx", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn",
                           "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
                           "summary_first_dropout"});
  return keys;
}

}  // namespace

const Family& Gpt2Family() {
  static const std::vector<std::string_view> harmless = Harmless();
  static const Family family = {.model_type = "gpt2",
                                .architecture = "GPT2LMHeadModel",
                                .parse = Parse,
                                .harmless = harmless,
                                .encoding = StoredEncoding::kPlain,
                                .servable = false};
  return family;
}

}  // namespace moe
