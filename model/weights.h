// The weights of a model as packed, shape-checked matrices: the dense part for a router, single experts for a worker.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"
#include "kernels/packed_matrix.h"
#include "model/checkpoint.h"
#include "model/config.h"

namespace moe {

/// One gated MLP: an expert, or a dense layer's.
struct MlpWeights {
  PackedMatrix gate_up;             // (2 * intermediate, hidden): gate's outputs, then up's
  PackedMatrix down;                // (hidden, intermediate)
  std::vector<float> gate_up_bias;  // empty when there is none
  std::vector<float> down_bias;

  std::uint64_t parameters() const;
  std::uint64_t bytes() const;
};

struct AttentionWeights {
  PackedMatrix qkv;             // ((heads + 2 * kv_heads) * head_dim, hidden): q, then k, then v
  PackedMatrix out;             // (hidden, heads * head_dim)
  std::vector<float> qkv_bias;  // empty when there is none
  std::vector<float> out_bias;
};

struct LayerWeights {
  std::vector<float> attention_norm;  // (hidden)
  std::vector<float> ffn_norm;        // (hidden)
  AttentionWeights attention;
  PackedMatrix gate;     // (num_experts, hidden), always f32; empty on dense layers
  MlpWeights dense_mlp;  // empty on sparse layers
};

/// All that a router needs.
struct DenseWeights {
  WeightType type = WeightType::kF32;
  std::vector<std::byte> embedding;  // (vocab, hidden) row-major, in `type`
  std::vector<float> final_norm;     // (hidden)
  PackedMatrix head;                 // (vocab, hidden); packed from the embedding when tied
  std::vector<LayerWeights> layers;

  std::uint64_t parameters = 0;  // logical: a tied table once
  std::uint64_t bytes = 0;       // as held in memory
};

/// Checks the names, shapes and types of every tensor of `checkpoint` against `config`, experts included, without
/// reading data: missing, unknown and mis-shaped tensors are errors that name them.
Status CheckTensors(const ModelConfig& config, const Checkpoint& checkpoint);

/// `pool` packs matrices in parallel.
Result<DenseWeights> LoadDenseWeights(const ModelConfig& config, const Checkpoint& checkpoint, WeightType type,
                                      ThreadPool& pool);

/// One expert of one sparse layer; maps that expert's tensors only.
Result<MlpWeights> LoadExpertWeights(const ModelConfig& config, const Checkpoint& checkpoint, int layer, int expert,
                                     WeightType type);

}  // namespace moe
