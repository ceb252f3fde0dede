// Wakes one waiting thread, in this process or in another one that shares the memory. A count that only grows, and a
// futex to sleep on until it has grown: std::atomic's wait has no deadline.
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "core/clock.h"

namespace moe {

/// Any number of ringers, one waiter. All-zero memory is a valid Doorbell, so it may live in a fresh shared mapping.
/// The waiter reads count(), looks for work, and only then waits past the value it read, so that no ring is lost.
class alignas(64) Doorbell {
 public:
  std::uint32_t count() const { return count_.load(); }

  /// A syscall only when someone sleeps.
  void Ring();

  /// Returns at once when count() is no longer `seen`, else when it changes or `deadline` has passed (or a signal
  /// came).
  void WaitPast(std::uint32_t seen, Deadline deadline);

 private:
  // Ring: count, then sleepers. WaitPast: sleepers, then count. Sequentially consistent, so one of them sees the other.
  std::atomic<std::uint32_t> count_{0};
  std::atomic<std::uint32_t> sleepers_{0};
};

static_assert(std::atomic<std::uint32_t>::is_always_lock_free && sizeof(std::atomic<std::uint32_t>) == 4,
              "the kernel reads the count as a 32-bit word");

/// Tells the processor that this is a busy loop.
inline void SpinHint() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace moe
