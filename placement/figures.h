// Figures of imbalance over counts of tokens, by the names that the field uses. Definitions: docs/metrics.md.
#pragma once

#include <cstdint>
#include <span>

namespace moe {

/// mean / max; 1 is perfect, and the value for no tokens at all.
double Balancedness(std::span<const std::uint64_t> tokens);
/// The same of shares, which need not be whole.
double Balancedness(std::span<const double> tokens);
/// (max − mean) / mean; 0 is perfect, and the value for no tokens at all, as for cv and gini.
double Imbalance(std::span<const double> tokens);
/// Standard deviation (of all, not of a sample) / mean.
double CoefficientOfVariation(std::span<const double> tokens);
/// (Σx)² / (n Σx²), from 1/n to 1; 1 for no tokens.
double JainIndex(std::span<const double> tokens);
/// Σ (2i − n − 1) x₍ᵢ₎ / (n Σx), ascending.
double Gini(std::span<const double> tokens);
/// The same of what is ascending already; allocates nothing.
double GiniOfAscending(std::span<const double> tokens);
/// −Σ p ln p / ln n with p = tokens / sum; 1 is uniform, and the value for no tokens or a single expert.
double NormalizedEntropy(std::span<const std::uint64_t> tokens);
double NormalizedEntropy(std::span<const double> tokens);
/// Experts without a token; 0 when nobody had any.
int DeadExperts(std::span<const std::uint64_t> tokens);
/// Entropy under 0.5, or fewer than `experts_per_token` experts with over 90 % of the tokens.
bool Collapsed(std::span<const std::uint64_t> tokens, int experts_per_token);

}  // namespace moe
