// The weights of a model as packed, shape-checked matrices: the dense part for a router, single experts for a worker.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"
#include "kernels/packed_matrix.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/weight_types.h"

namespace moe {

class WeightCache;

/// One MLP: an expert, the shared experts, or a dense layer's.
struct MlpWeights {
  PackedMatrix gate;             // (intermediate, hidden); empty in an MLP that is not gated
  PackedMatrix up;               // (intermediate, hidden)
  PackedMatrix down;             // (hidden, intermediate)
  std::vector<float> gate_bias;  // empty when there is none
  std::vector<float> up_bias;
  std::vector<float> down_bias;

  std::uint64_t parameters() const;
  std::uint64_t bytes() const;
};

struct AttentionWeights {
  PackedMatrix projection;             // (AttentionSpec::projected_width, hidden)
  std::vector<float> projection_bias;  // empty when there is none
  std::vector<float> query_norm;       // (head_dim) or (heads * head_dim); empty when there is none
  std::vector<float> key_norm;         // (head_dim) or (kv_heads * head_dim)
  std::vector<float> sinks;            // (heads)
  PackedMatrix out;                    // (hidden, heads_width)
  std::vector<float> out_bias;

  // Latent attention: the up-projection of the latent is absorbed into the queries and the output, head by head.
  std::vector<float> query_down_norm;  // (query_rank)
  PackedMatrix query_up;               // (heads * head_dim, query_rank)
  std::vector<float> kv_down_norm;     // (kv_rank)
  std::vector<PackedMatrix> key_up;    // by head: (kv_rank, nope_dim), the key part transposed
  std::vector<PackedMatrix> value_up;  // by head: (value_dim, kv_rank)
};

/// Attention of a decoder layer on the encoder's output.
struct CrossAttentionWeights {
  std::vector<float> norm;  // (hidden)
  PackedMatrix query;       // (heads * head_dim, hidden)
  PackedMatrix key_value;   // (2 * kv_heads * head_dim, hidden): keys, then values
  PackedMatrix out;         // (hidden, heads * head_dim)
};

struct LayerWeights {
  std::vector<float> attention_norm;  // (hidden)
  std::vector<float> ffn_norm;        // (hidden)
  AttentionWeights attention;
  std::optional<CrossAttentionWeights> cross;
  PackedMatrix gate;                   // (num_experts, hidden), always f32; empty on dense layers
  std::vector<float> gate_bias;        // (num_experts), or empty
  std::vector<float> correction_bias;  // (num_experts), or empty
  MlpWeights mlp;                      // of a dense layer, or the shared experts of a sparse one
  PackedMatrix shared_gate;            // (1, hidden), always f32; empty when there is none
};

/// All that a router needs.
struct DenseWeights {
  WeightType embedding_type = WeightType::kF32;
  std::vector<std::byte> embedding;  // (vocab, hidden) row-major
  std::vector<float> encoder_norm;   // (hidden); empty without an encoder
  std::vector<float> final_norm;     // (hidden)
  PackedMatrix head;                 // (vocab, hidden); packed from the embedding when tied
  std::vector<LayerWeights> layers;
  std::vector<float> encoder_relative_bias;  // (buckets, heads); empty when there is none
  std::vector<float> relative_bias;

  std::uint64_t parameters = 0;  // logical: a tied table once
  std::uint64_t bytes = 0;       // as held in memory
};

/// What weights become, and where what is quantized of them is kept.
struct WeightForm {
  WeightForm(WeightType type) : types(type) {}                                // NOLINT(google-explicit-constructor)
  WeightForm(const WeightTypes& types_of_parts, WeightCache* kept = nullptr)  // NOLINT(google-explicit-constructor)
      : types(types_of_parts), cache(kept) {}

  WeightTypes types;
  WeightCache* cache = nullptr;  // none: everything is made from the checkpoint
};

/// `pool` packs matrices in parallel.
Result<DenseWeights> LoadDenseWeights(const ModelConfig& config, const Checkpoint& checkpoint, const WeightForm& form,
                                      ThreadPool& pool);

/// One expert of one sparse layer; maps that expert's tensors only, and of those that `form.cache` has nothing.
Result<MlpWeights> LoadExpertWeights(const ModelConfig& config, const Checkpoint& checkpoint, int layer, int expert,
                                     const WeightForm& form);

}  // namespace moe
