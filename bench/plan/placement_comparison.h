// Our placement beside eplb's on random loads: who balances better, how near the bound, how much moves when loads
// drift.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bench/random_stream.h"
#include "placement/placement_problem.h"

namespace moe {

/// One random layer, fully named by the seed and the index: 8 … 512 experts (evenly over the logarithm) on 2 … 64
/// workers, up to three redundant slots on each, loads equal but for sampling, uniformly random, or Zipf with an
/// exponent in 0.6 … 1.4 over experts in random order; or a layer of a bundled model with one language or all of them,
/// on at most as many workers as it has experts.
struct ComparisonCase {
  std::uint64_t index = 0;
  std::string_view loads;  // "equal", "uniform", "zipf" or "recorded"
  double exponent = 0;     // zipf
  PlacementProblem problem;
  std::vector<double> drifted;  // (experts): each load times a random number in 0.9 … 1.1
};
/// Tokens of each expert: in proportion to rank^−exponent, the first rank 1e6, over experts in random order.
std::vector<double> ZipfLoads(RandomStream& random, std::size_t experts, double exponent);

ComparisonCase MakeComparisonCase(std::uint64_t seed, std::uint64_t index);

struct ComparedCase {
  double bound = 0;              // the slowest worker's time at least
  double ours = 0;               // of the slowest worker
  double eplb = 0;               // of the slowest device as eplb reckons (two replicas on a device count twice)
  std::uint64_t ours_moved = 0;  // experts, when loads have drifted and each algorithm starts at its own placement
  std::uint64_t eplb_moved = 0;
  double drifted_bound = 0;
  double drifted_ours = 0;
  double drifted_eplb = 0;
};
/// INTERNAL if a placement breaks a rule.
Result<ComparedCase> CompareCase(const ComparisonCase& compared);

}  // namespace moe
