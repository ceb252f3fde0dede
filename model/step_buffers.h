// How large the buffers of a step are, for who allocates them and for who plans them.
#pragma once

#include <algorithm>
#include <cstddef>

#include "model/config.h"

namespace moe {

/// Rows whose logits an engine holds at a time: enough to read the head's weights seldom, few enough that a vocabulary
/// of 200,000 takes 50 MB.
inline constexpr std::size_t kLogitRows = 64;

/// Of cross attention: its queries; keys and values, which it has of the encoder's rows.
inline int CrossWidth(const AttentionSpec& cross) { return cross.num_heads * cross.head_dim; }
inline int CrossKeyValueWidth(const AttentionSpec& cross) { return 2 * cross.num_kv_heads * cross.head_dim; }

/// The widest of what a layer projects at a time: its own q | k | v, cross attention's q, or that one's k | v.
inline int ProjectedWidth(const LayerSpec& layer) {
  const int own = layer.attention.projected_width();
  const auto& cross = layer.cross_attention;
  return cross ? std::max({own, CrossWidth(*cross), CrossKeyValueWidth(*cross)}) : own;
}

/// The wider of its attentions' heads.
inline int HeadsWidth(const LayerSpec& layer) {
  const int own = layer.attention.heads_width();
  return layer.cross_attention ? std::max(own, CrossWidth(*layer.cross_attention)) : own;
}

/// The MLP that the router computes itself: a dense layer's, or the shared experts; null: none.
inline const MlpSpec* OwnMlp(const LayerSpec& layer) {
  if (!layer.moe) return &layer.dense_mlp;
  return layer.moe->shared ? &*layer.moe->shared : nullptr;
}

/// Of a routed expert; 0 in a dense layer.
inline int ExpertIntermediate(const LayerSpec& layer) { return layer.moe ? layer.moe->expert.intermediate : 0; }

/// The largest `width` of a layer, as one of the above gives it; 0 without layers.
template <typename Width>
std::size_t Widest(const ModelConfig& config, const Width& width) {
  int widest = 0;
  for (const LayerSpec& layer : config.layers) widest = std::max(widest, width(layer));
  return static_cast<std::size_t>(widest);
}

}  // namespace moe
