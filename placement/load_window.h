// Tokens per layer and expert over the last steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moe {

/// A ring of buckets, each of some steps: the window covers the last kBuckets − 1 whole buckets and the one being
/// filled. Adding a count is one addition; nothing allocates after construction. Used by one thread.
class LoadWindow {
 public:
  static constexpr std::size_t kBuckets = 16;

  /// Covers about `steps` steps.
  LoadWindow(std::size_t layers, std::size_t experts, std::size_t steps);

  void Add(std::size_t layer, std::size_t expert, std::uint64_t tokens);
  /// To be called once after each step's counts.
  void EndStep();

  /// (experts) of one layer.
  std::span<const std::uint64_t> layer(std::size_t layer) const;
  std::size_t steps() const { return steps_; }  // that the window covers now

 private:
  const std::size_t experts_;
  const std::size_t counts_;  // layers * experts
  const std::size_t steps_per_bucket_;
  std::vector<std::uint64_t> buckets_;  // (kBuckets, layers, experts)
  std::vector<std::uint64_t> sum_;      // (layers, experts)
  std::vector<std::size_t> bucket_steps_;
  std::size_t current_ = 0;
  std::size_t steps_ = 0;
};

}  // namespace moe
