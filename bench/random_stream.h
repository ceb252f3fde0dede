// A small generator of random numbers, the same on every machine and standard library: a workload is made of these, so
// that a seed names it exactly.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "core/split_mix.h"

namespace moe {

/// SplitMix64 (core/split_mix.h). A stream is named by a list of numbers, for example (seed, purpose, index), and is
/// independent of every other list's.
class RandomStream {
 public:
  RandomStream(std::initializer_list<std::uint64_t> name) {
    for (const std::uint64_t part : name) state_ = MixBits(state_ + kSplitMixStep) ^ MixBits(part + kSplitMixStep);
  }

  std::uint64_t Next() {
    state_ += kSplitMixStep;
    return MixBits(state_);
  }

  /// Uniform in [0, n), n >= 1. The bias of at most n / 2^32 does not matter to a workload.
  std::uint32_t Below(std::uint32_t n) { return static_cast<std::uint32_t>((Next() >> 32) * n >> 32); }

  /// Exponentially distributed with mean 1: the gap of a Poisson process of rate 1.
  double Exponential() {
    const double unit = static_cast<double>((Next() >> 11) + 1) * 0x1p-53;  // in (0, 1], so that the log is finite
    return -std::log(unit);
  }

 private:
  std::uint64_t state_ = 0;
};

}  // namespace moe
