#include "kernels/weight_type.h"

#include <bit>
#include <cstring>

#include "core/check.h"

namespace moe {
namespace {

// Fields of the formats. f16 has 5 bits of exponent (bias 15), 10 of fraction.
constexpr std::uint32_t kF32Infinity = 0x7f800000;
constexpr std::uint32_t kF32QuietBit = 0x00400000;
constexpr std::uint32_t kF16Infinity = 0x7c00;
constexpr std::uint32_t kF16QuietBit = 0x0200;
constexpr int kFractionShift = 13;  // 23 bits of fraction in fp32, 10 in f16

/// `value` / 2^shift, rounded to nearest, ties to even. 1 <= shift <= 31; value < 2^31. Without a branch: whether a
/// fraction is rounded up is a coin toss that no processor predicts.
constexpr std::uint32_t ShiftRightToNearestEven(std::uint32_t value, int shift) {
  const std::uint32_t odd = (value >> shift) & 1;
  return (value + (1u << (shift - 1)) - 1 + odd) >> shift;
}

}  // namespace

std::string_view Name(WeightType type) {
  switch (type) {
    case WeightType::kF32: return "f32";
    case WeightType::kBf16: return "bf16";
    case WeightType::kF16: return "f16";
    case WeightType::kInt8: return "int8";
    case WeightType::kInt4: return "int4";
  }
  return "unknown";
}

std::optional<WeightType> ParseWeightType(std::string_view name) {
  for (const WeightType type :
       {WeightType::kF32, WeightType::kBf16, WeightType::kF16, WeightType::kInt8, WeightType::kInt4}) {
    if (name == Name(type)) return type;
  }
  return std::nullopt;
}

float F16ToF32(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t magnitude = bits & 0x7fffu;
  if (magnitude < 0x0400) {  // zero or subnormal: magnitude * 2^-24, exact in fp32
    const float absolute = static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(absolute));
  }
  if (magnitude >= kF16Infinity) {  // NaN stays NaN with its payload, made quiet as the hardware does
    const std::uint32_t payload = (magnitude & 0x03ffu) << kFractionShift;
    return std::bit_cast<float>(sign | kF32Infinity | payload | (payload != 0 ? kF32QuietBit : 0));
  }
  return std::bit_cast<float>(sign | ((magnitude << kFractionShift) + ((127u - 15u) << 23)));
}

std::uint16_t F32ToF16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t result = 0;
  if (magnitude > kF32Infinity) {
    result = kF16Infinity | kF16QuietBit | ((magnitude >> kFractionShift) & 0x03ffu);
  } else if (magnitude >= 0x47800000u) {  // 2^16 and more; the largest f16, 65504, lies below
    result = kF16Infinity;
  } else if (magnitude >= 0x38800000u) {  // 2^-14, the smallest normal f16; a carry past 65504 gives infinity
    result = ShiftRightToNearestEven(magnitude - ((127u - 15u) << 23), kFractionShift);
  } else if (magnitude >= 0x33000000u) {  // 2^-25, half of the smallest subnormal: results count units of 2^-24
    const std::uint32_t fraction = (magnitude & 0x007fffffu) | 0x00800000u;
    const int exponent = static_cast<int>(magnitude >> 23) - 127;  // -25 … -15
    result = ShiftRightToNearestEven(fraction, -1 - exponent);     // fraction * 2^(exponent - 23 + 24)
  }
  return static_cast<std::uint16_t>(sign | result);
}

void StoreRow(std::span<const float> values, WeightType type, std::span<std::byte> out) {
  MOE_CHECK(!IsQuantized(type), "a row of quantized weights has no place of its own");
  if (type == WeightType::kF32) {
    std::memcpy(out.data(), values.data(), values.size_bytes());
    return;
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t bits = type == WeightType::kBf16 ? F32ToBf16(values[i]) : F32ToF16(values[i]);
    std::memcpy(out.data() + i * sizeof(bits), &bits, sizeof(bits));
  }
}

}  // namespace moe
