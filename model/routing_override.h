// What may take the place of a gate's choice of experts: synthetic routing, for benchmarks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace moe {

class RoutingOverride {
 public:
  virtual ~RoutingOverride() = default;
  /// Overwrites `ids` (experts_per_token), distinct ones, for the token at `position` of its sequence. Nothing else may
  /// count, so that a token's experts depend neither on who computes it nor on what is computed beside it. By any
  /// number of threads at a time; does not allocate. `layer` is absolute.
  virtual void Choose(std::size_t layer, std::uint32_t token, std::uint32_t position,
                      std::span<std::int32_t> ids) const = 0;
};

}  // namespace moe
