// Whether the experts of a layer are all used: dead ones and collapsed layers, noticed in load windows and held until
// they are surely gone, so that nobody is told twice of one trouble.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "placement/load_window.h"

namespace moe {

/// A layer judges itself once its window holds kEvidence tokens an expert on average; with less, everything stays as it
/// was.
///   An expert is dead from a window without a token for it until one in which it has kAliveShare of the mean.
///   A layer is collapsed from a window that Collapsed() calls so until, over kEvidence more tokens an expert, no
///   window was and the entropy stayed at or above kRecoveredEntropy.
class RoutingHealth {
 public:
  static constexpr std::uint64_t kEvidence = 64;
  static constexpr double kAliveShare = 1.0 / 16;
  static constexpr double kRecoveredEntropy = 0.55;  // Collapsed() begins under 0.5

  RoutingHealth(std::size_t layers, std::size_t experts, int experts_per_token);

  /// What the last window changed.
  struct Change {
    std::size_t layer = 0;  // of the sparse ones
    bool collapse = false;  // else it is about dead experts
    bool raised = false;    // else it is over
    int dead_experts = 0;
  };
  /// Looks at a window; the changes stay until the next call. Allocates nothing.
  std::span<const Change> Update(const LoadWindow& window);

  bool collapsed(std::size_t layer) const { return layers_[layer].collapsed; }
  int dead_experts(std::size_t layer) const { return layers_[layer].dead; }

 private:
  struct Layer {
    bool collapsed = false;
    int dead = 0;
    std::uint64_t healthy_since = 0;  // tokens ever when it looked healthy first; while collapsed
    bool looks_healthy = false;
  };
  void JudgeExperts(std::size_t layer, std::span<const std::uint64_t> tokens, std::uint64_t sum);
  void JudgeLayer(std::size_t layer, std::span<const std::uint64_t> tokens, std::uint64_t ever);

  const std::size_t experts_;
  const int experts_per_token_;
  std::vector<Layer> layers_;
  std::vector<std::uint8_t> dead_;  // (layers, experts)
  std::vector<Change> changes_;
};

}  // namespace moe
