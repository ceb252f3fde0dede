#include "bench/plan/weight_storage.h"

#include "core/text.h"
#include "kernels/quantize.h"
#include "model/json.h"
#include "model/weight_bytes.h"

namespace moe {
namespace {

std::uint64_t CeilDiv(std::uint64_t a, std::uint64_t b) { return (a + b - 1) / b; }

constexpr BlockFormat kMxfp4{.bits = 4, .group = 32, .scale_bytes = 1};
constexpr BlockFormat kFp8{.bits = 8, .group = 128, .block_rows = 128, .scale_bytes = 4};

std::string_view StoredName(const ModelConfig& config) {
  switch (config.encoding) {
    case StoredEncoding::kMxfp4: return "mxfp4";
    case StoredEncoding::kFp8Blocks: return "fp8";
    case StoredEncoding::kPlain: break;
  }
  return Name(config.stored_type);
}

// Tables that a step reads rows of, and the head: published fp8 checkpoints leave them alone.
bool IsOuterMatrix(TensorRole role) {
  return role == TensorRole::kEmbedding || role == TensorRole::kHead || role == TensorRole::kPositions;
}

// The blocks that a weight is in; none: it is held as the scheme's types say.
std::optional<BlockFormat> BlocksOf(const PlacedWeight& weight, const WeightScheme& scheme) {
  if (!HeldInWeightType(weight.spec)) return std::nullopt;
  if (scheme.blocks == StoredEncoding::kMxfp4 && weight.routed) return kMxfp4;
  if (scheme.blocks == StoredEncoding::kFp8Blocks && !IsOuterMatrix(weight.spec.role)) return kFp8;
  return std::nullopt;
}

}  // namespace

std::uint64_t BlockFormat::ValueBytes(std::uint64_t outputs, std::uint64_t inputs) const {
  constexpr std::uint64_t kBitsPerByte = 8;
  return outputs * CeilDiv(inputs * static_cast<std::uint64_t>(bits), kBitsPerByte);
}

std::uint64_t BlockFormat::ScaleBytes(std::uint64_t outputs, std::uint64_t inputs) const {
  return CeilDiv(outputs, static_cast<std::uint64_t>(block_rows)) * CeilDiv(inputs, static_cast<std::uint64_t>(group)) *
         static_cast<std::uint64_t>(scale_bytes);
}

Result<WeightScheme> MakeWeightScheme(std::string_view name, const ModelConfig& config,
                                      std::optional<WeightType> attention) {
  WeightScheme scheme{.name = std::string(name), .types = WeightType::kBf16};
  if (name == "stored") {
    name = StoredName(config);
    attention.reset();
  }
  if (const std::optional<WeightType> type = ParseWeightType(name)) {
    scheme.types = {*type, attention};
  } else if (name == "mxfp4") {
    scheme.blocks = StoredEncoding::kMxfp4;
  } else if (name == "fp8") {
    scheme.blocks = StoredEncoding::kFp8Blocks;
  } else {
    return InvalidArgument("weight type \"", Printable(name),
                           "\" is unknown (stored, f32, bf16, f16, int8, int4, mxfp4, fp8)");
  }
  return scheme;
}

std::string Describe(const WeightScheme& scheme) {
  constexpr std::string_view kSmall = "; gates, norms and biases f32";
  if (scheme.blocks == StoredEncoding::kMxfp4)
    return Cat("routed experts in MXFP4 blocks, other matrices bf16", kSmall);
  if (scheme.blocks == StoredEncoding::kFp8Blocks)
    return Cat("matrices in FP8 blocks, embedding and head bf16", kSmall);
  const WeightTypes& types = scheme.types;
  const WeightType embedding = HeldType({.role = TensorRole::kEmbedding, .shape = {1, 1}}, types);
  return Cat("experts and other MLPs ", Name(types.mlps), ", attention and head ", Name(types.attention),
             ", embedding ", Name(embedding), kSmall);
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
  if (spec.shape.size() != 2) return {.bytes = HeldBytes(spec, scheme.types)};
  const auto outputs = static_cast<std::uint64_t>(spec.shape[0]);
  const auto inputs = static_cast<std::uint64_t>(spec.shape[1]);
  if (const std::optional<BlockFormat> blocks = BlocksOf(weight, scheme)) {
    const std::uint64_t scales = blocks->ScaleBytes(outputs, inputs);
    return {.bytes = blocks->ValueBytes(outputs, inputs) + scales, .scales = scales};
  }
  return {.bytes = HeldBytes(spec, scheme.types), .scales = ScaleBytes(outputs, inputs, HeldType(spec, scheme.types))};
}

std::uint64_t TiedHeadBytes(const ModelConfig& config, const WeightScheme& scheme) {
  return config.tied_embeddings ? HeadBytes(config, scheme.types) : 0;
}

WeightBytes CountWeightBytes(const ModelConfig& config, const WeightScheme& scheme) {
  WeightBytes count{.tied_head_copy = TiedHeadBytes(config, scheme)};
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
  });
  return count;
}

}  // namespace moe
