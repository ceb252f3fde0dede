// What the families of plain decoders share: sizes, attention, windows, biases, and layers.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/families/key_reader.h"

namespace moe {

// The largest sizes that a configuration may ask for: several times the largest published model's, and small enough
// that no product of them overflows 64 bits, nor the sum of all weights' bytes: 2^17 * 2^19 * 3 * 2^13 * 2^11
// parameters in experts are 0.75 * 2^64 bytes of fp32, and what is not in experts has less than 2^58.
inline constexpr IntRange kVocabSizes = {.max = 1 << 24};
inline constexpr IntRange kHiddenSizes = {.max = 1 << 17};
inline constexpr IntRange kIntermediateSizes = {.max = 1 << 19};
inline constexpr IntRange kLayerCounts = {.max = 1 << 11};  // of all stacks together
inline constexpr IntRange kLayerIndices = {.min = 0, .max = kLayerCounts.max};
inline constexpr IntRange kHeadCounts = {.max = 1 << 12};
inline constexpr IntRange kHeadDims = {.max = 1 << 12};
inline constexpr IntRange kRanks = {.max = 1 << 16};
inline constexpr IntRange kExpertCounts = {.max = 1 << 13};
inline constexpr IntRange kContextLengths = {.max = 1 << 30};
// Learnt positions are rows of a table, as the vocabulary is.
inline constexpr IntRange kPositionCounts = {.max = 1 << 24};
inline constexpr RealRange kEpsilons = {.min = 1e-12, .max = 1};
// Multipliers, clamps and limits.
inline constexpr RealRange kPositiveReals = {.min = 1e-6, .max = 1e6};

/// vocab_size, hidden_size, max_position_embeddings, rms_norm_eps, tie_word_embeddings.
void ReadSizes(KeyReader& keys, ModelConfig& config, bool tied_by_default = false);
/// The same, and hidden_act, which must be silu.
void ReadDecoderSizes(KeyReader& keys, ModelConfig& config);

/// Heads, their width and scale; no window, no biases. Needs config.hidden. `absent_head_dim` is the width when there
/// is no head_dim; without one, and when head_dim is null, hidden_size / num_attention_heads.
AttentionSpec ReadAttention(KeyReader& keys, const ModelConfig& config,
                            std::optional<int> absent_head_dim = std::nullopt);

/// attention_bias: of q, k, v and o, as in Llama.
void ReadAttentionBias(KeyReader& keys, AttentionSpec& attention, bool by_default = false);

/// sliding_window, 0 when it is absent or null. use_sliding_window may only agree with it.
int ReadSlidingWindow(KeyReader& keys);

/// num_hidden_layers copies of `layer`. layer_types may only agree with its window.
std::vector<LayerSpec> ReadLayers(KeyReader& keys, const LayerSpec& layer);

/// layer_types as indices of `types`, one for each of `num_layers`.
std::optional<std::vector<std::size_t>> ReadLayerTypes(KeyReader& keys, std::size_t num_layers,
                                                       std::span<const std::string_view> types);

/// Of layers that have both kinds of FFN, the one that layer l is to have: `is_sparse(l)` says which.
template <typename Predicate>
void ChooseSparseLayers(std::vector<LayerSpec>& layers, Predicate is_sparse) {
  for (int l = 0; l < static_cast<int>(layers.size()); ++l) {
    LayerSpec& layer = layers[static_cast<std::size_t>(l)];
    if (layer.moe.has_value() && is_sparse(l)) {
      layer.dense_mlp = {};
    } else {
      layer.moe.reset();
    }
  }
}

/// Experts under `experts_key` ("num_local_experts" or the like) and num_experts_per_tok: softmax over all experts,
/// the best k, renormalised.
GateSpec ReadSoftmaxGate(KeyReader& keys, std::string_view experts_key);

/// k under `key`; at most gate.num_experts, which `experts_key` gave.
void SetExpertsPerToken(KeyReader& keys, GateSpec& gate, int k, std::string_view key, std::string_view experts_key);

}  // namespace moe
