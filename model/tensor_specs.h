// Which tensors a model has, with their names and shapes: the one list from which tensors are checked, loaded and
// counted.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace moe {

/// The parts that parameters are counted by.
enum class ModelPart : std::uint8_t {
  kEmbedding,
  kAttention,
  kRouter,
  kExperts,
  kSharedExperts,
  kDenseFfn,
  kNorms,
  kHead,
};
inline constexpr std::size_t kNumModelParts = 8;

/// What a tensor is for. With TensorSpec::bias, the bias of that matrix.
enum class TensorRole : std::uint8_t {
  kEmbedding,
  kFinalNorm,
  kHead,
  kAttentionNorm,
  kFfnNorm,
  kQuery,
  kKey,
  kValue,
  kAttentionOut,
  kRouter,
  kMlpGate,
  kMlpUp,
  kMlpDown,
};

struct TensorSpec {
  TensorRole role = TensorRole::kEmbedding;
  ModelPart part = ModelPart::kEmbedding;
  std::string name;                 // "model.layers.0.self_attn.q_proj.weight"
  std::vector<std::int64_t> shape;  // (outputs, inputs), or (size)
  bool bias = false;

  std::uint64_t elements() const;
};

/// Embedding, final norm, and the head unless it is the embedding.
std::vector<TensorSpec> OuterTensors(const ModelConfig& config);
/// A layer but for its routed experts.
std::vector<TensorSpec> LayerTensors(const ModelConfig& config, int layer);
/// One routed expert of a sparse layer; its roles are the kMlp ones.
std::vector<TensorSpec> ExpertTensors(const ModelConfig& config, int layer, int expert);

/// Whether the whole of `name` matches `pattern`, in which each * stands for any run of characters.
bool MatchesPattern(std::string_view name, std::string_view pattern);

}  // namespace moe
