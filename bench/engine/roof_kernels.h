// The two loops that measure a machine's roofs, with its widest vectors.
#pragma once

#include <cstddef>
#include <span>

namespace moe {

/// The sum of all elements: memory is read as fast as vector loads can.
float SumOf(std::span<const float> values);

/// `rounds` rounds of independent fused multiply-adds in registers. Returns the floating-point operations done (a fused
/// multiply-add is two); `sink` gets a value that depends on all of them.
double MultiplyAdd(std::size_t rounds, float& sink);

}  // namespace moe
