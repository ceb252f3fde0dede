#include "placement/step_sizes.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace moe {

void StepSizes::Add(std::size_t rows, double seconds) {
  const auto size = static_cast<std::size_t>(std::bit_width(rows));
  for (Sum* sum : {&sizes_[std::min(size, kSizes - 1)], &all_}) {
    sum->steps += 1;
    sum->rows += static_cast<double>(rows);
    sum->seconds += seconds;
  }
}

void StepSizes::Fade(double keep) {
  const auto fade = [keep](Sum& sum) {
    sum.steps *= keep;
    sum.rows *= keep;
    sum.seconds *= keep;
  };
  for (Sum& sum : sizes_) fade(sum);
  fade(all_);
}

StepComparison::StepComparison(const StepSizes& these, const StepSizes& others) {
  // Of a size with less than one step's weight there is hardly anything left, or was never much.
  constexpr double kLeast = 1;
  for (std::size_t size = 0; size < StepSizes::kSizes; ++size) {
    const StepSizes::Sum& sum = these.sizes_[size];
    const StepSizes::Sum& before = others.sizes_[size];
    if (before.steps < kLeast) {
      steps_left_out += sum.steps;
      continue;
    }
    steps += sum.steps;
    rows += sum.rows;
    seconds += sum.seconds;
    rows_before += sum.steps * before.rows / before.steps;
    seconds_before += sum.steps * before.seconds / before.steps;
  }
  if (steps == 0) return;
  for (double* sum : {&rows, &rows_before, &seconds, &seconds_before}) *sum /= steps;
}

bool StepComparison::fair() const {
  constexpr double kMostDifference = 0.1;
  return steps > 0 && steps >= steps_left_out && std::abs(rows - rows_before) <= kMostDifference * rows_before;
}

}  // namespace moe
