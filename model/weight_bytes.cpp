#include "model/weight_bytes.h"

#include <vector>

namespace moe {
namespace {

std::uint64_t Bytes(const std::vector<TensorSpec>& specs, WeightType type) {
  std::uint64_t bytes = 0;
  for (const TensorSpec& spec : specs) bytes += HeldBytes(spec, type);
  return bytes;
}

}  // namespace

std::uint64_t HeldBytes(const TensorSpec& spec, WeightType type) {
  return spec.elements() * (HeldInWeightType(spec) ? BytesPerWeight(type) : sizeof(float));
}

std::uint64_t DenseBytes(const ModelConfig& config, WeightType type) {
  std::uint64_t bytes = Bytes(OuterTensors(config), type);
  for (int layer = 0; layer < config.num_layers(); ++layer) bytes += Bytes(LayerTensors(config, layer), type);
  const auto table = static_cast<std::uint64_t>(config.vocab_size) * static_cast<std::uint64_t>(config.hidden);
  return bytes + (config.tied_embeddings ? table * BytesPerWeight(type) : 0);
}

std::uint64_t ExpertBytes(const ModelConfig& config, int layer, WeightType type) {
  return Bytes(ExpertTensors(config, layer, 0), type);
}

}  // namespace moe
