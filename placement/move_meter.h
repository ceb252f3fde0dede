// What moving experts does to the steps: how much slower they are meanwhile, and what they take since, beside those
// before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "placement/step_sizes.h"

namespace moe {

/// The steps since a placement came into force, beside those before it.
struct MoveOutcome {
  std::uint64_t generation = 0;  // of the placement
  StepComparison steps;
  std::optional<double> expected_gain;  // share of a mean step that it was to save; none: nobody expected anything

  /// Of a mean step of these, as was expected.
  std::optional<double> expected_seconds() const {
    if (!expected_gain) return std::nullopt;
    return steps.seconds_before * (1 - *expected_gain);
  }
  /// Share by which it took longer than expected; below 0: less long.
  std::optional<double> error() const {
    if (!expected_gain || *expected_gain >= 1) return std::nullopt;
    return steps.seconds / *expected_seconds() - 1;
  }
};

/// Told of every step. Those of a placement are measured from the end of its migration on, over as many steps as those
/// before weigh, at most `steps`, which fade as StepCostMeter's do; or until the next placement is in force, if that
/// leaves kLeastSteps. Where workers are lost or come back meanwhile, nothing compares, and it begins anew. Allocates
/// nothing. Used by one thread.
class MoveMeter {
 public:
  /// Fewer tell nothing.
  static constexpr double kLeastSteps = 32;

  explicit MoveMeter(std::size_t steps);

  struct Step {
    std::uint64_t generation = 0;  // that it used
    std::uint64_t workers = 0;     // changes with the workers that are there
    bool migrating = false;        // experts were on their way meanwhile, or an old placement dropped
    std::size_t rows = 0;
    double seconds = 0;
  };
  /// True when outcome() is a new one.
  bool EndStep(const Step& step);
  /// The steps from the generation's first one on: what is expected of them. After the EndStep of that first one.
  void Expect(double gain) { expected_gain_ = gain; }

  /// That steps are of now; 0 before the first.
  std::uint64_t generation() const { return generation_; }
  /// Of the last placement that has been measured; none before the first.
  const std::optional<MoveOutcome>& outcome() const { return outcome_; }
  /// The share of the throughput that was lost while experts were on their way, in the last migration that went on for
  /// kLeastSteps: 1 − (a mean step before / one meanwhile), 0 … 1. None before the first.
  std::optional<double> slowdown() const { return slowdown_; }

 private:
  bool Switch(const Step& step);
  void Forget();
  bool Conclude();
  void EndMoving();

  const double keep_;
  std::uint64_t generation_ = 0;
  std::uint64_t workers_ = 0;
  StepSizes usual_;         // of the placement in force, while nothing moves; fading
  StepSizes moving_;        // since a migration has begun, with the placement before it
  bool dropping_ = false;   // a migration goes on that has switched already
  bool measuring_ = false;  // since_
  StepSizes before_;        // usual_ as it was at the switch
  StepSizes since_;
  std::optional<double> expected_gain_;
  std::optional<MoveOutcome> outcome_;
  std::optional<double> slowdown_;
};

}  // namespace moe
