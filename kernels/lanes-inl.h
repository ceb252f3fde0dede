// Sixteen fp32 lanes on any instruction set: one AVX-512 register, two of AVX2, or an array where there is no fused
// multiply-add. All kernels are written with these, so that the shape of a sum is the same everywhere.
// Compiled once per target: included by simd_kernels.cpp only.
#if defined(MOE_KERNELS_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_KERNELS_LANES_INL_H_
#undef MOE_KERNELS_LANES_INL_H_
#else
#define MOE_KERNELS_LANES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/exp.h"
#include "kernels/weight_type.h"

// Highway's own fallback may round between multiplication and addition, so it is not used.
#undef MOE_PORTABLE_LANES
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
#define MOE_PORTABLE_LANES 1
#else
#define MOE_PORTABLE_LANES 0
#endif

// Loops over registers must vanish before the compiler decides what lives in registers.
#define MOE_UNROLL _Pragma("GCC unroll 16")

HWY_BEFORE_NAMESPACE();
namespace moe {
namespace HWY_NAMESPACE {

inline constexpr std::size_t kLanes = 16;

#if MOE_PORTABLE_LANES

inline constexpr std::size_t kRegistersPerLanes = 1;

struct Lanes {
  float lane[kLanes];
};

HWY_INLINE Lanes Broadcast(float value) {
  Lanes result;
  for (float& lane : result.lane) lane = value;
  return result;
}

HWY_INLINE Lanes Load(const float* from) {
  Lanes result;
  std::memcpy(result.lane, from, sizeof(result.lane));
  return result;
}

HWY_INLINE Lanes LoadFirst(const float* from, std::size_t count) {
  Lanes result = Broadcast(0);
  std::memcpy(result.lane, from, count * sizeof(float));
  return result;
}

HWY_INLINE void Store(const Lanes& lanes, float* to) { std::memcpy(to, lanes.lane, sizeof(lanes.lane)); }

HWY_INLINE void StoreFirst(const Lanes& lanes, float* to, std::size_t count) {
  std::memcpy(to, lanes.lane, count * sizeof(float));
}

template <WeightType kType>
HWY_INLINE Lanes LoadWeights(const std::byte* from) {
  Lanes result;
  if constexpr (kType == WeightType::kF32) {
    std::memcpy(result.lane, from, sizeof(result.lane));
  } else {
    std::uint16_t bits[kLanes];
    std::memcpy(bits, from, sizeof(bits));
    for (std::size_t i = 0; i < kLanes; ++i) {
      result.lane[i] = kType == WeightType::kBf16 ? Bf16ToF32(bits[i]) : F16ToF32(bits[i]);
    }
  }
  return result;
}

#define MOE_LANEWISE(NAME, PARAMETERS, EXPRESSION)                        \
  HWY_INLINE Lanes NAME PARAMETERS {                                      \
    Lanes result;                                                         \
    for (std::size_t i = 0; i < kLanes; ++i) result.lane[i] = EXPRESSION; \
    return result;                                                        \
  }
MOE_LANEWISE(Fma, (const Lanes& a, const Lanes& b, const Lanes& c), std::fma(a.lane[i], b.lane[i], c.lane[i]))
MOE_LANEWISE(Add, (const Lanes& a, const Lanes& b), a.lane[i] + b.lane[i])
MOE_LANEWISE(Sub, (const Lanes& a, const Lanes& b), a.lane[i] - b.lane[i])
MOE_LANEWISE(Mul, (const Lanes& a, const Lanes& b), a.lane[i] * b.lane[i])
MOE_LANEWISE(Div, (const Lanes& a, const Lanes& b), a.lane[i] / b.lane[i])
MOE_LANEWISE(Neg, (const Lanes& a), -a.lane[i])
MOE_LANEWISE(Max, (const Lanes& a, const Lanes& b), a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i])
/// Limits under which NaN stays NaN.
MOE_LANEWISE(AtMost, (const Lanes& a, const Lanes& limit), a.lane[i] > limit.lane[i] ? limit.lane[i] : a.lane[i])
MOE_LANEWISE(AtLeast, (const Lanes& a, const Lanes& limit), a.lane[i] < limit.lane[i] ? limit.lane[i] : a.lane[i])
MOE_LANEWISE(Exp, (const Lanes& a), moe::Exp(a.lane[i]))
/// Lanes [first, last) of `a`, `outside` elsewhere.
MOE_LANEWISE(Within, (const Lanes& a, std::size_t first, std::size_t last, float outside),
             i >= first && i < last ? a.lane[i] : outside)
#undef MOE_LANEWISE

/// Lane j + lane j + 8, then + 4, + 2, + 1.
HWY_INLINE float SumOfLanes(Lanes lanes) {
  for (std::size_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::size_t i = 0; i < width; ++i) lanes.lane[i] += lanes.lane[i + width];
  }
  return lanes.lane[0];
}

HWY_INLINE float MaxOfLanes(Lanes lanes) {
  for (std::size_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::size_t i = 0; i < width; ++i) lanes.lane[i] = std::max(lanes.lane[i], lanes.lane[i + width]);
  }
  return lanes.lane[0];
}

