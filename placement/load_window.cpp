#include "placement/load_window.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "core/check.h"

namespace moe {

LoadWindow::LoadWindow(std::size_t layers, std::size_t experts, std::size_t steps, std::chrono::milliseconds age)
    : experts_(experts),
      counts_(layers * experts),
      steps_per_bucket_(std::max<std::size_t>(1, steps / kBuckets)),
      bucket_age_(Clock::duration(age) / kBuckets),
      buckets_(kBuckets * counts_, 0),
      sum_(counts_, 0),
      bucket_steps_(kBuckets, 0),
      bucket_begin_(kBuckets),
      tokens_ever_(layers, 0) {}

void LoadWindow::Advance(TimePoint now) {
  now_ = now;
  if (bucket_steps_[current_] == 0) bucket_begin_[current_] = now;
  if (bucket_age_ <= Clock::duration(0)) return;
  const auto behind =
      static_cast<std::size_t>(std::max<Clock::duration::rep>(0, (now - bucket_begin_[current_]) / bucket_age_));
  for (std::size_t i = 0; i < std::min(behind, kBuckets); ++i) Turn();
  if (behind > 0) bucket_begin_[current_] = now;
}

void LoadWindow::Add(std::size_t layer, std::size_t expert, std::uint64_t tokens) {
  const std::size_t i = layer * experts_ + expert;
  MOE_CHECK(expert < experts_ && i < counts_);
  buckets_[current_ * counts_ + i] += tokens;
  sum_[i] += tokens;
  tokens_ever_[layer] += tokens;
}

void LoadWindow::EndStep() {
  ++steps_;
  if (++bucket_steps_[current_] == steps_per_bucket_) Turn();
}

void LoadWindow::Turn() {
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

std::span<const std::uint64_t> LoadWindow::bucket(std::size_t bucket, std::size_t layer) const {
  return std::span(buckets_).subspan(bucket * counts_ + layer * experts_, experts_);
}

double LoadWindow::seconds() const {
  TimePoint oldest = now_;
  for (std::size_t i = 0; i < kBuckets; ++i)
    if (bucket_steps_[i] > 0) oldest = std::min(oldest, bucket_begin_[i]);
  return Seconds(now_ - oldest);
}

std::vector<LayerLoad> LoadsOf(const LoadWindow& window, const std::vector<int>& layers) {
  std::array<std::uint64_t, LoadWindow::kBuckets> rows{};
  for (std::size_t b = 0; b < rows.size(); ++b) {
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const std::span<const std::uint64_t> tokens = window.bucket(b, i);
      rows[b] = std::accumulate(tokens.begin(), tokens.end(), rows[b]);
    }
  }
  const std::uint64_t all = std::accumulate(rows.begin(), rows.end(), std::uint64_t{0});
  const auto filled =
      static_cast<std::uint64_t>(std::ranges::count_if(rows, [](std::uint64_t sum) { return sum > 0; }));
  std::vector<LayerLoad> loads;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::span<const std::uint64_t> sum = window.layer(i);
    LayerLoad& load =
        loads.emplace_back(LayerLoad{.layer = layers[i], .mean = {sum.begin(), sum.end()}, .samples = {}});
    for (std::size_t b = 0; b < rows.size(); ++b) {
      if (rows[b] == 0 || 2 * rows[b] * filled < all) continue;
      const std::span<const std::uint64_t> tokens = window.bucket(b, i);
      load.samples.emplace_back(tokens.begin(), tokens.end());
    }
  }
  return loads;
}

}  // namespace moe
