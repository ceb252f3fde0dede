// What a step costs, and what of it follows from who hosts which experts: measured from the steps themselves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace moe {

/// A worker takes worker_seconds in a step and row_seconds for each of its rows, (token, expert) pairs of all layers.
/// The slowest worker of each layer sets the pace; the step notices exposed_seconds of what those take.
struct StepCost {
  double steps = 0;            // that it was measured over; 0: it was not
  double step_seconds = 0;     // of a mean step
  double exposed_seconds = 0;  // of those: the router waited while the busiest worker of an exchange computed
  double worker_seconds = 0;
  double row_seconds = 0;
  /// Share of the throughput that the last migration took while it went on; none: none has shown it.
  std::optional<double> migration_slowdown = {};

  /// Whether it says what a step gains.
  bool known() const { return step_seconds > 0 && row_seconds > 0; }
  /// Of what the slowest workers take for `slowest_rows` (a step's, the sum over layers) the share that a step notices.
  double exposed_share(double slowest_rows) const;
  /// Of a mean step once the slowest workers have `then` rows instead of `now`.
  double StepSeconds(double now, double then) const;
};

/// Measures it over about the last `steps` steps: older ones fade, by 1/e over so many. The two costs of a worker are
/// the line of least squares through (rows, busy seconds) of all workers and steps; where that is no line that rises
/// from zero or above, all of a worker's time counts for its rows. Allocates nothing. Used by one thread.
class StepCostMeter {
 public:
  explicit StepCostMeter(std::size_t steps);

  /// What a worker did in the step: before its EndStep.
  void AddWorker(std::uint64_t rows, double busy_seconds);
  /// `exposed_seconds`: as in StepCost.
  void EndStep(double seconds, double exposed_seconds);

  StepCost Measured() const;

 private:
  const double keep_;  // what a step leaves of the weight of those before
  double steps_ = 0;   // sums of weights
  double seconds_ = 0;
  double exposed_ = 0;
  double workers_ = 0;
  double rows_ = 0;
  double busy_ = 0;
  double rows_squared_ = 0;
  double rows_busy_ = 0;
};

}  // namespace moe
