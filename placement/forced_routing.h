// The skew dial: `--routing uniform|zipf:S|hot:N,SHARE|trace:FILE` puts synthetic routing in place of a model's gate.
// Only which experts a token takes is made up; their weights are the gate's own, by descending weight as ever.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "model/config.h"
#include "model/routing_override.h"

namespace moe {

struct RoutingDial {
  enum class Kind : std::uint8_t {
    kGate,     // the model's own
    kUniform,  // every expert alike
    kZipf,     // the r-th most popular expert of a layer in proportion to r^-exponent
    kHot,      // `hot_experts` of a layer take `share` of its rows, evenly, and the others the rest
    kTrace,    // each token takes the experts of some token of a recorded trace, the same one in every layer
  };
  Kind kind = Kind::kGate;
  double exponent = 0;
  int hot_experts = 0;
  double share = 0;
  std::string trace;  // a file

  bool forced() const { return kind != Kind::kGate; }
};

/// "gate", "uniform", "zipf:S", "hot:N,SHARE" or "trace:FILE"; INVALID_ARGUMENT names what is wrong. S is in [0, 8], N
/// at least 1, SHARE in (0, 1].
Result<RoutingDial> ParseRouting(std::string_view text);
/// As ParseRouting takes it.
std::string RoutingName(const RoutingDial& dial);

/// How much of a layer's rows each expert gets, by popularity: share[0] is the most popular one's. A token takes an
/// expert once, so that no share is above 1 / k: what an expert would have had above that goes to the others in
/// proportion. INVALID_ARGUMENT when the dial itself names shares that are out of reach.
Result<std::vector<double>> RowShares(const RoutingDial& dial, int num_experts, int experts_per_token);

/// Null for kGate. Which experts are the popular ones of a layer follows from (seed, layer); which ones a token takes
/// from (seed, layer, its id, its position) alone. With a grouped gate a token's experts come from as many groups as
/// the gate would take, and the shares hold in the mean as far as that allows. INVALID_ARGUMENT when the model has no
/// experts, or the dial or its trace do not fit it.
Result<std::shared_ptr<const RoutingOverride>> MakeForcedRouting(const RoutingDial& dial, std::uint64_t seed,
                                                                 const ModelConfig& config);

}  // namespace moe
