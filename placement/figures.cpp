#include "placement/figures.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace moe {
namespace {

// A layer that spreads its tokens over the square root of its experts evenly has entropy 0.5.
constexpr double kCollapsedEntropy = 0.5;
constexpr double kCollapsedShare = 0.9;

std::uint64_t Sum(std::span<const std::uint64_t> tokens) {
  return std::accumulate(tokens.begin(), tokens.end(), std::uint64_t{0});
}

// Of the `count` largest. No copy is sorted: this runs between two steps, and those allocate nothing.
std::uint64_t SumOfLargest(std::span<const std::uint64_t> tokens, std::size_t count) {
  std::uint64_t sum = 0;
  std::uint64_t above = std::numeric_limits<std::uint64_t>::max();  // values from here on are in the sum
  while (count > 0) {
    std::uint64_t largest = 0;
    std::size_t times = 0;
    for (const std::uint64_t value : tokens) {
      if (value >= above || value < largest) continue;
      times = value > largest ? 1 : times + 1;
      largest = value;
    }
    if (times == 0) break;
    times = std::min(times, count);
    sum += largest * times;
    count -= times;
    above = largest;
  }
  return sum;
}

}  // namespace

double Balancedness(std::span<const std::uint64_t> tokens) {
  const std::uint64_t sum = Sum(tokens);
  if (sum == 0) return 1;
  const double mean = static_cast<double>(sum) / static_cast<double>(tokens.size());
  return mean / static_cast<double>(*std::max_element(tokens.begin(), tokens.end()));
}

double NormalizedEntropy(std::span<const std::uint64_t> tokens) {
  const std::uint64_t sum = Sum(tokens);
  if (sum == 0 || tokens.size() < 2) return 1;
  double entropy = 0;
  for (const std::uint64_t count : tokens) {
    if (count == 0) continue;
    const double p = static_cast<double>(count) / static_cast<double>(sum);
    entropy -= p * std::log(p);
  }
  return entropy / std::log(static_cast<double>(tokens.size()));
}

int DeadExperts(std::span<const std::uint64_t> tokens) {
  if (Sum(tokens) == 0) return 0;
  return static_cast<int>(std::count(tokens.begin(), tokens.end(), 0u));
}

bool Collapsed(std::span<const std::uint64_t> tokens, int experts_per_token) {
  const std::uint64_t sum = Sum(tokens);
  if (sum == 0) return false;
  if (NormalizedEntropy(tokens) < kCollapsedEntropy) return true;
  const std::uint64_t most = SumOfLargest(tokens, static_cast<std::size_t>(std::max(0, experts_per_token - 1)));
  return static_cast<double>(most) > kCollapsedShare * static_cast<double>(sum);
}

}  // namespace moe
