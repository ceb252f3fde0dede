#include "bench/plan/activations.h"

#include <algorithm>
#include <limits>

namespace moe {
namespace {

constexpr std::uint64_t kF32Bytes = 4;
constexpr std::uint64_t kLogitRows = 64;  // as router/engine.cpp holds at a time

std::uint64_t U64(int value) { return static_cast<std::uint64_t>(value); }

// The largest `width` of a layer.
template <typename Width>
std::uint64_t Widest(const ModelConfig& config, Width&& width) {
  std::uint64_t widest = 0;
  for (const LayerSpec& layer : config.layers) widest = std::max(widest, width(layer));
  return widest;
}

// Of cross attention, queries or keys and values, whichever are wider.
std::uint64_t ProjectedWidth(const LayerSpec& layer) {
  int width = layer.attention.projected_width();
  if (const auto& cross = layer.cross_attention)
    width = std::max({width, cross->num_heads * cross->head_dim, 2 * cross->num_kv_heads * cross->head_dim});
  return U64(width);
}

std::uint64_t HeadsWidth(const LayerSpec& layer) {
  const int cross = layer.cross_attention ? layer.cross_attention->heads_width() : 0;
  return U64(std::max(layer.attention.heads_width(), cross));
}

// Before they absorb the up-projection of the latent.
std::uint64_t LatentQueryWidth(const LayerSpec& layer) {
  return layer.attention.latent ? U64(layer.attention.num_heads) * U64(layer.attention.head_dim) : 0;
}

// Of what a router computes itself: a dense layer's MLP, or the shared experts.
std::uint64_t RouterMlpWidth(const LayerSpec& layer) {
  if (!layer.moe) return U64(layer.dense_mlp.inner_width());
  return layer.moe->shared ? U64(layer.moe->shared->inner_width()) : 0;
}

std::uint64_t ExpertWidth(const LayerSpec& layer) { return layer.moe ? U64(layer.moe->expert.inner_width()) : 0; }

std::uint64_t PairsOf(const ModelConfig& config, const StepShape& shape) {
  return shape.max_step_tokens * U64(config.experts_per_token());
}

}  // namespace

std::vector<Buffer> RouterBuffers(const ModelConfig& config, const StepShape& shape) {
  const std::uint64_t rows = shape.max_step_tokens;
  const std::uint64_t row = rows * kF32Bytes;
  const std::uint64_t logit_rows = std::min(kLogitRows, rows);
  const std::uint64_t hidden = U64(config.hidden);
  const bool rotates =
      std::any_of(config.layers.begin(), config.layers.end(), [](const LayerSpec& l) { return l.attention.rope; });
  return {{"residual stream, its norm, a block's output", 3 * row * hidden},
          {"queries, keys and values", row * Widest(config, ProjectedWidth)},
          {"heads", row * Widest(config, HeadsWidth)},
          {"queries of latent attention", row * Widest(config, LatentQueryWidth)},
          {"dense and shared MLPs", row * Widest(config, RouterMlpWidth)},
          {"router logits", row * U64(config.num_experts())},
          {"rotary angles", rotates ? row * U64(config.rope.width) : 0},
          {"logits", logit_rows * kF32Bytes * (hidden + U64(config.vocab_size))}};
}

std::vector<Buffer> WorkerBuffers(const ModelConfig& config, const StepShape& shape) {
  const std::uint64_t pair = PairsOf(config, shape) * kF32Bytes;
  return {{"rows in and out, by expert", 2 * pair * U64(config.hidden)},
          {"inside of the experts", pair * Widest(config, ExpertWidth)}};
}

Result<std::uint64_t> ExchangeBytes(const ModelConfig& config, const StepShape& shape) {
  const std::uint64_t pairs = PairsOf(config, shape);
  if (pairs == 0) return 0;
  constexpr std::uint64_t kMostPairs = std::numeric_limits<std::uint32_t>::max();
  if (pairs > kMostPairs)
    return InvalidArgument("max_step_tokens ", shape.max_step_tokens, " times ", config.experts_per_token(),
                           " experts are ", pairs, " rows, a message counts up to ", kMostPairs);
  const DispatchShape largest{.rows = static_cast<std::uint32_t>(shape.max_step_tokens),
                              .pairs = static_cast<std::uint32_t>(pairs),
                              .hidden = static_cast<std::uint32_t>(config.hidden),
                              .type = shape.exchange_type};
  return std::max(DispatchBytes(largest), kMaxControlBytes) + std::max(DispatchReplyBytes(largest), kMaxControlBytes);
}

std::uint64_t SumOf(const std::vector<Buffer>& buffers) {
  std::uint64_t sum = 0;
  for (const Buffer& buffer : buffers) sum += buffer.bytes;
  return sum;
}

}  // namespace moe
