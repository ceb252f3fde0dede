#include "core/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <limits>
#include <utility>

#include "core/check.h"
#include "core/clock.h"

namespace moe {
namespace {

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until `value` is no longer `old`: spins for at most `spin`, then parks.
void WaitWhile(const std::atomic<std::uint32_t>& value, std::uint32_t old, std::chrono::microseconds spin) {
  if (spin.count() > 0) {
    const TimePoint end = Clock::now() + spin;
    do {
      for (int i = 0; i < 32; ++i) {
        if (value.load() != old) return;
        Pause();
      }
    } while (Clock::now() < end);
  }
  value.wait(old);
}

void PinTo(std::thread& thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<std::size_t>(cpu), &set);
  // A refusal costs speed, not correctness.
  (void)pthread_setaffinity_np(thread.native_handle(), sizeof(set), &set);
}

}  // namespace

ThreadPool::ThreadPool(Options options) : options_(std::move(options)) {
  MOE_CHECK(options_.threads >= 1);
  busy_ = std::vector<BusyTime>(static_cast<std::size_t>(options_.threads));
  for (int t = 1; t < options_.threads; ++t) {
    workers_.emplace_back([this, t] { Run(t); });
    const auto slot = static_cast<std::size_t>(t - 1);
    if (slot < options_.cpus.size()) PinTo(workers_.back(), options_.cpus[slot]);
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(std::size_t count, Item item) {
  if (count == 0) return;
  const std::lock_guard lock(turn_);
  const TimePoint begin = Clock::now();
  const bool alone = count == 1 || workers_.empty();
  if (alone) {
    for (std::size_t i = 0; i < count; ++i) item(i, 0);
  } else {
    MOE_CHECK(count < std::numeric_limits<std::uint32_t>::max());
    RunTogether(static_cast<std::uint32_t>(count), item);
  }
  const std::chrono::nanoseconds time = Clock::now() - begin;
  if (alone) AddBusy(0, time);
  loop_ns_.fetch_add(time.count(), std::memory_order_relaxed);  // no pair: a sum
  loops_.fetch_add(1, std::memory_order_relaxed);               // no pair: a sum
}

void ThreadPool::RunTogether(std::uint32_t count, Item item) {
  const std::uint32_t epoch = epoch_.load() + 1;
  // First, so that no claim of the loop before succeeds any more: to a thread that is late for that loop, the index
  // after its last item would be an item of this one if this one is longer.
  next_.store(std::uint64_t{epoch} << 32 | std::numeric_limits<std::uint32_t>::max());
  item_.store(&item);
  count_.store(count);
  done_.store(0);
  next_.store(std::uint64_t{epoch} << 32);
  epoch_.store(epoch);
  epoch_.notify_all();
  Work(epoch, 0);
  for (std::uint32_t done = done_.load(); done != count; done = done_.load())
    WaitWhile(done_, done, std::chrono::microseconds(options_.spin_microseconds));
}

ThreadPool::Usage ThreadPool::usage() const {
  // No pair for any of these loads: they are sums to read between loops, and ParallelFor's return orders those.
  Usage usage{.loops = loops_.load(std::memory_order_relaxed),
              .loop_time = std::chrono::nanoseconds(loop_ns_.load(std::memory_order_relaxed))};
  for (int t = 0; t < threads(); ++t) usage.busy += busy(t);
  return usage;
}

std::chrono::nanoseconds ThreadPool::busy(int thread) const {
  return std::chrono::nanoseconds(busy_[static_cast<std::size_t>(thread)].ns.load(std::memory_order_relaxed));
}

void ThreadPool::AddBusy(int thread, std::chrono::nanoseconds time) {
  busy_[static_cast<std::size_t>(thread)].ns.fetch_add(time.count(), std::memory_order_relaxed);  // no pair: a sum
}

void ThreadPool::Run(int thread) {
  std::uint32_t seen = 0;
  while (true) {
    WaitWhile(epoch_, seen, std::chrono::microseconds(options_.spin_microseconds));
    seen = epoch_.load();
    if (stop_.load()) return;
    Work(seen, thread);
  }
}

// A thread counts its items as done once, after the last of them: until then the loop cannot end, so what it adds to
// the sums before is in them when ParallelFor returns.
void ThreadPool::Work(std::uint32_t epoch, int thread) {
  TimePoint begin;
  std::uint32_t count = 0;
  std::uint32_t ran = 0;
  std::uint64_t next = next_.load();
  while (next >> 32 == epoch) {
    const Item* item = item_.load();
    count = count_.load();
    const auto index = static_cast<std::uint32_t>(next);
    if (index >= count) break;
    if (!next_.compare_exchange_weak(next, next + 1)) continue;
    if (ran++ == 0) begin = Clock::now();
    (*item)(index, thread);
    next = next_.load();
  }
  if (ran == 0) return;
  AddBusy(thread, Clock::now() - begin);
  if (done_.fetch_add(ran) + ran == count) done_.notify_one();
}

}  // namespace moe
