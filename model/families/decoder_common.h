// What the families of plain decoders share: sizes, attention, rotary embedding, the gated MLP, and the keys that no
// family needs.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/families/key_reader.h"

namespace moe {

// The largest sizes that a configuration may ask for: several times the largest published model's, and small enough
// that no product of them overflows 64 bits (2^17 * 2^19 * 3 * 2^13 * 2^11 parameters in experts).
inline constexpr IntRange kVocabSizes = {.max = 1 << 24};
inline constexpr IntRange kHiddenSizes = {.max = 1 << 17};
inline constexpr IntRange kIntermediateSizes = {.max = 1 << 19};
inline constexpr IntRange kLayerCounts = {.max = 1 << 11};
inline constexpr IntRange kHeadCounts = {.max = 1 << 12};
inline constexpr IntRange kHeadDims = {.max = 1 << 12};
inline constexpr IntRange kExpertCounts = {.max = 1 << 13};
inline constexpr IntRange kContextLengths = {.max = 1 << 30};

/// vocab_size, hidden_size, max_position_embeddings, rms_norm_eps, tie_word_embeddings, hidden_act (silu only).
void ReadDecoderSizes(KeyReader& keys, ModelConfig& config);

/// Heads, their width and scale; no window, no biases. Needs config.hidden.
AttentionSpec ReadAttention(KeyReader& keys, const ModelConfig& config);

/// sliding_window, 0 when it is absent or null. use_sliding_window may only agree with it.
int ReadSlidingWindow(KeyReader& keys);

/// rope_theta and rope_scaling, or rope_parameters with both inside (transformers 5); the whole head is rotated.
/// `default_theta` when there is no rope_theta. Needs config.context_length; adds to config.warnings.
RopeSpec ReadRope(KeyReader& keys, ModelConfig& config, int head_dim, double default_theta);

/// num_hidden_layers copies of `layer`.
std::vector<LayerSpec> ReadLayers(KeyReader& keys, const LayerSpec& layer);

/// num_local_experts or the like under `experts_key`, and num_experts_per_tok.
GateSpec ReadSoftmaxGate(KeyReader& keys, std::string_view experts_key);

/// Keys that change nothing in inference, of any family.
std::span<const std::string_view> HarmlessKeys();

/// Keys that plain decoders do not compute (Llama, Mistral, Mixtral): refused unless neutral.
std::span<const MathematicalKey> PlainDecoderMathematicalKeys();

}  // namespace moe
