// What the measured seconds of an exchange say: ratios, bandwidths, latency.
#include <algorithm>

#include "bench/statistics.h"
#include "bench/transport/exchange_bench.h"

namespace moe {

double ExchangeResult::ratio(std::size_t b) const {
  return Percentile(paths[0].exchanges, 50) / Percentile(paths[b].exchanges, 50);
}

std::vector<double> ExchangeResult::turn_ratios(std::size_t b) const {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < paths[0].turn_medians.size(); ++i)
    ratios.push_back(paths[0].turn_medians[i] / paths[b].turn_medians[i]);
  std::ranges::sort(ratios);
  return ratios;
}

// nccl-tests' size of a scatter, and of a gather, is that of the root's buffer: a part for each of the n ranks, its own
// included.
double ExchangeResult::algorithm_bandwidth(std::size_t p) const {
  const double ranks = test.workers + 1;
  const auto part = static_cast<double>(test.bytes.request + test.bytes.reply);
  return ranks * part / Percentile(paths[p].exchanges, 50);
}

double ExchangeResult::bus_bandwidth(std::size_t p) const {
  const double ranks = test.workers + 1;
  return algorithm_bandwidth(p) * (ranks - 1) / ranks;
}

std::optional<double> ExchangeResult::one_way_latency(std::size_t p) const {
  if (!test.latency) return std::nullopt;
  return Percentile(paths[p].exchanges, 50) / 2;
}

}  // namespace moe
