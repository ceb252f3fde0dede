// What DeepSeek-V2, DeepSeek-V3 and GLM-4-MoE share: groups of experts, the biased sigmoid gate, dense first layers
// with shared experts in the others, and prediction layers.
#pragma once

#include "model/config.h"
#include "model/families/key_reader.h"

namespace moe {

/// Multi-head latent attention and config.rope, which rotates in pairs of this kind. num_key_value_heads is written in
/// these files and means nothing.
AttentionSpec ReadLatentAttention(KeyReader& keys, ModelConfig& config, RopePairing pairing);

/// n_group and topk_group: experts are chosen in the best groups only.
void ReadGroups(KeyReader& keys, GateSpec& gate);

/// DeepSeek-V3's gate: sigmoid scores, a bias that selects and never weighs, groups by their two best.
GateSpec ReadBiasedGate(KeyReader& keys);

/// All layers with `attention`: the first ones dense, the rest sparse with the gate that `read_gate` reads. None is
/// sparse when n_routed_experts is null. Prediction layers, too.
void ReadDeepseekLayers(KeyReader& keys, ModelConfig& config, const AttentionSpec& attention,
                        GateSpec (*read_gate)(KeyReader&), int default_first_sparse);

}  // namespace moe
