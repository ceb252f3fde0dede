#include "bench/plan/kv_storage.h"

#include <algorithm>
#include <array>

namespace moe {
namespace {

std::uint64_t ElementsOf(const AttentionSpec& attention) {
  const auto u64 = [](int value) { return static_cast<std::uint64_t>(value); };
  if (attention.latent) return u64(attention.latent->kv_rank) + u64(attention.latent->rope_dim);
  return 2 * u64(attention.num_kv_heads) * u64(attention.head_dim);
}

std::uint64_t CeilTo(std::uint64_t value, std::uint64_t step) { return (value + step - 1) / step * step; }

constexpr std::size_t kNumKinds = 4;

}  // namespace

std::string_view Name(KvKind kind) {
  constexpr std::array<std::string_view, kNumKinds> kNames = {"full", "window", "cross", "encoder"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::vector<KvLayer> KvLayers(const ModelConfig& config) {
  std::vector<KvLayer> layers;
  for (int i = 0; i < config.num_layers(); ++i) {
    const LayerSpec& spec = config.layers[static_cast<std::size_t>(i)];
    const int limit = spec.attention.chunk > 0 ? spec.attention.chunk : spec.attention.window;
    KvLayer layer{.layer = i, .elements = ElementsOf(spec.attention), .limit = static_cast<std::uint64_t>(limit)};
    layer.kind = i < config.encoder_layers ? KvKind::kEncoder : limit > 0 ? KvKind::kWindow : KvKind::kFull;
    layers.push_back(layer);
    if (spec.cross_attention)
      layers.push_back({.layer = i, .kind = KvKind::kCross, .elements = ElementsOf(*spec.cross_attention)});
  }
  return layers;
}

std::uint64_t KvElementsPerLateToken(const ModelConfig& config) {
  std::uint64_t elements = 0;
  for (const KvLayer& layer : KvLayers(config)) elements += layer.kind == KvKind::kFull ? layer.elements : 0;
  return elements;
}

std::uint64_t KvElementsPerToken(const ModelConfig& config) {
  std::uint64_t elements = KvElementsPerLateToken(config);
  for (const KvLayer& layer : KvLayers(config)) elements += layer.kind == KvKind::kWindow ? layer.elements : 0;
  return elements;
}

std::uint64_t HeldPositions(const KvLayer& layer, const KvShape& shape) {
  const auto whole_pages = [&](std::uint64_t positions) { return CeilTo(positions, shape.page_tokens); };
  switch (layer.kind) {
    case KvKind::kFull: return shape.batch * whole_pages(shape.context);
    case KvKind::kCross: return shape.batch * whole_pages(shape.encoder_tokens);
    // Every sequence of a step may leave a page partly empty.
    case KvKind::kEncoder: return whole_pages(shape.step_tokens) + shape.batch * shape.page_tokens;
    case KvKind::kWindow: break;
  }
  const std::uint64_t live = whole_pages(layer.limit - 1 + shape.prefill_chunk) + shape.page_tokens;
  return shape.batch * std::min(whole_pages(shape.context), live);
}

Result<KvBytes> CountKvBytes(const ModelConfig& config, const KvShape& shape) {
  std::array<KvUse, kNumKinds> uses{};
  // Bytes that leave 63 bits are noticed; positions alone stay below 2^61 (kMostContext, kMostBatch).
  bool overflow = false;
  KvBytes bytes;
  const auto add = [&](const KvLayer& layer) {
    KvUse& use = uses[static_cast<std::size_t>(layer.kind)];
    const std::uint64_t positions = HeldPositions(layer, shape);
    std::uint64_t product = 0;
    overflow |= __builtin_mul_overflow(positions, layer.elements * shape.element_bytes, &product);
    overflow |= __builtin_add_overflow(bytes.total, product, &bytes.total) || bytes.total >> 63 != 0;
    use.elements += layer.elements;
    use.positions = std::max(use.positions, positions);
    use.bytes += product;
  };
  KvLayer largest_encoder{.kind = KvKind::kEncoder};
  for (const KvLayer& layer : KvLayers(config)) {
    KvUse& use = uses[static_cast<std::size_t>(layer.kind)];
    use.kind = layer.kind;
    ++use.layers;
    if (layer.kind != KvKind::kEncoder) {
      add(layer);
    } else if (layer.elements > largest_encoder.elements) {
      largest_encoder = layer;
    }
  }
  if (largest_encoder.elements > 0) add(largest_encoder);
  if (overflow)
    return InvalidArgument("the KV cache of ", shape.batch, " sequences of ", shape.context,
                           " positions takes more bytes than 63 bits can count");
  for (const KvUse& use : uses)
    if (use.layers > 0) bytes.uses.push_back(use);
  return bytes;
}

}  // namespace moe
