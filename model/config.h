// What a decoder computes, as checked data. A family (model/families/) turns a config.json into this; nothing else
// reads model types.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/status.h"
#include "kernels/kernels.h"
#include "kernels/weight_type.h"
#include "model/tensor_names.h"

namespace moe {

enum class RopeScaling : std::uint8_t { kNone, kLinear, kLlama3 };

/// Rotary position embedding (reference: Su et al. 2021; llama3 scaling as published with Llama 3.1).
struct RopeSpec {
  int width = 0;  // rotated elements of a head
  double theta = 10000;
  RopePairing pairing = RopePairing::kHalfSplit;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1;
  double low_freq_factor = 1;         // llama3
  double high_freq_factor = 1;        // llama3
  double original_max_positions = 0;  // llama3

  /// The width / 2 angles per position, radians, in double.
  std::vector<double> Frequencies() const;
};

/// Grouped-query attention: query head i reads KV head i / (num_heads / num_kv_heads).
struct AttentionSpec {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  float scale = 1;  // of q·k
  int window = 0;   // a token sees itself and window − 1 before it; 0 = all before it
  bool qkv_bias = false;
  bool out_bias = false;
};

/// down(silu(gate x) * up x)
struct MlpSpec {
  int intermediate = 0;
  bool bias = false;
};

/// How a router row becomes k experts and their weights (docs/architecture.md; in fp32, ties to the lower id). The gate
/// is data: a family is a row of settings, not code.
struct GateSpec {
  enum class Scoring : std::uint8_t { kSoftmax };

  int num_experts = 0;
  int experts_per_token = 0;
  Scoring scoring = Scoring::kSoftmax;
  bool renormalize = true;  // the k weights sum to 1
};

/// The routed part of a sparse layer.
struct MoeSpec {
  GateSpec gate;
  MlpSpec expert;
};

struct LayerSpec {
  AttentionSpec attention;
  MlpSpec dense_mlp;           // used when `moe` is absent
  std::optional<MoeSpec> moe;  // present on sparse layers
};

struct ModelConfig {
  std::string model_type;    // "mixtral"
  std::string architecture;  // "MixtralForCausalLM", as config.json says, else the family's own
  int vocab_size = 0;
  int hidden = 0;
  int context_length = 0;
  float rms_norm_eps = 0;
  bool tied_embeddings = false;
  WeightType stored_type = WeightType::kF32;  // torch_dtype / dtype
  RopeSpec rope;
  std::vector<LayerSpec> layers;
  TensorNames tensor_names;
  std::vector<std::uint32_t> eos_token_ids;  // generation_config.json's, else config.json's
  std::vector<std::string> warnings;         // unknown keys, one sentence that names them

  int num_layers() const { return static_cast<int>(layers.size()); }
  /// Experts of the sparse layers (they agree), 0 for a dense model.
  int num_experts() const;
  int experts_per_token() const;
  /// Absolute indices of the sparse layers, ascending.
  std::vector<int> sparse_layers() const;
};

/// Reads and checks `directory`/config.json and generation_config.json. INVALID_ARGUMENT or NOT_FOUND naming the file,
/// the key and the value.
Result<ModelConfig> ReadModelConfig(const std::filesystem::path& directory);

/// The same for one file of config.json's form wherever it lies, without looking at generation_config.json.
Result<ModelConfig> ReadModelConfigFile(const std::filesystem::path& file);

}  // namespace moe