#else  // Highway with a fused multiply-add

static_assert(HWY_NATIVE_FMA);

namespace hn = hwy::HWY_NAMESPACE;
using Tag = hn::CappedTag<float, kLanes>;
using Register = hn::Vec<Tag>;
inline constexpr std::size_t kRegisterLanes = HWY_MIN(HWY_LANES(float), kLanes);
inline constexpr std::size_t kRegistersPerLanes = kLanes / kRegisterLanes;

struct Lanes {
  Register reg[kRegistersPerLanes];  // lane i is lane i % kRegisterLanes of register i / kRegisterLanes
};

/// Which of the first `count` lanes lie in register `i`: a count from 0 to kRegisterLanes.
HWY_INLINE std::size_t CountIn(std::size_t i, std::size_t count) {
  const std::size_t before = i * kRegisterLanes;
  return count <= before ? 0 : HWY_MIN(count - before, kRegisterLanes);
}

HWY_INLINE Lanes Broadcast(float value) {
  Lanes result;
  MOE_UNROLL for (Register& reg : result.reg) reg = hn::Set(Tag(), value);
  return result;
}

HWY_INLINE Lanes Load(const float* from) {
  Lanes result;
  MOE_UNROLL for (std::size_t i = 0; i < kRegistersPerLanes; ++i) {
    result.reg[i] = hn::LoadU(Tag(), from + i * kRegisterLanes);
  }
  return result;
}

/// Reads `count` floats, no memory past them; the other lanes are 0.
HWY_INLINE Lanes LoadFirst(const float* from, std::size_t count) {
  Lanes result = Broadcast(0);
  MOE_UNROLL for (std::size_t i = 0; i < kRegistersPerLanes; ++i) {
    const std::size_t here = CountIn(i, count);
    if (here == 0) break;
    result.reg[i] = hn::MaskedLoad(hn::FirstN(Tag(), here), Tag(), from + i * kRegisterLanes);
  }
  return result;
}

HWY_INLINE void Store(const Lanes& lanes, float* to) {
  MOE_UNROLL for (std::size_t i = 0; i < kRegistersPerLanes; ++i) {
    hn::StoreU(lanes.reg[i], Tag(), to + i * kRegisterLanes);
  }
}

HWY_INLINE void StoreFirst(const Lanes& lanes, float* to, std::size_t count) {
  MOE_UNROLL for (std::size_t i = 0; i < kRegistersPerLanes; ++i) {
    const std::size_t here = CountIn(i, count);
    if (here == 0) break;
    hn::BlendedStore(lanes.reg[i], hn::FirstN(Tag(), here), Tag(), to + i * kRegisterLanes);
  }
}

/// Sixteen weights, widened exactly: bf16 by a shift, f16 by the conversion instruction.
template <WeightType kType>
HWY_INLINE Lanes LoadWeights(const std::byte* from) {
  Lanes result;
  MOE_UNROLL for (std::size_t i = 0; i < kRegistersPerLanes; ++i) {
    if constexpr (kType == WeightType::kF32) {
      result.reg[i] = hn::LoadU(Tag(), reinterpret_cast<const float*>(from) + i * kRegisterLanes);
    } else if constexpr (kType == WeightType::kBf16) {
      const hn::Rebind<hwy::bfloat16_t, Tag> narrow;
      const auto* source = reinterpret_cast<const hwy::bfloat16_t*>(from) + i * kRegisterLanes;
      result.reg[i] = hn::PromoteTo(Tag(), hn::LoadU(narrow, source));
    } else {
      const hn::Rebind<hwy::float16_t, Tag> narrow;
      const auto* source = reinterpret_cast<const hwy::float16_t*>(from) + i * kRegisterLanes;
      result.reg[i] = hn::PromoteTo(Tag(), hn::LoadU(narrow, source));
    }
  }
  return result;
}

/// exp of one register: the steps of kernels/exp.h.
HWY_INLINE Register ExpOfRegister(Register x) {
  using namespace exp_constants;
  const Tag tag;
  const hn::RebindToUnsigned<Tag> bits_tag;
  const Register highest = hn::Set(tag, kExpHighest);
  const Register clamped = hn::IfThenElse(hn::Gt(x, highest), highest, x);
  const Register shifted = hn::MulAdd(clamped, hn::Set(tag, kLog2E), hn::Set(tag, kRound));
  const Register n = hn::Sub(shifted, hn::Set(tag, kRound));
  const Register r = hn::MulAdd(n, hn::Set(tag, -kLn2Low), hn::MulAdd(n, hn::Set(tag, -kLn2High), clamped));
  Register q = hn::MulAdd(hn::Set(tag, kQ4), r, hn::Set(tag, kQ3));
  q = hn::MulAdd(q, r, hn::Set(tag, kQ2));
  q = hn::MulAdd(q, r, hn::Set(tag, kQ1));
  q = hn::MulAdd(q, r, hn::Set(tag, kQ0));
  const Register e = hn::Add(hn::MulAdd(hn::Mul(r, r), q, r), hn::Set(tag, 1.0f));
  const auto exponent = hn::Add(hn::BitCast(bits_tag, shifted), hn::Set(bits_tag, kExponentBias));
  const Register scale = hn::BitCast(tag, hn::ShiftLeft<kExponentShift>(exponent));
  const Register result = hn::Mul(hn::Add(e, e), scale);
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(tag, kExpLowest)), result);
}

