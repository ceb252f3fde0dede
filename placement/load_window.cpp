#include "placement/load_window.h"

#include <algorithm>

#include "core/check.h"

namespace moe {

LoadWindow::LoadWindow(std::size_t layers, std::size_t experts, std::size_t steps)
    : experts_(experts),
      counts_(layers * experts),
      steps_per_bucket_(std::max<std::size_t>(1, steps / kBuckets)),
      buckets_(kBuckets * counts_, 0),
      sum_(counts_, 0),
      bucket_steps_(kBuckets, 0) {}

void LoadWindow::Add(std::size_t layer, std::size_t expert, std::uint64_t tokens) {
  const std::size_t i = layer * experts_ + expert;
  MOE_CHECK(expert < experts_ && i < counts_);
  buckets_[current_ * counts_ + i] += tokens;
  sum_[i] += tokens;
}

void LoadWindow::EndStep() {
  ++steps_;
  if (++bucket_steps_[current_] < steps_per_bucket_) return;
  current_ = (current_ + 1) % kBuckets;
  const std::span<std::uint64_t> oldest = std::span(buckets_).subspan(current_ * counts_, counts_);
  for (std::size_t i = 0; i < counts_; ++i) sum_[i] -= oldest[i];
  std::fill(oldest.begin(), oldest.end(), 0);
  steps_ -= bucket_steps_[current_];
  bucket_steps_[current_] = 0;
}

std::span<const std::uint64_t> LoadWindow::layer(std::size_t layer) const {
  return std::span(sum_).subspan(layer * experts_, experts_);
}

}  // namespace moe
