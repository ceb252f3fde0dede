// The two loops that measure a machine's roofs, with its widest vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace moe {

/// The sum of all 32-bit words, modulo 2^32, and of the bytes after the last of them: memory is read as fast as vector
/// loads can. Integers, because weights of any type are read so, and some bits make slow floats.
std::uint32_t SumOf(std::span<const std::byte> memory);

/// `rounds` rounds of independent fused multiply-adds in registers. Returns the floating-point operations done (a fused
/// multiply-add is two); `sink` gets a value that depends on all of them.
double MultiplyAdd(std::size_t rounds, float& sink);

}  // namespace moe
