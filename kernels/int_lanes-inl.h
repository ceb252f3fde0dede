// Sixteen int32 lanes and the dot products of four bytes that feed them, on any instruction set; the only place with
// intrinsics of one. All forms are exact, so that a sum's bits do not depend on which of them computed it.
#if defined(MOE_KERNELS_INT_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_KERNELS_INT_LANES_INL_H_
#undef MOE_KERNELS_INT_LANES_INL_H_
#else
#define MOE_KERNELS_INT_LANES_INL_H_
#endif

#include <bit>

#include "kernels/lanes-inl.h"
#include "kernels/quantize.h"

// Highway names the instruction sets VNNI belongs to at run time, but not to the compiler (1.0.3).
#undef MOE_INT_VNNI
#if HWY_TARGET == HWY_AVX3_DL
#define MOE_INT_VNNI 1
#else
#define MOE_INT_VNNI 0
#endif

HWY_BEFORE_NAMESPACE();
namespace moe {
namespace HWY_NAMESPACE {

/// AddDot sums stored weights less ZeroPoint, or as they are: then ZeroPoint times the sum of the x is taken off
/// elsewhere, once for a group.
template <WeightType kType>
inline constexpr bool kDotTakesStored = MOE_INT_VNNI || MOE_PORTABLE_LANES || kType == WeightType::kInt4;

/// Whether the sums of a group stay sums of two products in 16 bits until the group ends: one instruction less for each
/// four products. Stored int4 weights are at most 15, so that a group's 8 times 2 * 15 * 127 = 30480 fit.
template <WeightType kType>
inline constexpr bool kSumsPairs = !MOE_INT_VNNI && !MOE_PORTABLE_LANES && kType == WeightType::kInt4;
static_assert(GroupSize(WeightType::kInt4) / 4 * 2 * 15 * 127 <= 32767);

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL

struct IntLanes {
  __m512i reg;
};
/// Four stored weights of each of sixteen outputs, [16][4] bytes.
struct Quads {
  __m512i reg;
};

HWY_INLINE IntLanes BroadcastInt(std::int32_t value) { return {_mm512_set1_epi32(value)}; }
HWY_INLINE IntLanes LoadInts(const std::int32_t* from) { return {_mm512_loadu_si512(from)}; }
HWY_INLINE Quads LoadQuads(const std::byte* from) { return {_mm512_loadu_si512(from)}; }
HWY_INLINE void StoreQuads(const Quads& quads, std::byte* to) { _mm512_storeu_si512(to, quads.reg); }
HWY_INLINE Quads LowNibbles(const Quads& packed) { return {_mm512_and_si512(packed.reg, _mm512_set1_epi8(0x0f))}; }
HWY_INLINE Quads HighNibbles(const Quads& packed) {
  return {_mm512_and_si512(_mm512_srli_epi16(packed.reg, 4), _mm512_set1_epi8(0x0f))};
}
HWY_INLINE Lanes ToFloat(const IntLanes& lanes) {
  Lanes result;
  result.reg[0].raw = _mm512_cvtepi32_ps(lanes.reg);
  return result;
}
/// The lowest eight bits of each lane's representation.
HWY_INLINE void StoreLowestBytes(const Lanes& lanes, std::uint8_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_castps_si512(lanes.reg[0].raw)));
}

/// sums[i] += sum over j of weights[i][j] * x[j]; the four x are the bytes of `x`. Sums begin as zeros, and GroupDots
/// has their values.
template <WeightType kType>
HWY_INLINE void AddDot(IntLanes& sums, const Quads& weights, std::int32_t x) {
  const __m512i values = _mm512_set1_epi32(x);
#if MOE_INT_VNNI
  asm("vpdpbusd %2, %1, %0" : "+v"(sums.reg) : "v"(weights.reg), "v"(values));
#else
  __m512i pairs;  // sums of two products, which fit 16 bits: 2 * 15 * 127, or 2 * 127 * 127
  if constexpr (kDotTakesStored<kType>) {
    pairs = _mm512_maddubs_epi16(weights.reg, values);
  } else {  // |q| times x with the sign of q
    const __m512i q = _mm512_xor_si512(weights.reg, _mm512_set1_epi8(-128));
    const __m512i signed_values = _mm512_mask_sub_epi8(values, _mm512_movepi8_mask(q), _mm512_setzero_si512(), values);
    pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(q), signed_values);
  }
  if constexpr (kSumsPairs<kType>) {
    sums.reg = _mm512_add_epi16(sums.reg, pairs);
  } else {
    sums.reg = _mm512_add_epi32(sums.reg, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
#endif
}
/// The sums of a group, plus `start`.
template <WeightType kType>
HWY_INLINE IntLanes GroupDots(const IntLanes& sums, std::int32_t start) {
  const __m512i whole = kSumsPairs<kType> ? _mm512_madd_epi16(sums.reg, _mm512_set1_epi16(1)) : sums.reg;
  return {_mm512_add_epi32(whole, _mm512_set1_epi32(start))};
}

#elif HWY_TARGET == HWY_AVX2

struct IntLanes {
  __m256i reg[2];
};
/// Four stored weights of each of sixteen outputs, [16][4] bytes.
struct Quads {
  __m256i reg[2];
};

HWY_INLINE IntLanes BroadcastInt(std::int32_t value) { return {{_mm256_set1_epi32(value), _mm256_set1_epi32(value)}}; }
HWY_INLINE Quads LoadQuads(const std::byte* from) {
  const auto* halves = reinterpret_cast<const __m256i*>(from);
  return {{_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)}};
}
HWY_INLINE Quads LowNibbles(const Quads& packed) {
  const __m256i mask = _mm256_set1_epi8(0x0f);
  return {{_mm256_and_si256(packed.reg[0], mask), _mm256_and_si256(packed.reg[1], mask)}};
}
HWY_INLINE Quads HighNibbles(const Quads& packed) {
  return LowNibbles({{_mm256_srli_epi16(packed.reg[0], 4), _mm256_srli_epi16(packed.reg[1], 4)}});
}
HWY_INLINE Lanes ToFloat(const IntLanes& lanes) {
  Lanes result;
  MOE_UNROLL for (int i = 0; i < 2; ++i) result.reg[i].raw = _mm256_cvtepi32_ps(lanes.reg[i]);
  return result;
}
/// The lowest eight bits of each lane's representation.
HWY_INLINE void StoreLowestBytes(const Lanes& lanes, std::uint8_t* to) {
  const __m256i mask = _mm256_set1_epi32(0xff);
  const __m256i low = _mm256_and_si256(_mm256_castps_si256(lanes.reg[0].raw), mask);
  const __m256i high = _mm256_and_si256(_mm256_castps_si256(lanes.reg[1].raw), mask);
  // Packing works on halves of 128 bits: the permutation puts the four quarters in order.
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0b11011000);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

