// Turns a router row into k experts and their weights, as a GateSpec says.
#pragma once

#include <cstdint>
#include <span>

#include "core/matrix.h"
#include "kernels/kernels.h"
#include "model/config.h"

namespace moe {

/// One token: `logits` (num_experts), with the gate's bias, overwritten; out come `ids` and `weights`
/// (experts_per_token) by descending selection score, ties to the lower id. `correction` (num_experts) is empty unless
/// the spec has a correction bias. fp32 throughout, whatever the weight type.
void SelectExperts(const GateSpec& spec, const Kernels& kernels, std::span<const float> correction,
                   std::span<float> logits, std::span<std::int32_t> ids, std::span<float> weights);

/// For the tokens of one sequence in one call, in their order: every (token, expert) after the first spec.capacity of
/// an expert gets weight 0. `taken` (num_experts) is scratch. Nothing when there is no capacity.
void ApplyCapacity(const GateSpec& spec, MatrixView<const std::int32_t> ids, std::span<std::uint32_t> taken,
                   MatrixView<float> weights);

}  // namespace moe
