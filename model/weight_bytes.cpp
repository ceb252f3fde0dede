#include "model/weight_bytes.h"

#include <vector>

#include "kernels/quantize.h"

namespace moe {
namespace {

std::uint64_t BytesIn(const TensorSpec& spec, WeightType type) {
  if (spec.shape.size() != 2) return spec.elements() * BytesPerWeight(type);
  return MatrixBytes(static_cast<std::size_t>(spec.shape[0]), static_cast<std::size_t>(spec.shape[1]), type);
}

std::uint64_t Bytes(const std::vector<TensorSpec>& specs, const WeightTypes& types) {
  std::uint64_t bytes = 0;
  for (const TensorSpec& spec : specs) bytes += HeldBytes(spec, types);
  return bytes;
}

}  // namespace

std::uint64_t HeldBytes(const TensorSpec& spec, const WeightTypes& types) {
  return BytesIn(spec, HeldType(spec, types));
}

std::uint64_t DenseBytes(const ModelConfig& config, const WeightTypes& types) {
  std::uint64_t bytes = Bytes(OuterTensors(config), types);
  for (int layer = 0; layer < config.num_layers(); ++layer) bytes += Bytes(LayerTensors(config, layer), types);
  return bytes + (config.tied_embeddings ? HeadBytes(config, types) : 0);
}

std::uint64_t HeadBytes(const ModelConfig& config, const WeightTypes& types) {
  const TensorRole role = config.tied_embeddings ? TensorRole::kEmbedding : TensorRole::kHead;
  std::uint64_t bytes = 0;
  for (const TensorSpec& spec : OuterTensors(config))
    if (spec.role == role) bytes += BytesIn(spec, types.attention);
  return bytes;
}

std::uint64_t ExpertBytes(const ModelConfig& config, int layer, const WeightTypes& types) {
  return Bytes(ExpertTensors(config, layer, 0), types);
}

}  // namespace moe
