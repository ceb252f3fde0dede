// Llama 4, its text model: chunked attention with rope on most layers, full attention without rope on the others, a
// router that scales the experts' inputs, one shared expert. On its own (llama4_text), or as the hub has it, inside the
// configuration of a model that also sees images (llama4).
#include <algorithm>
#include <array>
#include <string>

#include "model/families/decoder_common.h"
#include "model/families/family.h"
#include "model/families/rope_settings.h"

namespace moe {
namespace {

TensorNames Names() {
  TensorNames names;
  names.mlp_gate = "model.layers.{layer}.feed_forward.gate_proj";
  names.mlp_up = "model.layers.{layer}.feed_forward.up_proj";
  names.mlp_down = "model.layers.{layer}.feed_forward.down_proj";
  names.router = "model.layers.{layer}.feed_forward.router";
  names.expert_layout = {.fused = true, .transposed = true, .bare_names = true};
  names.expert_gate_up = "model.layers.{layer}.feed_forward.experts.gate_up_proj";
  names.expert_down = "model.layers.{layer}.feed_forward.experts.down_proj";
  names.shared_gate = "model.layers.{layer}.feed_forward.shared_expert.gate_proj";
  names.shared_up = "model.layers.{layer}.feed_forward.shared_expert.up_proj";
  names.shared_down = "model.layers.{layer}.feed_forward.shared_expert.down_proj";
  return names;
}

MoeSpec ReadExperts(KeyReader& keys) {
  MoeSpec moe{.gate = ReadSoftmaxGate(keys, "num_local_experts"),
              .expert = {.intermediate = keys.Int("intermediate_size", kIntermediateSizes)}};
  moe.gate.scoring = GateSpec::Scoring::kSigmoid;
  moe.gate.select_by_logits = true;  // sigmoid saturates: scores of far logits would tie
  moe.gate.normalization = GateSpec::Normalization::kNone;
  moe.gate.scales_input = true;
  moe.shared = moe.expert;
  return moe;
}

/// Which layers rotate: no_rope_layers, which says 1 of those, or all but every no_rope_layer_interval-th.
std::vector<bool> ReadRopeLayers(KeyReader& keys, std::size_t num_layers) {
  const auto interval = static_cast<std::size_t>(keys.OptionalInt("no_rope_layer_interval", kLayerCounts).value_or(4));
  const auto listed = keys.OptionalInts("no_rope_layers", {.min = 0, .max = 1}).value_or(std::vector<int>{});
  if (!listed.empty() && listed.size() < num_layers) {
    keys.Refuse("no_rope_layers",
                Cat("a list of num_hidden_layers, ", num_layers, ", or more, but of ", listed.size()));
    return std::vector<bool>(num_layers);
  }
  std::vector<bool> rope;
  for (std::size_t l = 0; l < num_layers; ++l)
    rope.push_back(listed.empty() ? (l + 1) % interval != 0 : listed[l] == 1);
  return rope;
}

/// Rope, masks and what goes with them, on every layer.
void ReadPositions(KeyReader& keys, ModelConfig& config) {
  const int chunk =
      keys.Has("attention_chunk_size") ? keys.OptionalInt("attention_chunk_size", kContextLengths).value_or(0) : 8192;
  const bool qk_norm = keys.OptionalBool("use_qk_norm").value_or(true);
  const QueryTemperature temperature = {
      .scale = keys.OptionalReal("attn_scale", {.min = 0, .max = 1e6}).value_or(0.1),
      .floor_scale = keys.OptionalReal("floor_scale", {.min = 1, .max = 1e15}).value_or(8192)};
  // Null is as false as false to the code that reads it.
  const bool tuned = keys.OptionalTruth("attn_temperature_tuning").value_or(!keys.Has("attn_temperature_tuning"));
  const std::vector<bool> rope = ReadRopeLayers(keys, config.layers.size());
  constexpr std::array<std::string_view, 2> kTypes = {"full_attention", "chunked_attention"};
  const auto types = ReadLayerTypes(keys, config.layers.size(), kTypes);
  for (std::size_t l = 0; l < config.layers.size(); ++l) {
    AttentionSpec& attention = config.layers[l].attention;
    attention.rope = rope[l];
    if (types.has_value() ? (*types)[l] == 1 : rope[l]) attention.chunk = chunk;
    if (rope[l] && qk_norm) attention.qk_norm = QkNorm::kUnitAfterRope;
    if (!rope[l] && tuned) attention.temperature = temperature;
  }
}

void ReadSparseLayers(KeyReader& keys, ModelConfig& config) {
  const auto listed = keys.OptionalInts("moe_layers", kLayerIndices);
  if (listed.has_value()) {
    keys.Ignore({"interleave_moe_layer_step"});
    ChooseSparseLayers(config.layers, [&](int l) { return std::ranges::find(*listed, l) != listed->end(); });
  } else {
    const int step = keys.Int("interleave_moe_layer_step", kLayerCounts);
    ChooseSparseLayers(config.layers, [&](int l) { return (l + 1) % step == 0; });
  }
}

void ParseText(KeyReader& keys, ModelConfig& config) {
  ReadDecoderSizes(keys, config);
  LayerSpec layer{.attention = ReadAttention(keys, config, 128)};
  ReadAttentionBias(keys, layer.attention);
  layer.dense_mlp.intermediate = keys.Int("intermediate_size_mlp", kIntermediateSizes);
  layer.moe = ReadExperts(keys);
  config.rope =
      ReadRope(keys, config, layer.attention.head_dim, {.theta = 500000, .pairing = RopePairing::kInterleaved}).rope;
  config.layers.assign(static_cast<std::size_t>(keys.Int("num_hidden_layers", kLayerCounts)), layer);
  ReadPositions(keys, config);
  ReadSparseLayers(keys, config);
  config.tensor_names = Names();
}

/// What the outer form changes: every name begins with language_model.
void ParseOuter(KeyReader& keys, ModelConfig& config) {
  const auto tied = keys.OptionalBool("tie_word_embeddings");
  if (tied.has_value() && *tied != config.tied_embeddings) {
    keys.Refuse("tie_word_embeddings", Cat(config.tied_embeddings ? "true" : "false", ", as text_config says"));
  }
  TensorNames& names = config.tensor_names;
  for (std::string* name :
       {&names.embedding, &names.final_norm, &names.head, &names.attention_norm, &names.query, &names.key, &names.value,
        &names.attention_out, &names.ffn_norm, &names.mlp_gate, &names.mlp_up, &names.mlp_down, &names.router,
        &names.expert_gate_up, &names.expert_down, &names.shared_gate, &names.shared_up, &names.shared_down}) {
    name->insert(0, "language_model.");
  }
  names.ignorable.insert(names.ignorable.end(), {"vision_model.*", "multi_modal_projector.*"});
}

constexpr std::array<std::string_view, 1> kTextHarmless = {"for_llm_compressor"};
constexpr std::array<std::string_view, 7> kOuterHarmless = {"vision_config",     "boi_token_index", "eoi_token_index",
                                                            "image_token_index", "image_token_id",  "boi_token_id",
                                                            "eoi_token_id"};

}  // namespace

const Family& Llama4TextFamily() {
  static const std::vector<MathematicalKey> mathematical = {{"rope_interleave", {"true"}},
                                                            {"scoring_func", {"\"sigmoid\""}}};
  static const Family family = {.model_type = "llama4_text",
                                .architecture = "Llama4ForCausalLM",
                                .parse = ParseText,
                                .harmless = kTextHarmless,
                                .mathematical = mathematical,
                                .encoding = StoredEncoding::kPlain};
  return family;
}

const Family& Llama4Family() {
  static const Family family = {.model_type = "llama4",
                                .architecture = "Llama4ForConditionalGeneration",
                                .parse = ParseOuter,
                                .harmless = kOuterHarmless,
                                .encoding = StoredEncoding::kPlain,
                                .text_key = "text_config",
                                .text_model_type = "llama4_text"};
  return family;
}

}  // namespace moe
