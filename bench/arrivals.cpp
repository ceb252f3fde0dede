#include "bench/arrivals.h"

#include <cmath>
#include <cstddef>

#include "bench/random_stream.h"
#include "core/check.h"

namespace moe {
namespace {

constexpr std::uint64_t kArrivalStream = 0x6172726976616c73;  // apart from the prompts' streams

}  // namespace

std::vector<double> ArrivalOffsets(const ArrivalOptions& options) {
  MOE_CHECK(options.rate > 0);
  std::vector<double> offsets(options.count, 0.0);
  if (std::isinf(options.rate)) return offsets;
  RandomStream random{options.seed, kArrivalStream};
  double gaps = 0;  // sum so far, in units of the mean gap
  for (std::size_t i = 1; i < offsets.size(); ++i) {
    gaps += options.kind == Arrival::kPoisson ? random.Exponential() : 1.0;
    offsets[i] = gaps / options.rate;
  }
  return offsets;
}

}  // namespace moe
