#include "placement/routing_health.h"

#include <numeric>

#include "placement/figures.h"

namespace moe {

RoutingHealth::RoutingHealth(std::size_t layers, std::size_t experts, int experts_per_token)
    : experts_(experts), experts_per_token_(experts_per_token), layers_(layers), dead_(layers * experts) {
  changes_.reserve(2 * layers);
}

std::span<const RoutingHealth::Change> RoutingHealth::Update(const LoadWindow& window) {
  changes_.clear();
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    const std::span<const std::uint64_t> tokens = window.layer(layer);
    const std::uint64_t sum = std::accumulate(tokens.begin(), tokens.end(), std::uint64_t{0});
    if (sum < kEvidence * experts_) continue;
    JudgeExperts(layer, tokens, sum);
    JudgeLayer(layer, tokens, window.tokens_ever(layer));
  }
  return changes_;
}

void RoutingHealth::JudgeExperts(std::size_t layer, std::span<const std::uint64_t> tokens, std::uint64_t sum) {
  const double alive = kAliveShare * static_cast<double>(sum) / static_cast<double>(experts_);
  int dead = 0;
  for (std::size_t expert = 0; expert < experts_; ++expert) {
    std::uint8_t& flag = dead_[layer * experts_ + expert];
    if (tokens[expert] == 0) {
      flag = 1;
    } else if (static_cast<double>(tokens[expert]) >= alive) {
      flag = 0;
    }
    dead += flag;
  }
  const bool was = layers_[layer].dead > 0;
  layers_[layer].dead = dead;
  if (was != (dead > 0)) changes_.push_back({.layer = layer, .raised = dead > 0, .dead_experts = dead});
}

void RoutingHealth::JudgeLayer(std::size_t layer, std::span<const std::uint64_t> tokens, std::uint64_t ever) {
  Layer& state = layers_[layer];
  const bool collapsed = Collapsed(tokens, experts_per_token_);
  const auto change = [&](bool raised) {
    state = {.collapsed = raised, .dead = state.dead};
    changes_.push_back({.layer = layer, .collapse = true, .raised = raised, .dead_experts = state.dead});
  };
  if (!state.collapsed) {
    if (collapsed) change(true);
    return;
  }
  if (collapsed || NormalizedEntropy(tokens) < kRecoveredEntropy) {
    state.looks_healthy = false;
  } else if (!state.looks_healthy) {
    state.looks_healthy = true;
    state.healthy_since = ever;
  } else if (ever - state.healthy_since >= kEvidence * experts_) {
    change(false);
  }
}

}  // namespace moe
