// When the calls of an open loop are due.
#pragma once

#include <cstdint>
#include <vector>

namespace moe {

enum class Arrival { kPoisson, kFixed };

struct ArrivalOptions {
  Arrival kind = Arrival::kPoisson;
  double rate = 0;  // calls a second, > 0; infinite: all at once
  std::uint32_t count = 0;
  std::uint64_t seed = 0;
};

/// Seconds after the start of the run, ascending, the first one 0; gaps are 1 / rate (fixed) or exponential with that
/// mean (Poisson).
std::vector<double> ArrivalOffsets(const ArrivalOptions& options);

}  // namespace moe
