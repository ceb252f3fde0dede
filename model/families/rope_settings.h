// Rotary embedding as configurations describe it, in both published styles.
#pragma once

#include <optional>

#include "model/config.h"
#include "model/families/key_reader.h"

namespace moe {

/// What a family's rotation is when no key says otherwise.
struct RopeDefaults {
  double theta = 1e4;
  RopePairing pairing = RopePairing::kHalfSplit;
  /// The share of a head that rotates, in families where partial_rotary_factor sets it; in the others a whole head
  /// does.
  std::optional<double> partial = std::nullopt;
};

struct RopeSettings {
  RopeSpec rope;
  /// What DeepSeek multiplies the scale of q·k by: M(mscale_all_dim)² under yarn, 1 otherwise.
  double score_factor = 1;
};

/// rope_theta, rope_scaling and partial_rotary_factor, or rope_parameters with all of them inside (transformers 5), for
/// heads of `head_dim`. Needs config.context_length; adds to config.warnings.
RopeSettings ReadRope(KeyReader& keys, ModelConfig& config, int head_dim, const RopeDefaults& defaults);

}  // namespace moe
