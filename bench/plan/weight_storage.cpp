#include "bench/plan/weight_storage.h"

#include "core/check.h"
#include "model/json.h"

namespace moe {
namespace {

std::uint64_t CeilDiv(std::uint64_t a, std::uint64_t b) { return (a + b - 1) / b; }

constexpr MatrixFormat kF32{.bits = 32};
constexpr MatrixFormat kHalf{.bits = 16};
constexpr MatrixFormat kMxfp4{.bits = 4, .group = 32, .scale_bytes = 1};
constexpr MatrixFormat kFp8{.bits = 8, .group = 128, .block_rows = 128, .scale_bytes = 4};

std::string_view StoredName(const ModelConfig& config) {
  switch (config.encoding) {
    case StoredEncoding::kMxfp4: return "mxfp4";
    case StoredEncoding::kFp8Blocks: return "fp8";
    case StoredEncoding::kPlain: break;
  }
  return Name(config.stored_type);
}

// Tables that a step reads rows of, or that a published fp8 checkpoint leaves alone.
bool IsOuterMatrix(TensorRole role) {
  return role == TensorRole::kEmbedding || role == TensorRole::kHead || role == TensorRole::kPositions;
}

}  // namespace

std::uint64_t MatrixFormat::ValueBytes(std::uint64_t outputs, std::uint64_t inputs) const {
  constexpr std::uint64_t kBitsPerByte = 8;
  return outputs * CeilDiv(inputs * static_cast<std::uint64_t>(bits), kBitsPerByte);
}

std::uint64_t MatrixFormat::ScaleBytes(std::uint64_t outputs, std::uint64_t inputs) const {
  const std::uint64_t along_row = group == 0 ? 1 : CeilDiv(inputs, static_cast<std::uint64_t>(group));
  return CeilDiv(outputs, static_cast<std::uint64_t>(block_rows)) * along_row * static_cast<std::uint64_t>(scale_bytes);
}

Result<WeightScheme> MakeWeightScheme(std::string_view name, const ModelConfig& config,
                                      const QuantizationOptions& options) {
  WeightScheme scheme{.name = std::string(name)};
  if (name == "stored") name = StoredName(config);
  if (name == "f32") {
    scheme.experts = scheme.matrices = kF32;
  } else if (name == "bf16" || name == "f16") {
    scheme.experts = scheme.matrices = kHalf;
  } else if (name == "int8") {
    scheme.experts = {.bits = 8, .group = options.int8_group, .scale_bytes = options.int8_scale_bytes};
    scheme.matrices = scheme.experts;
  } else if (name == "int4") {
    scheme.experts = {.bits = 4, .group = options.int4_group, .scale_bytes = options.int4_scale_bytes};
    scheme.matrices = scheme.experts;
  } else if (name == "mxfp4") {
    scheme.experts = kMxfp4;
    scheme.matrices = kHalf;
  } else if (name == "fp8") {
    scheme.experts = scheme.matrices = kFp8;
  } else {
    return InvalidArgument("weight type \"", Printable(name),
                           "\" is unknown (stored, f32, bf16, f16, int8, int4, mxfp4, fp8)");
  }
  return scheme;
}

void ForEachWeight(const ModelConfig& config, const std::function<void(const PlacedWeight&)>& visit) {
  for (const TensorSpec& spec : OuterTensors(config)) visit({.spec = spec});
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    for (const TensorSpec& spec : LayerTensors(config, layer)) visit({.spec = spec, .layer = layer});
    const std::optional<MoeSpec>& moe = config.layers[static_cast<std::size_t>(layer)].moe;
    if (!moe) continue;
    const auto experts = static_cast<std::uint64_t>(moe->gate.num_experts);
    for (const TensorSpec& spec : ExpertTensors(config, layer, 0))
      visit({.spec = spec, .layer = layer, .routed = true, .copies = experts});
  }
}

StoredBytes BytesOf(const PlacedWeight& weight, const WeightScheme& scheme) {
  const TensorSpec& spec = weight.spec;
  constexpr std::uint64_t kF32Bytes = 4;
  if (!HeldInWeightType(spec)) return {.bytes = spec.elements() * kF32Bytes};
  MatrixFormat format = weight.routed ? scheme.experts : scheme.matrices;
  if (format.block_rows > 1 && IsOuterMatrix(spec.role)) format = kHalf;
  const auto outputs = static_cast<std::uint64_t>(spec.shape[0]);
  const auto inputs = static_cast<std::uint64_t>(spec.shape[1]);
  const std::uint64_t scales = format.ScaleBytes(outputs, inputs);
  return {.bytes = format.ValueBytes(outputs, inputs) + scales, .scales = scales};
}

WeightBytes CountWeightBytes(const ModelConfig& config, const WeightScheme& scheme) {
  WeightBytes count;
  count.expert_each.resize(config.layers.size());
  ForEachWeight(config, [&](const PlacedWeight& weight) {
    const StoredBytes one = BytesOf(weight, scheme);
    const std::uint64_t bytes = one.bytes * weight.copies;
    count.total += bytes;
    count.scales += one.scales * weight.copies;
    count.by_part[static_cast<std::size_t>(weight.spec.part)] += bytes;
    if (weight.routed) {
      count.expert_each[static_cast<std::size_t>(weight.layer)] += one.bytes;
    } else {
      count.dense += bytes;
    }
    if (config.tied_embeddings && weight.spec.role == TensorRole::kEmbedding) count.tied_head_copy += bytes;
  });
  return count;
}

}  // namespace moe
