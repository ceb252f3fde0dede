// Turns a router row into k experts and their weights, as a GateSpec says.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/kernels.h"
#include "model/config.h"

namespace moe {

/// One token: `logits` (num_experts), overwritten; out come `ids` and `weights` (experts_per_token) by descending
/// weight, ties to the lower id. fp32 throughout, whatever the weight type.
void SelectExperts(const GateSpec& spec, const Kernels& kernels, std::span<float> logits, std::span<std::int32_t> ids,
                   std::span<float> weights);

}  // namespace moe
