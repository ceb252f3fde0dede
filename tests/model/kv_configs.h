// Models of which only the attention counts, for tests of the KV cache.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>

#include "model/config.h"
#include "model/kv_cache.h"

namespace moe {

/// Two layers of different shapes, as some families have them.
inline ModelConfig Plain() {
  ModelConfig config;
  config.layers.push_back({.attention = {.num_heads = 4, .num_kv_heads = 2, .head_dim = 24}});
  config.layers.push_back({.attention = {.num_heads = 6, .num_kv_heads = 3, .head_dim = 10}});
  return config;
}

inline AttentionSpec Heads(int window, int chunk) {
  return {.num_heads = 2, .num_kv_heads = 1, .head_dim = 4, .window = window, .chunk = chunk};
}

/// Every layer sees a window (Mistral).
inline ModelConfig Windowed(int window) {
  ModelConfig config;
  for (int i = 0; i < 3; ++i) config.layers.push_back({.attention = Heads(window, 0)});
  return config;
}

/// Limited layers first, and as often as the others: a window (gpt-oss) or a chunk (Llama 4).
inline ModelConfig Alternating(int window, int chunk) {
  ModelConfig config;
  for (int i = 0; i < 2; ++i) {
    config.layers.push_back({.attention = Heads(window, chunk)});
    config.layers.push_back({.attention = Heads(0, 0)});
  }
  return config;
}

inline ModelConfig Latent() {
  ModelConfig config;
  const LatentSpec latent{.kv_rank = 12, .nope_dim = 6, .rope_dim = 4, .value_dim = 5};
  for (int i = 0; i < 2; ++i) {
    config.layers.push_back({.attention = {.num_heads = 8, .num_kv_heads = 1, .head_dim = 10, .latent = latent}});
  }
  return config;
}

/// Two encoder layers of different width, three decoder layers (Switch).
inline ModelConfig EncoderDecoder() {
  ModelConfig config;
  config.encoder_layers = 2;
  config.layers.push_back({.attention = {.num_heads = 2, .num_kv_heads = 2, .head_dim = 4, .causal = false}});
  config.layers.push_back({.attention = {.num_heads = 3, .num_kv_heads = 3, .head_dim = 4, .causal = false}});
  const AttentionSpec decoder{.num_heads = 2, .num_kv_heads = 2, .head_dim = 4};
  for (int i = 0; i < 3; ++i) config.layers.push_back({.attention = decoder, .cross_attention = decoder});
  return config;
}

/// Pages that a sequence holds of a group.
inline std::size_t Held(const KvPages::Group& group) { return group.pages.size() - group.first; }

/// A sequence that has reserved what it needs; the test fails when it could not.
inline KvPages Reserved(const ModelConfig& config, KvCache& cache, const KvDemand& demand) {
  KvPages pages = KvCache::MakePages(config, demand);
  EXPECT_TRUE(cache.Reserve(demand, pages));
  return pages;
}

}  // namespace moe
