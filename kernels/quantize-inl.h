// Rows of activations and of weights to integers, as kernels/quantize.h defines them.
#if defined(MOE_KERNELS_QUANTIZE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_KERNELS_QUANTIZE_INL_H_
#undef MOE_KERNELS_QUANTIZE_INL_H_
#else
#define MOE_KERNELS_QUANTIZE_INL_H_
#endif

#include <limits>

#include "core/check.h"
#include "kernels/int_lanes-inl.h"
#include "kernels/packed_matrix.h"
#include "kernels/quantize.h"

HWY_BEFORE_NAMESPACE();
namespace moe {
namespace HWY_NAMESPACE {

// Added to a number below 2^22 this leaves it rounded to an integer, ties to even, in the lowest bits of the sum.
inline constexpr float kRounder = 0x1.8p+23f;

/// Up to a group of values, in registers; zeros past the last.
struct GroupLanes {
  Lanes lanes[GroupSize(WeightType::kInt8) / kLanes];
};

template <WeightType kType>
inline constexpr std::size_t kLanesOfGroup = GroupSize(kType) / kLanes;

/// Group `index` of `count` values stored as kSource.
template <WeightType kType, WeightType kSource>
HWY_INLINE GroupLanes LoadGroup(const std::byte* values, std::size_t index, std::size_t count) {
  constexpr std::size_t kGroup = GroupSize(kType);
  constexpr std::size_t kWidth = BytesPerWeight(kSource);
  const std::byte* from = values + index * kGroup * kWidth;
  alignas(64) std::byte last[kGroup * kWidth] = {};
  if ((index + 1) * kGroup > count) {
    std::memcpy(last, from, (count - index * kGroup) * kWidth);
    from = last;
  }
  GroupLanes group;
  MOE_UNROLL for (std::size_t i = 0; i < kLanesOfGroup<kType>; ++i) {
    group.lanes[i] = LoadWeights<kSource>(from + i * kLanes * kWidth);
  }
  return group;
}

/// The value of largest magnitude, the positive one of two; NaN when any is not finite.
template <WeightType kType>
HWY_INLINE float Extreme(const GroupLanes& group) {
  Lanes highest = Broadcast(0);
  Lanes lowest = Broadcast(0);  // negated
  Lanes poison = Broadcast(0);  // NaN where a value is not finite
  MOE_UNROLL for (std::size_t i = 0; i < kLanesOfGroup<kType>; ++i) {
    highest = Max(highest, group.lanes[i]);
    lowest = Max(lowest, Neg(group.lanes[i]));
    poison = Fma(group.lanes[i], Broadcast(0), poison);
  }
  if (SumOfLanes(poison) != 0) return std::numeric_limits<float>::quiet_NaN();
  const float high = MaxOfLanes(highest);
  const float low = MaxOfLanes(lowest);
  return high >= low ? high : -low;
}

/// value / scale as an integer above kRounder, within [lowest, highest].
HWY_INLINE Lanes Rounded(const Lanes& value, float inverse, float lowest, float highest) {
  const Lanes rounded = Fma(value, Broadcast(inverse), Broadcast(kRounder));
  return AtLeast(AtMost(rounded, Broadcast(kRounder + highest)), Broadcast(kRounder + lowest));
}

template <WeightType kType>
void QuantizeRowOf(std::span<const float> x, const QuantizedGroups& out) {
  constexpr std::size_t kGroup = GroupSize(kType);
  for (std::size_t g = 0; g * kGroup < x.size(); ++g) {
    const GroupLanes group =
        LoadGroup<kType, WeightType::kF32>(reinterpret_cast<const std::byte*>(x.data()), g, x.size());
    auto* values = reinterpret_cast<std::uint8_t*>(out.values.data() + g * kGroup);
    const float magnitude = std::abs(Extreme<kType>(group));
    if (!(magnitude >= kSmallestMagnitude)) {  // nothing, or NaN
      std::memset(values, 0, kGroup);
      out.scales[g * out.stride] = std::isnan(magnitude) ? magnitude : 0.0f;
      out.offsets[g * out.stride] = 0;
      continue;
    }
    const float inverse = 127 / magnitude;
    Lanes sum = Broadcast(0);
    MOE_UNROLL for (std::size_t i = 0; i < kLanesOfGroup<kType>; ++i) {
      const Lanes rounded = Rounded(group.lanes[i], inverse, -127, 127);
      StoreLowestBytes(rounded, values + i * kLanes);
      sum = Add(sum, Sub(rounded, Broadcast(kRounder)));
    }
    out.scales[g * out.stride] = magnitude / 127;
    out.offsets[g * out.stride] = -ZeroPoint(kType) * static_cast<std::int32_t>(SumOfLanes(sum));
  }
}

inline void QuantizeRow(std::span<const float> x, std::size_t group, const QuantizedGroups& out) {
  const bool wide = group == GroupSize(WeightType::kInt8);
  MOE_CHECK(wide || group == GroupSize(WeightType::kInt4));
  MOE_CHECK(out.values.size() == (x.size() + group - 1) / group * group);
  wide ? QuantizeRowOf<WeightType::kInt8>(x, out) : QuantizeRowOf<WeightType::kInt4>(x, out);
}

/// The squared error of a group of int4 with this scale, as a lane sum.
HWY_INLINE float SquaredError(const GroupLanes& group, float scale) {
  const float inverse = 1 / scale;
  Lanes errors = Broadcast(0);
  MOE_UNROLL for (std::size_t i = 0; i < kLanesOfGroup<WeightType::kInt4>; ++i) {
    const Lanes q = Sub(Rounded(group.lanes[i], inverse, -8, 7), Broadcast(kRounder));
    const Lanes left = Fma(Neg(q), Broadcast(scale), group.lanes[i]);
    errors = Fma(left, left, errors);
  }
  return SumOfLanes(errors);
}

/// The best of the candidates around extreme / -8, as bf16; the first of equals.
HWY_INLINE std::uint16_t Int4Scale(const GroupLanes& group, float extreme) {
  std::uint16_t best = F32ToBf16(extreme / -8);
  float least = SquaredError(group, Bf16ToF32(best));
  for (const float factor : kInt4Factors) {
    const std::uint16_t bits = F32ToBf16(extreme / -8 * factor);
    const float error = SquaredError(group, Bf16ToF32(bits));
    if (error < least) {
      least = error;
      best = bits;
    }
  }
  return best;
}

template <WeightType kType, WeightType kSource>
void QuantizeWeightsOf(const WeightView& row, std::span<std::uint8_t> values, std::span<std::uint16_t> scales) {
  constexpr std::size_t kGroup = GroupSize(kType);
  constexpr bool kWide = kType == WeightType::kInt8;
  for (std::size_t g = 0; g < scales.size(); ++g) {
    const GroupLanes group = LoadGroup<kType, kSource>(row.data, g, row.cols);
    std::uint8_t* out = values.data() + g * kGroup;
    const float extreme = Extreme<kType>(group);
    if (!(std::abs(extreme) >= kSmallestMagnitude)) {  // nothing, or NaN
      std::memset(out, ZeroPoint(kType), kGroup);
      scales[g] = F32ToBf16(std::isnan(extreme) ? extreme : 0.0f);
      continue;
    }
    scales[g] = kWide ? F32ToBf16(std::abs(extreme) / 127) : Int4Scale(group, extreme);
    const float inverse = 1 / Bf16ToF32(scales[g]);
    MOE_UNROLL for (std::size_t i = 0; i < kLanesOfGroup<kType>; ++i) {
      const Lanes rounded = Rounded(group.lanes[i], inverse, kWide ? -127 : -8, kWide ? 127 : 7);
      StoreLowestBytes(Add(rounded, Broadcast(ZeroPoint(kType))), out + i * kLanes);
    }
  }
}

template <WeightType kType>
void QuantizeWeightsTo(const WeightView& row, std::span<std::uint8_t> values, std::span<std::uint16_t> scales) {
  switch (row.type) {
    case WeightType::kF32: return QuantizeWeightsOf<kType, WeightType::kF32>(row, values, scales);
    case WeightType::kBf16: return QuantizeWeightsOf<kType, WeightType::kBf16>(row, values, scales);
    case WeightType::kF16: return QuantizeWeightsOf<kType, WeightType::kF16>(row, values, scales);
    case WeightType::kInt8:
    case WeightType::kInt4: break;
  }
  MOE_CHECK(false, "quantized weights are not quantized again");
}

inline void QuantizeWeights(const WeightView& row, WeightType type, std::span<std::uint8_t> values,
                            std::span<std::uint16_t> scales) {
  MOE_CHECK(IsQuantized(type) && row.rows == 1 && scales.size() == GroupsOf(row.cols, type) &&
            values.size() == scales.size() * GroupSize(type));
  type == WeightType::kInt8 ? QuantizeWeightsTo<WeightType::kInt8>(row, values, scales)
                            : QuantizeWeightsTo<WeightType::kInt4>(row, values, scales);
}

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#endif  // MOE_KERNELS_QUANTIZE_INL_H_
