// A shard that is completed in the background, beside a worker that computes.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/status.h"
#include "experts/expert_shard.h"

namespace moe {

/// What is left to wait after `bytes` were loaded in `took`, so that they are no more than bytes_per_s; 0: no limit.
std::chrono::nanoseconds PauseAfter(std::uint64_t bytes, std::chrono::nanoseconds took, std::uint64_t bytes_per_s);

/// Loads what is missing one expert after the other, on a thread of its own that gives way to those that compute.
class ShardLoading {
 public:
  struct Options {
    ExpertShard shard;
    ExpertLoader load;
    std::uint64_t bytes_per_s = 0;  // as held in memory; 0: no limit
    /// Whose checksums are wanted: experts of the shard, by layer, and copies that are loaded already.
    struct Check {
      int layer = 0;
      int expert = 0;
      std::shared_ptr<const MlpWeights> weights;  // null: the shard's
    };
    std::vector<Check> checks;
  };

  explicit ShardLoading(Options options);
  /// Waits for the expert that is being loaded.
  ~ShardLoading();
  ShardLoading(const ShardLoading&) = delete;
  ShardLoading& operator=(const ShardLoading&) = delete;

  // By any thread.

  /// Nothing more is loaded; the outcome is CANCELLED.
  void GiveUp();
  /// Whether there is an outcome.
  bool done() const { return done_; }
  std::uint64_t loaded_experts() const { return loaded_experts_; }
  std::uint64_t loaded_bytes() const { return loaded_bytes_; }

  // Once it is done.

  const Status& outcome() const { return outcome_; }
  /// Complete if the outcome is OK.
  ExpertShard TakeShard() { return std::move(options_.shard); }
  /// Of Options::checks, in their order.
  const std::vector<std::uint64_t>& checksums() const { return checksums_; }

 private:
  Status Run();
  Status LoadAll();
  void AddChecksums();
  /// False when it is given up.
  bool Pause(std::chrono::nanoseconds pause);

  Options options_;
  std::atomic<std::uint64_t> loaded_experts_{0};
  std::atomic<std::uint64_t> loaded_bytes_{0};
  std::atomic<bool> done_{false};
  Status outcome_;                        // before done_
  std::vector<std::uint64_t> checksums_;  // before done_
  std::mutex mutex_;
  std::condition_variable changed_;
  bool given_up_ = false;  // under mutex_
  std::thread thread_;
};

}  // namespace moe
