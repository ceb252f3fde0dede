#include "placement/figures.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

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

template <typename Tokens>
double BalancednessOf(std::span<const Tokens> tokens) {
  double sum = 0;
  double most = 0;
  for (const Tokens count : tokens) {
    sum += static_cast<double>(count);
    most = std::max(most, static_cast<double>(count));
  }
  return most == 0 ? 1 : sum / static_cast<double>(tokens.size()) / most;
}

template <typename Tokens>
double EntropyOf(std::span<const Tokens> tokens) {
  double sum = 0;
  for (const Tokens count : tokens) sum += static_cast<double>(count);
  if (sum == 0 || tokens.size() < 2) return 1;
  double entropy = 0;
  for (const Tokens count : tokens) {
    if (count == 0) continue;
    const double p = static_cast<double>(count) / sum;
    entropy -= p * std::log(p);
  }
  return entropy / std::log(static_cast<double>(tokens.size()));
}

double Mean(std::span<const double> tokens) {
  return tokens.empty() ? 0 : std::accumulate(tokens.begin(), tokens.end(), 0.0) / static_cast<double>(tokens.size());
}

}  // namespace

double Balancedness(std::span<const std::uint64_t> tokens) { return BalancednessOf(tokens); }
double Balancedness(std::span<const double> tokens) { return BalancednessOf(tokens); }

double Imbalance(std::span<const double> tokens) {
  const double mean = Mean(tokens);
  return mean == 0 ? 0 : (*std::max_element(tokens.begin(), tokens.end()) - mean) / mean;
}

double CoefficientOfVariation(std::span<const double> tokens) {
  const double mean = Mean(tokens);
  if (mean == 0) return 0;
  double squares = 0;
  for (const double x : tokens) squares += (x - mean) * (x - mean);
  return std::sqrt(squares / static_cast<double>(tokens.size())) / mean;
}

double JainIndex(std::span<const double> tokens) {
  double sum = 0;
  double squares = 0;
  for (const double x : tokens) {
    sum += x;
    squares += x * x;
  }
  return squares == 0 ? 1 : sum * sum / (static_cast<double>(tokens.size()) * squares);
}

double Gini(std::span<const double> tokens) {
  std::vector<double> ascending(tokens.begin(), tokens.end());
  std::sort(ascending.begin(), ascending.end());
  return GiniOfAscending(ascending);
}

double GiniOfAscending(std::span<const double> tokens) {
  const double n = static_cast<double>(tokens.size());
  double weighted = 0;
  double sum = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    weighted += (2 * static_cast<double>(i + 1) - n - 1) * tokens[i];
    sum += tokens[i];
  }
  return sum == 0 ? 0 : weighted / (n * sum);
}

double NormalizedEntropy(std::span<const std::uint64_t> tokens) { return EntropyOf(tokens); }
double NormalizedEntropy(std::span<const double> tokens) { return EntropyOf(tokens); }

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