/// sums[i] += sum over j of weights[i][j] * x[j]; the four x are the bytes of `x`. Sums begin as zeros, and GroupDots
/// has their values. The additions are written as instructions: GCC would add up several products first, and has not
/// the registers to keep them in.
template <WeightType kType>
HWY_INLINE void AddDot(IntLanes& sums, const Quads& weights, std::int32_t x) {
  const __m256i values = _mm256_set1_epi32(x);
  MOE_UNROLL for (int i = 0; i < 2; ++i) {
    __m256i pairs;  // sums of two products, which fit 16 bits: 2 * 15 * 127, or 2 * 127 * 127
    if constexpr (kDotTakesStored<kType>) {
      pairs = _mm256_maddubs_epi16(weights.reg[i], values);
    } else {  // |q| times x with the sign of q
      const __m256i q = _mm256_xor_si256(weights.reg[i], _mm256_set1_epi8(-128));
      pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(values, q));
    }
    if constexpr (kSumsPairs<kType>) {
      asm("vpaddw %1, %0, %0" : "+x"(sums.reg[i]) : "x"(pairs));
    } else {
      asm("vpaddd %1, %0, %0" : "+x"(sums.reg[i]) : "x"(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
    }
  }
}
/// The sums of a group, plus `start`.
template <WeightType kType>
HWY_INLINE IntLanes GroupDots(const IntLanes& sums, std::int32_t start) {
  IntLanes dots;
  MOE_UNROLL for (int i = 0; i < 2; ++i) {
    const __m256i whole = kSumsPairs<kType> ? _mm256_madd_epi16(sums.reg[i], _mm256_set1_epi16(1)) : sums.reg[i];
    dots.reg[i] = _mm256_add_epi32(whole, _mm256_set1_epi32(start));
  }
  return dots;
}

#else  // plain C++

struct IntLanes {
  std::int32_t lane[kLanes];
};
/// Four stored weights of each of sixteen outputs.
struct Quads {
  std::uint8_t byte[kLanes][4];
};

HWY_INLINE IntLanes BroadcastInt(std::int32_t value) {
  IntLanes result;
  for (std::int32_t& lane : result.lane) lane = value;
  return result;
}
HWY_INLINE Quads LoadQuads(const std::byte* from) {
  Quads result;
  std::memcpy(result.byte, from, sizeof(result.byte));
  return result;
}
HWY_INLINE Quads LowNibbles(Quads packed) {
  for (auto& quad : packed.byte) {
    for (std::uint8_t& byte : quad) byte &= 0x0f;
  }
  return packed;
}
HWY_INLINE Quads HighNibbles(Quads packed) {
  for (auto& quad : packed.byte) {
    for (std::uint8_t& byte : quad) byte = static_cast<std::uint8_t>(byte >> 4);
  }
  return packed;
}
HWY_INLINE Lanes ToFloat(const IntLanes& lanes) {
  float values[kLanes];
  for (std::size_t i = 0; i < kLanes; ++i) values[i] = static_cast<float>(lanes.lane[i]);
  return Load(values);
}
/// The lowest eight bits of each lane's representation.
HWY_INLINE void StoreLowestBytes(const Lanes& lanes, std::uint8_t* to) {
  float values[kLanes];
  Store(lanes, values);
  for (std::size_t i = 0; i < kLanes; ++i) to[i] = static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(values[i]));
}

/// sums[i] += sum over j of weights[i][j] * x[j]; the four x are the bytes of `x`. Sums begin as zeros, and GroupDots
/// has their values.
template <WeightType kType>
HWY_INLINE void AddDot(IntLanes& sums, const Quads& weights, std::int32_t x) {
  std::int8_t values[4];
  std::memcpy(values, &x, sizeof(values));
  for (std::size_t i = 0; i < kLanes; ++i) {
    for (std::size_t j = 0; j < 4; ++j) sums.lane[i] += weights.byte[i][j] * values[j];
  }
}
/// The sums of a group, plus `start`.
template <WeightType kType>
HWY_INLINE IntLanes GroupDots(IntLanes sums, std::int32_t start) {
  for (std::int32_t& lane : sums.lane) lane += start;
  return sums;
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#endif  // MOE_KERNELS_INT_LANES_INL_H_
