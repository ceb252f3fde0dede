// What a decoder computes, as checked data. A family (model/families/) turns a config.json into this; nothing else
// reads model types.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "kernels/kernels.h"
#include "kernels/weight_type.h"
#include "model/tensor_names.h"

namespace moe {

/// The most experts a layer may have.
inline constexpr int kMaxExperts = 1 << 13;

enum class RopeScaling : std::uint8_t { kNone, kLinear, kLlama3, kYarn };

/// Rotary position embedding (Su et al. 2021; llama3 scaling as published with Llama 3.1; yarn: Peng et al. 2023,
/// arXiv 2309.00071).
struct RopeSpec {
  int width = 0;  // rotated elements of a head
  double theta = 10000;
  RopePairing pairing = RopePairing::kHalfSplit;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1;
  double low_freq_factor = 1;         // llama3
  double high_freq_factor = 1;        // llama3
  double original_max_positions = 0;  // llama3, yarn
  double beta_fast = 32;              // yarn
  double beta_slow = 1;               // yarn
  bool truncate = true;               // yarn: the ramp's ends are whole numbers
  double magnitude = 1;               // yarn's attention factor: multiplies cos and sin

  /// The width / 2 angles per position, radians, in double.
  std::vector<double> Frequencies() const;
};

/// How queries and keys are normalised before they meet.
enum class QkNorm : std::uint8_t {
  kNone,
  kPerHead,          // RMS over each head, one weight (head_dim) for all heads, before rope
  kWholeProjection,  // RMS over all heads together, weights (heads * head_dim) and (kv_heads * head_dim), before rope
  kUnitAfterRope,    // RMS over each head without a weight, after rope (Llama 4)
};

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values are linear in one vector of kv_rank
/// elements a token, which is what the cache holds, with one rotated key of rope_dim that all heads share.
struct LatentSpec {
  int query_rank = 0;  // 0: queries are projected at once
  int kv_rank = 0;
  int nope_dim = 0;   // of a head's query and key, not rotated
  int rope_dim = 0;   // rotated
  int value_dim = 0;  // of a head
  float norm_eps = 1e-6f;
};

/// A query at position p is multiplied by 1 + scale * ln(1 + floor((p + 1) / floor_scale)) (Llama 4).
struct QueryTemperature {
  double scale = 0;
  double floor_scale = 1;
};

/// A learnt score per bucket of distances and head, added to the scaled scores (T5, arXiv 1910.10683). The table
/// belongs to the first layer of a stack; all its layers use it.
struct RelativeBiasSpec {
  int buckets = 0;
  int max_distance = 0;

  /// The bucket of key position − query position. One-sided where attention is causal.
  int Bucket(int delta, bool causal) const;
};

/// Grouped-query attention: query head i reads KV head i / (num_heads / num_kv_heads). With `latent`, num_kv_heads is 1
/// and head_dim is nope_dim + rope_dim.
struct AttentionSpec {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  float scale = 1;     // of q·k
  bool causal = true;  // a token sees itself and those before it; else all of its sequence
  int window = 0;      // a token sees itself and window − 1 before it; 0: no such limit
  int chunk = 0;       // a token sees its own block of this many positions (from position 0); 0: no such limit
  bool rope = true;
  bool qkv_bias = false;
  bool out_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  float clip_qkv = 0;  // q, k and v are clamped to ± this, after the norm and before rope; 0: not
  bool sinks = false;  // one more score a query head joins the softmax, without a value (gpt-oss)
  std::optional<LatentSpec> latent;
  std::optional<QueryTemperature> temperature;
  std::optional<RelativeBiasSpec> relative_bias;

  /// Width of what a layer's first product gives: q | k | v; latent: (q or its low rank) | kv_rank | rope_dim.
  int projected_width() const;
  /// Width of all heads' values together: what the output product reads.
  int heads_width() const;
  /// The first position that the query at `position` sees.
  std::size_t FirstVisible(std::size_t position) const;
};

enum class Activation : std::uint8_t {
  kSiluGated,      // silu(gate) * up
  kClampedSwiGlu,  // gpt-oss; see Kernels::ClampedSwiGlu
  kGeluGated,      // counted only
  kRelu,           // relu(up), no gate
  kGelu,           // no gate; counted only
};

/// down(activation(gate x, up x))
struct MlpSpec {
  int intermediate = 0;
  bool bias = false;
  Activation activation = Activation::kSiluGated;
  float limit = 0;  // kClampedSwiGlu

  bool gated() const { return activation != Activation::kRelu && activation != Activation::kGelu; }
  /// Outputs of the first product: gate's, then up's.
  int inner_width() const { return gated() ? 2 * intermediate : intermediate; }
};

/// How a router row becomes k experts and their weights (docs/architecture.md; in fp32, ties to the lower id). The gate
/// is data: a family is a row of settings, not code. In order: logits (+ bias); scores = scoring(logits); selection
/// scores = logits or scores (+ correction); the best groups by their group score, everything else excluded; the k best
/// of them; weights = scores of the chosen, normalised, times scale.
struct GateSpec {
  enum class Scoring : std::uint8_t { kSoftmax, kSigmoid, kLogits };
  enum class GroupScore : std::uint8_t { kMax, kSumOfTwo };  // of the selection scores in a group
  enum class Normalization : std::uint8_t {
    kNone,
    kSum,      // divided by their sum + normalization_eps
    kSoftmax,  // softmax over the chosen k
  };

