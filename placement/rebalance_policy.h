// When a server that balances by itself moves experts: what a verdict says is not enough, it must last, and a load that
// has been moved for is left alone.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string_view>
#include <vector>

#include "core/clock.h"
#include "placement/placement_problem.h"

namespace moe {

/// The share of rows that went to other experts: half the sum of the differences of shares, per layer, then averaged
/// over layers. 0 … 1. Both are of the same layers and experts, in rows.
double LoadDrift(const std::vector<LayerLoad>& from, const std::vector<LayerLoad>& to);
/// What LoadDrift would be on average if both were samples of one load by rows that do not depend on each other.
double ChanceDrift(const std::vector<LayerLoad>& from, const std::vector<LayerLoad>& to);

/// A pure state machine: told of every look at the load, it says whether to move now.
///   A move takes as many looks in a row as `confirmations` whose verdict is yes, and the cool-down since the last one.
///   The load that experts were last moved for is not moved for again: a load is the same while LoadDrift stays within
///   `least_drift`, or within noise_factor times what chance makes of it.
///   A load that comes back after another one has to wait for twice the cool-down, four times when it does again, up to
///   sixteen times: what swings to and fro is followed ever more slowly. A move that fails doubles it too.
class RebalancePolicy {
 public:
  struct Options {
    int confirmations = 2;
    Clock::duration cooldown = std::chrono::seconds(300);
    double least_drift = 0.05;
    double noise_factor = 3;
  };
  explicit RebalancePolicy(Options options) : options_(options) {}

  enum class Decision : std::uint8_t {
    kMove,
    kVerdictIsNo,
    kUnconfirmed,  // yes, but not for long enough
    kCoolingDown,
    kSameLoad,
  };
  /// `says_yes`: of the verdict on these loads, which are rows in the window.
  Decision Look(TimePoint now, bool says_yes, const std::vector<LayerLoad>& loads);

  /// What came of a kMove for these loads.
  void OnMoved(TimePoint now, const std::vector<LayerLoad>& loads);
  void OnFailed(TimePoint now);

 private:
  static constexpr std::size_t kRemembered = 8;
  static constexpr int kMostDoublings = 4;

  bool Same(const std::vector<LayerLoad>& one, const std::vector<LayerLoad>& other) const;
  /// Times that the load was moved for, the last move aside.
  int Returns(const std::vector<LayerLoad>& loads) const;

  const Options options_;
  int confirmed_ = 0;  // looks in a row that said yes
  bool moved_ever_ = false;
  TimePoint last_{};                              // move that ended, well or not
  int failures_ = 0;                              // since one ended well
  std::deque<std::vector<LayerLoad>> moved_for_;  // the last kRemembered; without samples
};

/// "move", "verdict_is_no", "unconfirmed", "cooling_down", "same_load".
std::string_view Name(RebalancePolicy::Decision decision);

}  // namespace moe
