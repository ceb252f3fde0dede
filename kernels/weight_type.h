// The number formats that weights are kept in.
#pragma once

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

// Conversions. Widening is exact; narrowing rounds to nearest, ties to even, and keeps NaN.
float Bf16ToF32(std::uint16_t bits);
std::uint16_t F32ToBf16(float value);
float F16ToF32(std::uint16_t bits);
std::uint16_t F32ToF16(float value);

/// `values` as `type`, which is not quantized, to out (values.size() * BytesPerWeight(type) bytes, of any alignment).
void StoreRow(std::span<const float> values, WeightType type, std::span<std::byte> out);

}  // namespace moe
