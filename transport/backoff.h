// How to wait for something that can only be polled (MPI) without burning a core or paying much latency.
//
// First spin, then sleep for a time that doubles. While the last arrival is recent the sleep stays short;
// when nothing has come for a while it grows, so that idle ranks cost next to nothing. Where the peer shares memory
// with us it rings a doorbell, and the sleep ends with the ring.
#pragma once

#include <chrono>
#include <cstdint>

#include "core/clock.h"
#include "transport/doorbell.h"

namespace moe {

struct BackoffOptions {
  std::chrono::nanoseconds spin{0};  // short where ranks outnumber processors: a spinner takes time from who computes
  bool spin_yields = false;          // gives way at each turn of the spin, which only looks at memory
  std::chrono::nanoseconds first_sleep = std::chrono::microseconds(20);
  std::chrono::nanoseconds active_sleep = std::chrono::microseconds(50);
  std::chrono::nanoseconds idle_sleep = std::chrono::milliseconds(2);
  std::chrono::nanoseconds active_for = std::chrono::milliseconds(20);
};

/// Poll; if nothing came, Pause; poll again. When something came, Progress. One thread.
class Backoff {
 public:
  /// `bell`, if any, outlives this; whoever sends to us rings it after sending.
  explicit Backoff(const BackoffOptions& options, Doorbell* bell = nullptr);

  /// Something arrived (or a new wait begins because we sent something): start again from spinning.
  void Progress();

  /// Returns soon, never later than `deadline`.
  void Pause(Deadline deadline);

 private:
  void Sleep(TimePoint now, Deadline deadline);

  const BackoffOptions options_;
  Doorbell* const bell_;
  std::uint32_t seen_ = 0;  // the bell's count before the poll that comes next
  TimePoint last_progress_;
  std::chrono::nanoseconds next_sleep_{};
};

/// Lets this thread's short sleeps end within microseconds of their time; the kernel's default adds up to 50 µs.
void UseExactSleeps();

}  // namespace moe
