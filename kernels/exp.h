// The one exp and the one log of the project. The C library's differ in the last bit from machine to machine (it picks
// its own code by CPU), so everything that must give the same bits everywhere uses these. kernels/lanes-inl.h holds the
// same exp for vectors: the same operations in the same order, from the constants here.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>

namespace moe {

/// exp(x) = 2^n e^r with n = round(x / ln 2) and r = x - n ln 2, |r| <= ln 2 / 2 (and a little for rounding).
///
/// - n: adding 1.5 * 2^23 leaves no room for fraction bits, so that the addition itself rounds to an integer, which
///   then also stands in the low bits of the sum.
/// - r: n ln 2 is taken off in two steps, ln 2 = kLn2High + kLn2Low with an error of 2^-54. Each step is fused, so r is
///   off by at most two roundings of numbers below 0.35: 2^-26.
/// - e^r = 1 + (r + r² q(r)). q, of degree 4, is the minimax fit (Remez) of (e^r - 1 - r) / r² weighted by r² / e^r,
///   the relative error of e^r, over |r| <= 1.0001 ln 2 / 2, then rounded to fp32: relative error 3.8e-9, 1/16 of the
///   half ulp 2^-24. Leading 1 and r exact make exp(0) = 1 exact.
/// - The result is scaled as (2 e^r) 2^(n - 1), so that n = 128 needs no power that fp32 cannot hold.
/// The last addition rounds by half an ulp; r and the sum inside add three roundings of numbers below 1/2, 2^-26 each,
/// which are 3/4 of an ulp at most where e^r < 1: 1.25 ulp and the fit. Over all fp32 the worst is 1.0086 ulp.
/// Below kExpLowest the result is 0, not a denormal; above 88.72 it is +infinity; exp(NaN) is NaN.
namespace exp_constants {
inline constexpr float kExpLowest = -86.625f;  // exp gives 2.4e-38, n = -125: normal
inline constexpr float kExpHighest = 89.0f;    // exp overflows from 88.7229 on, n = 128 up to 89.06
inline constexpr float kLog2E = 0x1.715476p+0f;
inline constexpr float kRound = 0x1.8p+23f;
inline constexpr float kLn2High = 0x1.62e430p-1f;
inline constexpr float kLn2Low = -0x1.05c610p-29f;
inline constexpr float kQ0 = 0x1.fffffcp-2f;
inline constexpr float kQ1 = 0x1.555492p-3f;
inline constexpr float kQ2 = 0x1.5558f2p-5f;
inline constexpr float kQ3 = 0x1.1239e2p-7f;
inline constexpr float kQ4 = 0x1.6a2434p-10f;
inline constexpr std::uint32_t kExponentBias = 126;  // of 2^(n - 1)
inline constexpr int kExponentShift = 23;
}  // namespace exp_constants

inline float Exp(float x) {
  using namespace exp_constants;
  const float clamped = x > kExpHighest ? kExpHighest : x;
  const float shifted = std::fma(clamped, kLog2E, kRound);
  const float n = shifted - kRound;
  const float r = std::fma(n, -kLn2Low, std::fma(n, -kLn2High, clamped));
  const float q = std::fma(std::fma(std::fma(std::fma(kQ4, r, kQ3), r, kQ2), r, kQ1), r, kQ0);
  const float e = std::fma(r * r, q, r) + 1.0f;
  const std::uint32_t exponent = std::bit_cast<std::uint32_t>(shifted) + kExponentBias;
  const float result = (e + e) * std::bit_cast<float>(exponent << kExponentShift);
  return x < kExpLowest ? 0.0f : result;
}

/// log(x) of a normal x > 0; -infinity for 0, x itself for +infinity and NaN. x = 2^e m, 1/√2 <= m < √2, and with
/// s = (m - 1) / (m + 1), |s| < 0.1716: log m = 2 (s + s³/3 + s⁵/5 + …). Terms to s¹³ leave 2 s¹⁵/15, below 5e-13;
/// plain double arithmetic, the same everywhere.
inline double Log(float x) {
  if (x == 0) return -std::numeric_limits<double>::infinity();
  if (!(x < std::numeric_limits<float>::infinity())) return static_cast<double>(x);
  constexpr std::uint32_t kHalfRootBits = 0x3f3504f3;  // 1/√2
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x) - kHalfRootBits;
  const int exponent = static_cast<std::int32_t>(bits) >> 23;
  const double m = static_cast<double>(std::bit_cast<float>((bits & 0x007fffffu) + kHalfRootBits));
  const double s = (m - 1) / (m + 1);
  const double s2 = s * s;
  double series = 1.0 / 13;
  for (const double divisor : {11.0, 9.0, 7.0, 5.0, 3.0, 1.0}) series = series * s2 + 1 / divisor;
  return exponent * 0x1.62e42fefa39efp-1 + 2 * s * series;
}

}  // namespace moe
