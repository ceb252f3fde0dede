// Experts that move at random between random steps, over any transport: everything that comes out keeps its bits.
#pragma once

#include <cstdint>
#include <random>

#include "placement/placement.h"
#include "tests/router/engine_harness.h"

namespace moe {

/// Every expert of each layer on a random worker, some on more, in random slots. Of the same shape as `like`.
Placement RandomPlacement(const Placement& like, std::mt19937_64& random);

struct MigrationCase {
  HarnessOptions options;  // its on_load is the test's
  std::uint64_t seed = 0;
  int batches = 4;        // of MixedRequests
  bool failures = false;  // one load in some fails, or comes out changed
};

/// Migrates for as long as requests run, each time to another random placement, and compares everything with the
/// plainest run; then that workers and metrics agree with the placement in force.
void ExpectPlainBitsWhileMigrating(const MigrationCase& c);

}  // namespace moe