#define MOE_REGISTERWISE(NAME, PARAMETERS, EXPRESSION)                                          \
  HWY_INLINE Lanes NAME PARAMETERS {                                                            \
    Lanes result;                                                                               \
    MOE_UNROLL for (std::size_t i = 0; i < kRegistersPerLanes; ++i) result.reg[i] = EXPRESSION; \
    return result;                                                                              \
  }
MOE_REGISTERWISE(Fma, (const Lanes& a, const Lanes& b, const Lanes& c), hn::MulAdd(a.reg[i], b.reg[i], c.reg[i]))
MOE_REGISTERWISE(Add, (const Lanes& a, const Lanes& b), hn::Add(a.reg[i], b.reg[i]))
MOE_REGISTERWISE(Sub, (const Lanes& a, const Lanes& b), hn::Sub(a.reg[i], b.reg[i]))
MOE_REGISTERWISE(Mul, (const Lanes& a, const Lanes& b), hn::Mul(a.reg[i], b.reg[i]))
MOE_REGISTERWISE(Div, (const Lanes& a, const Lanes& b), hn::Div(a.reg[i], b.reg[i]))
MOE_REGISTERWISE(Neg, (const Lanes& a), hn::Neg(a.reg[i]))
MOE_REGISTERWISE(Max, (const Lanes& a, const Lanes& b), hn::Max(a.reg[i], b.reg[i]))
/// Limits under which NaN stays NaN, which the instructions for minimum and maximum do not promise.
MOE_REGISTERWISE(AtMost, (const Lanes& a, const Lanes& limit),
                 hn::IfThenElse(hn::Gt(a.reg[i], limit.reg[i]), limit.reg[i], a.reg[i]))
MOE_REGISTERWISE(AtLeast, (const Lanes& a, const Lanes& limit),
                 hn::IfThenElse(hn::Lt(a.reg[i], limit.reg[i]), limit.reg[i], a.reg[i]))
MOE_REGISTERWISE(Exp, (const Lanes& a), ExpOfRegister(a.reg[i]))
/// Lanes [first, last) of `a`, `outside` elsewhere.
MOE_REGISTERWISE(Within, (const Lanes& a, std::size_t first, std::size_t last, float outside),
                 hn::IfThenElse(hn::AndNot(hn::FirstN(Tag(), CountIn(i, first)), hn::FirstN(Tag(), CountIn(i, last))),
                                a.reg[i], hn::Set(Tag(), outside)))
#undef MOE_REGISTERWISE

struct AddOperation {
  template <typename V>
  static HWY_INLINE V Apply(V a, V b) {
    return hn::Add(a, b);
  }
};

struct MaxOperation {
  template <typename V>
  static HWY_INLINE V Apply(V a, V b) {
    return hn::Max(a, b);
  }
};

/// Halves a register, lane j with lane j + width / 2, down to one lane.
template <typename Operation, typename D>
HWY_INLINE float FoldRegister(D tag, hn::Vec<D> value) {
  if constexpr (hn::MaxLanes(tag) == 1) {
    return hn::GetLane(value);
  } else {
    const hn::Half<D> half;
    return FoldRegister<Operation>(half, Operation::Apply(hn::LowerHalf(half, value), hn::UpperHalf(half, value)));
  }
}

template <typename Operation>
HWY_INLINE float Fold(Lanes lanes) {
  MOE_UNROLL for (std::size_t width = kRegistersPerLanes / 2; width > 0; width /= 2) {
    for (std::size_t i = 0; i < width; ++i) lanes.reg[i] = Operation::Apply(lanes.reg[i], lanes.reg[i + width]);
  }
  return FoldRegister<Operation>(Tag(), lanes.reg[0]);
}

/// Lane j + lane j + 8, then + 4, + 2, + 1.
HWY_INLINE float SumOfLanes(const Lanes& lanes) { return Fold<AddOperation>(lanes); }
HWY_INLINE float MaxOfLanes(const Lanes& lanes) { return Fold<MaxOperation>(lanes); }

#endif  // MOE_PORTABLE_LANES

/// `count` floats from memory, all sixteen in one go when there are as many.
HWY_INLINE Lanes LoadUpTo16(const float* from, std::size_t count) {
  return count >= kLanes ? Load(from) : LoadFirst(from, count);
}

HWY_INLINE void StoreUpTo16(const Lanes& lanes, float* to, std::size_t count) {
  if (count >= kLanes) {
    Store(lanes, to);
  } else {
    StoreFirst(lanes, to, count);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#endif  // MOE_KERNELS_LANES_INL_H_