  int num_experts = 0;
  int experts_per_token = 0;
  Scoring scoring = Scoring::kSoftmax;
  bool select_by_logits = false;  // else by the scores
  bool bias = false;              // a learnt vector joins the logits
  bool correction_bias = false;   // a vector joins the selection scores and never weighs (DeepSeek-V3)
  int groups = 1;                 // of consecutive experts
  int top_groups = 1;
  GroupScore group_score = GroupScore::kMax;
  Normalization normalization = Normalization::kSum;
  float normalization_eps = 0;
  float scale = 1;
  bool scales_input = false;  // the weight multiplies the expert's input, its output is not weighted (Llama 4)
  int capacity = 0;  // an expert takes this many tokens of a sequence in a call, in their order; the others get weight
                     // 0 (Switch); 0: no limit
};

/// The routed part of a sparse layer, and what every token visits beside it.
struct MoeSpec {
  GateSpec gate;
  MlpSpec expert;
  std::optional<MlpSpec> shared;  // computed for every token and added
  bool shared_gate = false;       // the shared part times sigmoid(w·x)
};

struct LayerSpec {
  AttentionSpec attention;
  std::optional<AttentionSpec> cross_attention;  // on the encoder's output
  MlpSpec dense_mlp;                             // used when `moe` is absent
  std::optional<MoeSpec> moe;                    // present on sparse layers
};

/// Layers that follow one another over the same rows. A decoder-only model has one stack; an encoder–decoder two, the
/// encoder first.
struct StackSpec {
  std::size_t first_layer = 0;
  std::size_t num_layers = 0;
  bool encoder = false;
};

/// How a checkpoint stores its large matrices.
enum class StoredEncoding : std::uint8_t {
  kPlain,
  kMxfp4,      // routed experts in blocks of 32 e2m1 values with an e8m0 scale (OCP MX specification)
  kFp8Blocks,  // projections in e4m3 with an F32 scale for each 128 × 128 block (weight_scale_inv)
};

struct ModelConfig {
  std::string model_type;    // "mixtral"
  std::string architecture;  // "MixtralForCausalLM", as config.json says, else the family's own
  bool servable = true;      // false: a family whose parameters can be counted and no more
  int vocab_size = 0;
  int hidden = 0;
  int context_length = 0;  // 0: the configuration does not say (Switch without n_positions)
  float rms_norm_eps = 0;
  bool tied_embeddings = false;
  float embedding_scale = 1;  // of the embedding rows
  float residual_scale = 1;   // of each block's output before it joins the residual stream
  float logits_scale = 1;
  WeightType stored_type = WeightType::kF32;  // torch_dtype / dtype
  StoredEncoding encoding = StoredEncoding::kPlain;
  RopeSpec rope;
  int encoder_layers = 0;                            // the first so many of `layers`
  std::vector<LayerSpec> layers;                     // the encoder's, then the decoder's
  TensorNames tensor_names;                          // of the decoder and of all that is outside of layers
  TensorNames encoder_names;                         // of the encoder's layers and its final norm
  std::optional<std::uint32_t> decoder_start_token;  // encoder–decoder models
  int prediction_layers = 0;  // extra layers of the checkpoint that inference does not use (multi-token prediction)
  // Of families that are only counted.
  int learned_positions = 0;  // rows of a position table
  bool norm_bias = false;
  bool post_norms = false;                   // one more norm after attention and one after the FFN
  std::vector<std::uint32_t> eos_token_ids;  // generation_config.json's, else config.json's
  std::vector<std::string> warnings;         // unknown keys, one sentence that names them

  int num_layers() const { return static_cast<int>(layers.size()); }
  std::vector<StackSpec> stacks() const;
  bool has_encoder() const { return encoder_layers > 0; }
  /// What the tensors of `layer` are called, and its number inside its stack.
  const TensorNames& names_of(int layer) const { return layer < encoder_layers ? encoder_names : tensor_names; }
  int index_in_stack(int layer) const { return layer < encoder_layers ? layer : layer - encoder_layers; }
  /// Experts of the sparse layers (they agree), 0 for a dense model.
  int num_experts() const;
  int experts_per_token() const;
  /// Absolute indices of the sparse layers, ascending.
  std::vector<int> sparse_layers() const;
};

/// Reads and checks `directory`/config.json and generation_config.json. INVALID_ARGUMENT or NOT_FOUND naming the file,
/// the key and the value; also for families that can only be counted.
Result<ModelConfig> ReadModelConfig(const std::filesystem::path& directory);

/// The same for one file of config.json's form wherever it lies, without looking at generation_config.json; families
/// that can only be counted are read too.
Result<ModelConfig> ReadModelConfigFile(const std::filesystem::path& file);

/// The same for the text of such a file; `name` is for messages.
Result<ModelConfig> ParseModelConfig(std::string_view text, const std::string& name);

}  // namespace moe
