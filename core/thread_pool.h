// A persistent pool that runs the items of one parallel loop at a time, without allocating.
#pragma once

#include <atomic>
#include <chrono>
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

  /// Sums over all loops that have returned. Two differences of them say how idle the threads were in between:
  /// busy ≤ loop_time · threads(), and what is missing is threads that had no item, or no item any more.
  struct Usage {
    std::uint64_t loops = 0;               // calls of ParallelFor with any item
    std::chrono::nanoseconds loop_time{};  // from a call's turn to its return
    std::chrono::nanoseconds busy{};       // of all threads
  };
  /// Exact between loops; while one runs, without it or with a part of it.
  Usage usage() const;
  /// One thread's: from the begin of its first item of a loop to the end of its last one, which follow one another. A
  /// thread that waits for a loop, or for the others to end one, is not busy, whether it spins or is parked.
  std::chrono::nanoseconds busy(int thread) const;

 private:
  using Item = FunctionRef<void(std::size_t, int)>;

  // Written by its thread alone (of thread 0, by the caller whose turn it is).
  struct alignas(64) BusyTime {
    std::atomic<std::int64_t> ns{0};
  };

  void RunTogether(std::uint32_t count, Item item);
  void Run(int thread);
  void Work(std::uint32_t epoch, int thread);
  void AddBusy(int thread, std::chrono::nanoseconds time);

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

  std::atomic<std::uint64_t> loops_{0};
  std::atomic<std::int64_t> loop_ns_{0};
  std::vector<BusyTime> busy_;  // by thread
  std::vector<std::thread> workers_;
};

}  // namespace moe
