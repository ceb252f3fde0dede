// Tokens per layer and expert over the last steps.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/clock.h"
#include "placement/placement_problem.h"

namespace moe {

/// A ring of buckets, each of some steps and at most some time: the window covers the last kBuckets − 1 whole buckets
/// and the one being filled, so about so many steps and nothing much older than so long. Adding a count is one
/// addition; nothing allocates after construction. Used by one thread.
class LoadWindow {
 public:
  static constexpr std::size_t kBuckets = 16;

  /// `age` 0: however old. While nobody calls Advance, nothing ages: an idle router's window stays as it is.
  LoadWindow(std::size_t layers, std::size_t experts, std::size_t steps,
             std::chrono::milliseconds age = std::chrono::milliseconds(0));

  /// To be called before a step's counts: lets go of what has become too old.
  void Advance(TimePoint now);
  void Add(std::size_t layer, std::size_t expert, std::uint64_t tokens);
  /// To be called once after each step's counts.
  void EndStep();

  /// (experts) of one layer.
  std::span<const std::uint64_t> layer(std::size_t layer) const;
  std::size_t steps() const { return steps_; }  // that the window covers now
  /// (experts) of one layer in one of the buckets; all zero in one without steps.
  std::span<const std::uint64_t> bucket(std::size_t bucket, std::size_t layer) const;
  /// From the oldest bucket's first step to the last Advance.
  double seconds() const;
  /// Of a layer, since the beginning.
  std::uint64_t tokens_ever(std::size_t layer) const { return tokens_ever_[layer]; }

 private:
  /// Closes the bucket being filled and lets go of the oldest, which is filled next.
  void Turn();

  const std::size_t experts_;
  const std::size_t counts_;  // layers * experts
  const std::size_t steps_per_bucket_;
  const Clock::duration bucket_age_;    // 0: no limit
  std::vector<std::uint64_t> buckets_;  // (kBuckets, layers, experts)
  std::vector<std::uint64_t> sum_;      // (layers, experts)
  std::vector<std::size_t> bucket_steps_;
  std::vector<TimePoint> bucket_begin_;  // of those with steps
  std::vector<std::uint64_t> tokens_ever_;
  std::size_t current_ = 0;
  std::size_t steps_ = 0;
  TimePoint now_{};
};

/// The window's rows as the loads of the sparse layers with these absolute indices: the samples are its buckets, but
/// for those with less than half as many rows as the buckets with any have on average.
std::vector<LayerLoad> LoadsOf(const LoadWindow& window, const std::vector<int>& layers);

}  // namespace moe
