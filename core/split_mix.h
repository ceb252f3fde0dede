// The mixing function that all our reproducible random numbers are made with.
#pragma once

#include <cstdint>

namespace moe {

/// 2^64 / golden ratio, odd: what SplitMix64's state grows by.
inline constexpr std::uint64_t kSplitMixStep = 0x9e3779b97f4a7c15;

/// SplitMix64's finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014): every
/// bit of the input moves every bit of the output, the same on every machine and standard library.
constexpr std::uint64_t MixBits(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace moe
