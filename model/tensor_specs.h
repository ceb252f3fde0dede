// Which weights a model has, with their shapes, and where a checkpoint keeps them: the one list from which tensors are
// checked, loaded and counted.
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

/// What a weight is for. With TensorSpec::bias, the bias of that matrix.
enum class TensorRole : std::uint8_t {
  kEmbedding,
  kPositions,
  kEncoderNorm,  // after the encoder's last layer
  kFinalNorm,
  kHead,
  kAttentionNorm,
  kFfnNorm,
  kPostNorm,
  kQuery,
  kKey,
  kValue,
  kAttentionOut,
  kQueryNorm,
  kKeyNorm,
  kSinks,
  kRelativeBias,
  kQueryDown,
  kQueryDownNorm,
  kQueryUp,
  kKvDown,
  kKvDownNorm,
  kKvUp,
  kCrossNorm,
  kCrossQuery,
  kCrossKey,
  kCrossValue,
  kCrossOut,
  kRouter,
  kCorrectionBias,
  kSharedRouter,
  kMlpGate,
  kMlpUp,
  kMlpDown,
};

/// A block of MXFP4 covers this many inputs (OCP MX specification 1.0, section 5.2), one of FP8 this many inputs and
/// outputs (DeepSeek-V3's published layout).
inline constexpr std::int64_t kMxBlock = 32;
inline constexpr std::int64_t kFp8Block = 128;

/// Which elements of a stored tensor a weight is.
struct TensorSlice {
  int expert = -1;          // index into the first dimension, which the weight does not have; -1: no such dimension
  bool transposed = false;  // stored (inputs, outputs)
  std::int64_t first = 0;   // of the outputs
  std::int64_t step = 1;
};

/// One weight as the model's arithmetic has it: a matrix (outputs, inputs) or a vector (size).
struct TensorSpec {
  TensorRole role = TensorRole::kEmbedding;
  ModelPart part = ModelPart::kEmbedding;
  std::vector<std::int64_t> shape;
  bool bias = false;

  std::string name;                        // of the stored tensor: "model.layers.0.self_attn.q_proj.weight"
  std::vector<std::int64_t> stored_shape;  // in the plain encoding
  TensorSlice slice = {};
  StoredEncoding encoding = StoredEncoding::kPlain;  // how it may be stored instead, by the config

  std::uint64_t elements() const;
};

/// Embedding, final norms, and the head unless it is the embedding.
std::vector<TensorSpec> OuterTensors(const ModelConfig& config);
/// A layer but for its routed experts.
std::vector<TensorSpec> LayerTensors(const ModelConfig& config, int layer);
/// One routed expert of a sparse layer; its roles are the kMlp ones.
std::vector<TensorSpec> ExpertTensors(const ModelConfig& config, int layer, int expert);

/// Whether the engine holds this weight in a weight type of the user's choice. Vectors and relative biases are fp32 in
/// any case, and gates: a wrong route costs more than their few bytes.
bool HeldInWeightType(const TensorSpec& spec);

/// Where the plain encoding is replaced: MXFP4's blocks and scales, or FP8's scales, of the tensor called `name`.
std::string BlocksName(const std::string& name);
std::string ScalesName(const std::string& name, StoredEncoding encoding);
/// Their shapes, for a weight whose encoding is that one.
std::vector<std::int64_t> BlocksShape(const TensorSpec& spec);
std::vector<std::int64_t> ScalesShape(const TensorSpec& spec);

/// Whether the whole of `name` matches `pattern`, in which each * stands for any run of characters.
bool MatchesPattern(std::string_view name, std::string_view pattern);
/// Whether the checkpoint may hold a tensor of this name that inference does not use.
bool IsIgnorable(const ModelConfig& config, std::string_view name);

}  // namespace moe
