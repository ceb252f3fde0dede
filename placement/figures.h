// Figures of imbalance over counts of tokens, by the names that the field uses. Definitions: docs/metrics.md.
#pragma once

#include <cstdint>
#include <span>

namespace moe {

/// mean / max; 1 is perfect, and the value for no tokens at all.
double Balancedness(std::span<const std::uint64_t> tokens);
/// −Σ p ln p / ln n with p = tokens / sum; 1 is uniform, and the value for no tokens or a single expert.
double NormalizedEntropy(std::span<const std::uint64_t> tokens);
/// Experts without a token; 0 when nobody had any.
int DeadExperts(std::span<const std::uint64_t> tokens);
/// Entropy under 0.5, or fewer than `experts_per_token` experts with over 90 % of the tokens.
bool Collapsed(std::span<const std::uint64_t> tokens, int experts_per_token);

}  // namespace moe
