#include "bench/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/check.h"

namespace moe {

double Percentile(std::span<const double> sorted, double percent) {
  MOE_CHECK(!sorted.empty() && percent >= 0 && percent <= 100);
  const double position = percent / 100 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (position - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

std::optional<Summary> Summarize(std::vector<double> values) {
  if (values.empty()) return std::nullopt;
  std::sort(values.begin(), values.end());
  const auto count = static_cast<double>(values.size());
  double sum = 0;
  for (const double value : values) sum += value;
  const double mean = sum / count;
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return Summary{.mean = mean,
                 .median = Percentile(values, 50),
                 .std = std::sqrt(squares / count),
                 .p50 = Percentile(values, 50),
                 .p90 = Percentile(values, 90),
                 .p95 = Percentile(values, 95),
                 .p99 = Percentile(values, 99)};
}

}  // namespace moe
