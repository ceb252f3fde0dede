// A persistent pool that runs the items of one parallel loop at a time, without allocating.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "core/function_ref.h"

namespace moe {

class ThreadPool {
 public:
  struct Options {
    /// Threads that compute, the caller of ParallelFor included; at least 1.
    int threads = 1;
    /// Spin this long for the next loop before parking; 0 when the node runs more threads than it has cores.
    int spin_microseconds = 0;
    /// One CPU for each pool thread (the caller's thread is the owner's business); empty: not pinned.
    std::vector<int> cpus;
  };

  explicit ThreadPool(Options options);
  explicit ThreadPool(int threads) : ThreadPool(Options{.threads = threads}) {}
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return options_.threads; }

  /// Calls `item(i, thread)` once for every i in [0, count), thread in [0, threads()); returns when all are done. Items
  /// are taken in ascending order from one counter. The caller works too. Callers on several threads take turns. Must
  /// not be called from inside an item.
  void ParallelFor(std::size_t count, FunctionRef<void(std::size_t item, int thread)> item);

 private:
  using Item = FunctionRef<void(std::size_t, int)>;

  void Run(int thread);
  void Work(std::uint32_t epoch, int thread);

  const Options options_;
  std::mutex turn_;  // one loop at a time

  // The loop under way. `next_` is epoch << 32 | next item. It names a new epoch before item_ and count_ change and
  // never comes back, so a claim succeeds only if what was read of item_ and count_ before it is of its own epoch.
  std::atomic<const Item*> item_{nullptr};
  std::atomic<std::uint32_t> count_{0};
  alignas(64) std::atomic<std::uint64_t> next_{0};
  alignas(64) std::atomic<std::uint32_t> done_{0};
  alignas(64) std::atomic<std::uint32_t> epoch_{0};  // what parked threads wait on
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace moe
