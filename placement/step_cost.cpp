#include "placement/step_cost.h"

#include <algorithm>

namespace moe {

double StepCost::exposed_share(double slowest_rows) const {
  const double slowest = worker_seconds + row_seconds * slowest_rows;
  return slowest > 0 ? std::clamp(exposed_seconds / slowest, 0.0, 1.0) : 0;
}

double StepCost::StepSeconds(double now, double then) const {
  return step_seconds - exposed_share(now) * row_seconds * (now - then);
}

StepCostMeter::StepCostMeter(std::size_t steps) : keep_(1 - 1 / static_cast<double>(std::max<std::size_t>(steps, 2))) {}

void StepCostMeter::AddWorker(std::uint64_t rows, double busy_seconds) {
  const auto x = static_cast<double>(rows);
  workers_ += 1;
  rows_ += x;
  busy_ += busy_seconds;
  rows_squared_ += x * x;
  rows_busy_ += x * busy_seconds;
}

void StepCostMeter::EndStep(double seconds, double exposed_seconds) {
  steps_ += 1;
  seconds_ += seconds;
  exposed_ += exposed_seconds;
  for (double* sum : {&steps_, &seconds_, &exposed_, &workers_, &rows_, &busy_, &rows_squared_, &rows_busy_})
    *sum *= keep_;
}

StepCost StepCostMeter::Measured() const {
  if (steps_ == 0) return {};
  StepCost cost{.steps = steps_ / keep_, .step_seconds = seconds_ / steps_, .exposed_seconds = exposed_ / steps_};
  if (rows_ == 0) return cost;
  cost.row_seconds = busy_ / rows_;
  // Rows that hardly differ tell nothing of what one more takes.
  constexpr double kLeastSpread = 1e-4;  // of the variance, against the square of the mean
  const double variance = workers_ * rows_squared_ - rows_ * rows_;
  if (variance <= kLeastSpread * rows_ * rows_) return cost;
  const double slope = (workers_ * rows_busy_ - rows_ * busy_) / variance;
  const double base = (busy_ - slope * rows_) / workers_;
  if (slope <= 0 || base < 0) return cost;
  cost.row_seconds = slope;
  cost.worker_seconds = base;
  return cost;
}

}  // namespace moe
