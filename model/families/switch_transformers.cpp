// Switch Transformers: T5's encoder and decoder (relative position biases, unscaled scores, RMS norms, ReLU) whose
// sparse blocks send a token to one expert of limited capacity, times its probability.
#include <array>
#include <cmath>
#include <string>

#include "model/families/decoder_common.h"
#include "model/families/family.h"

namespace moe {
namespace {

// Half of the buckets are for each direction where attention looks both ways, and half of those for single distances.
constexpr IntRange kBucketCounts = {.min = 4, .max = 1 << 12};

/// Names of a stack: "encoder" or "decoder". The FFN is the last of a block's sub-layers.
TensorNames StackNames(const std::string& stack) {
  const bool decoder = stack == "decoder";
  const std::string block = stack + ".block.{layer}.layer.";
  const std::string ffn = block + (decoder ? "2" : "1");
  TensorNames names;
  names.embedding = "shared";
  names.final_norm = stack + ".final_layer_norm";
  names.attention_norm = block + "0.layer_norm";
  names.query = block + "0.SelfAttention.q";
  names.key = block + "0.SelfAttention.k";
  names.value = block + "0.SelfAttention.v";
  names.attention_out = block + "0.SelfAttention.o";
  names.relative_bias = block + "0.SelfAttention.relative_attention_bias";
  if (decoder) {
    names.cross_norm = block + "1.layer_norm";
    names.cross_query = block + "1.EncDecAttention.q";
    names.cross_key = block + "1.EncDecAttention.k";
    names.cross_value = block + "1.EncDecAttention.v";
    names.cross_out = block + "1.EncDecAttention.o";
  }
  names.ffn_norm = ffn + ".layer_norm";
  names.mlp_gate = "";
  names.mlp_up = ffn + ".mlp.wi";
  names.mlp_down = ffn + ".mlp.wo";
  names.router = ffn + ".mlp.router.classifier";
  names.expert_gate = "";
  names.expert_up = ffn + ".mlp.experts.expert_{expert}.wi";
  names.expert_down = ffn + ".mlp.experts.expert_{expert}.wo";
  // Older files repeat the table.
  names.embedding_copies = {"encoder.embed_tokens", "decoder.embed_tokens"};
  return names;
}

AttentionSpec ReadAttentionOfBothStacks(KeyReader& keys) {
  AttentionSpec attention{.num_heads = keys.Int("num_heads", kHeadCounts)};
  attention.num_kv_heads = attention.num_heads;
  attention.head_dim = keys.Int("d_kv", kHeadDims);
  attention.rope = false;
  return attention;
}

RelativeBiasSpec ReadRelativeBias(KeyReader& keys) {
  const RelativeBiasSpec bias = {.buckets = keys.Int("relative_attention_num_buckets", kBucketCounts),
                                 .max_distance = keys.Int("relative_attention_max_distance", kContextLengths)};
  // The buckets of single distances end below it.
  if (bias.max_distance <= bias.buckets / 2) {
    keys.Refuse("relative_attention_max_distance",
                Cat("more than half of relative_attention_num_buckets, ", bias.buckets));
  }
  return bias;
}

MoeSpec ReadExperts(KeyReader& keys, const MlpSpec& expert) {
  const GateSpec gate = {.num_experts = keys.Int("num_experts", kExpertCounts),
                         .experts_per_token = 1,
                         .normalization = GateSpec::Normalization::kNone,
                         .capacity = keys.Int("expert_capacity", kContextLengths)};
  return {.gate = gate, .expert = expert};
}

/// Blocks 1, 1 + step, 1 + 2 step, … are sparse; all of them with step 1.
void ChooseSparseBlocks(KeyReader& keys, const std::string& stack, std::vector<LayerSpec>& layers) {
  const auto num_layers = static_cast<int>(layers.size());
  const std::string key = "num_sparse_" + stack + "_layers";
  const int step = num_layers / keys.Int(key, {.max = num_layers});
  const std::string step_key = stack + "_sparse_step";
  const auto said = keys.OptionalInt(step_key, kLayerIndices);
  if (said.has_value() && *said != step) {
    keys.Refuse(step_key, Cat(step, ", as ", key, " of ", num_layers, " layers gives"));
  }
  ChooseSparseLayers(layers, [&](int l) { return step == 1 || l % step == 1; });
}

void Parse(KeyReader& keys, ModelConfig& config) {
  config.vocab_size = keys.Int("vocab_size", kVocabSizes);
  config.hidden = keys.Int("d_model", kHiddenSizes);
  config.context_length = keys.OptionalInt("n_positions", kContextLengths).value_or(0);
  config.rms_norm_eps = static_cast<float>(keys.Real("layer_norm_epsilon", kEpsilons));
  config.tied_embeddings = keys.OptionalBool("tie_word_embeddings").value_or(true);
  if (config.tied_embeddings) config.logits_scale = static_cast<float>(1 / std::sqrt(config.hidden));
  config.decoder_start_token =
      static_cast<std::uint32_t>(keys.Int("decoder_start_token_id", {.min = 0, .max = config.vocab_size - 1}));

  const MlpSpec mlp = {.intermediate = keys.Int("d_ff", kIntermediateSizes), .activation = Activation::kRelu};
  LayerSpec layer{.attention = ReadAttentionOfBothStacks(keys), .dense_mlp = mlp, .moe = ReadExperts(keys, mlp)};
  layer.attention.causal = false;
  const AttentionSpec cross = layer.attention;
  layer.attention.relative_bias = ReadRelativeBias(keys);
  // Of the layers that a model may have, half for each stack.
  constexpr IntRange kStackLayers = {.max = kLayerCounts.max / 2};
  const int num_layers = keys.Int("num_layers", kStackLayers);
  std::vector<LayerSpec> encoder(static_cast<std::size_t>(num_layers), layer);
  ChooseSparseBlocks(keys, "encoder", encoder);

  layer.attention.causal = true;
  layer.cross_attention = cross;
  const int num_decoder_layers = keys.OptionalInt("num_decoder_layers", kStackLayers).value_or(num_layers);
  std::vector<LayerSpec> decoder(static_cast<std::size_t>(num_decoder_layers), layer);
  ChooseSparseBlocks(keys, "decoder", decoder);

  config.encoder_layers = num_layers;
  config.layers = std::move(encoder);
  config.layers.insert(config.layers.end(), decoder.begin(), decoder.end());
  config.encoder_names = StackNames("encoder");
  config.tensor_names = StackNames("decoder");
}

// There is no padding here.
constexpr std::array<std::string_view, 2> kHarmless = {"add_router_probs", "router_ignore_padding_tokens"};

}  // namespace

const Family& SwitchTransformersFamily() {
  static const std::vector<MathematicalKey> mathematical = {
      {"is_encoder_decoder", {"true"}},  {"is_gated_act", {"false"}},  {"feed_forward_proj", {"\"relu\""}},
      {"dense_act_fn", {"\"relu\""}},    {"hidden_act", {"\"relu\""}}, {"router_type", {"\"tokens_masked\""}},
      {"router_dtype", {"\"float32\""}},
  };
  static const Family family = {.model_type = "switch_transformers",
                                .architecture = "SwitchTransformersForConditionalGeneration",
                                .parse = Parse,
                                .harmless = kHarmless,
                                .mathematical = mathematical,
                                .encoding = StoredEncoding::kPlain};
  return family;
}

}  // namespace moe
