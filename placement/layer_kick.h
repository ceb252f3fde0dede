// A few random changes to an assignment, to search on from elsewhere.
#pragma once

#include <cstdint>

#include "core/split_mix.h"
#include "placement/layer_assignment.h"

namespace moe {

/// The same numbers in every run (SplitMix64, core/split_mix.h).
class KickStream {
 public:
  /// Uniform in [0, n), n >= 1, but for a bias that does not matter here.
  int Below(int n) {
    state_ += kSplitMixStep;
    return static_cast<int>((MixBits(state_) >> 32) * static_cast<std::uint64_t>(n) >> 32);
  }

 private:
  std::uint64_t state_ = 0;
};

/// Up to four times: a replica of a random expert goes, where it has others, or moves; and a random expert gets one
/// more where there is a slot. Every expert that had a replica keeps one.
void Kick(LayerAssignment& assignment, KickStream& random);

}  // namespace moe
