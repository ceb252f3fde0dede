// The number formats that weights are kept in.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace moe {

/// The last two are integers with a scale for each group of inputs of an output (kernels/quantize.h).
enum class WeightType : std::uint8_t { kF32, kBf16, kF16, kInt8, kInt4 };

/// As users write it: "f32", "bf16", "f16", "int8", "int4".
std::string_view Name(WeightType type);
std::optional<WeightType> ParseWeightType(std::string_view name);

constexpr bool IsQuantized(WeightType type) { return type == WeightType::kInt8 || type == WeightType::kInt4; }

/// Of the types that are not quantized.
constexpr std::size_t BytesPerWeight(WeightType type) { return type == WeightType::kF32 ? 4 : 2; }

// Conversions. Widening is exact; narrowing rounds to nearest, ties to even, and keeps NaN. Those of bf16 are here, and
// without a branch, so that loops over them become vector code: a step of 32 sequences converts 500,000 elements a
// layer of what goes to the experts and comes back.

constexpr float Bf16ToF32(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);  // bf16 is the upper half of an fp32
}
constexpr std::uint16_t F32ToBf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  // The carry of a rounded fraction moves into the exponent, which is right up to and including infinity.
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  // A NaN whose payload lies in the lower half only would become an infinity without the quiet bit.
  const std::uint32_t quiet = (bits >> 16) | 0x40u;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<std::uint16_t>(is_nan ? quiet : rounded);
}
float F16ToF32(std::uint16_t bits);
std::uint16_t F32ToF16(float value);

/// `values` as `type`, which is not quantized, to out (values.size() * BytesPerWeight(type) bytes, of any alignment).
void StoreRow(std::span<const float> values, WeightType type, std::span<std::byte> out);

}  // namespace moe
