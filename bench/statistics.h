// Summaries of measured values, by the definitions that numpy uses, so that figures can be set beside other tools'.
#pragma once

#include <optional>
#include <span>
#include <vector>

namespace moe {

/// Unit: that of the values.
struct Summary {
  double mean = 0;
  double median = 0;
  double std = 0;  // of the population (divided by n), as numpy.std
  double p50 = 0;
  double p90 = 0;
  double p95 = 0;
  double p99 = 0;
};

/// The value at `percent` (0…100) of ascending, non-empty `sorted`, linear between the two nearest (numpy's default).
double Percentile(std::span<const double> sorted, double percent);

/// Nothing when there are no values: no figure is better than a zero that looks like one.
std::optional<Summary> Summarize(std::vector<double> values);

}  // namespace moe
