// Draws a token's experts so that each expert has a given probability to be among them, at the price of one hash and k
// look-ups: systematic sampling (Madow 1949) over tables that are made at start.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/routing_override.h"

namespace moe {

/// Every bit of (seed, a, b, c) moves every bit of it.
std::uint64_t HashOf(std::uint64_t seed, std::uint64_t a, std::uint64_t b = 0, std::uint64_t c = 0);

/// The probabilities, of sum `count`, that are in proportion to `weights` but for those that would be above 1, which
/// are 1. At least `count` weights are above 0.
std::vector<double> InclusionProbabilities(std::span<const double> weights, int count);

/// `popularity` (num_experts): relative, the most popular expert's first. Each layer gives the ranks to experts of its
/// own.
std::shared_ptr<const RoutingOverride> MakeRoutingTables(std::span<const double> popularity, std::uint64_t seed,
                                                         const ModelConfig& config);

}  // namespace moe
