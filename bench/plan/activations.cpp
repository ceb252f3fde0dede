#include "bench/plan/activations.h"

#include <algorithm>
#include <limits>

#include "model/step_buffers.h"

namespace moe {
namespace {

constexpr std::uint64_t kF32Bytes = 4;

std::uint64_t U64(int value) { return static_cast<std::uint64_t>(value); }

// Before they absorb the up-projection of the latent.
int LatentQueryWidth(const LayerSpec& layer) {
  return layer.attention.latent ? layer.attention.num_heads * layer.attention.head_dim : 0;
}

int OwnMlpWidth(const LayerSpec& layer) {
  const MlpSpec* mlp = OwnMlp(layer);
  return mlp == nullptr ? 0 : mlp->inner_width();
}

int ExpertWidth(const LayerSpec& layer) { return layer.moe ? layer.moe->expert.inner_width() : 0; }

std::uint64_t PairsOf(const ModelConfig& config, const StepShape& shape) {
  return shape.max_step_tokens * U64(config.experts_per_token());
}

}  // namespace

std::vector<Buffer> RouterBuffers(const ModelConfig& config, const StepShape& shape) {
  const std::uint64_t rows = shape.max_step_tokens;
  const std::uint64_t row = rows * kF32Bytes;
  const std::uint64_t logit_rows = std::min<std::uint64_t>(kLogitRows, rows);
  const std::uint64_t hidden = U64(config.hidden);
  const bool rotates =
      std::any_of(config.layers.begin(), config.layers.end(), [](const LayerSpec& l) { return l.attention.rope; });
  return {{"residual stream, its norm, a block's output", 3 * row * hidden},
          {"queries, keys and values", row * Widest(config, ProjectedWidth)},
          {"heads", row * Widest(config, HeadsWidth)},
          {"queries of latent attention", row * Widest(config, LatentQueryWidth)},
          {"dense and shared MLPs", row * Widest(config, OwnMlpWidth)},
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
