#include "transport/doorbell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <ctime>

namespace moe {
namespace {

// The shared (not FUTEX_PRIVATE) form works within a process as well and costs an address lookup more.
void FutexWait(std::atomic<std::uint32_t>& word, std::uint32_t expected, Deadline deadline) {
  // FUTEX_WAIT_BITSET takes an absolute time on CLOCK_MONOTONIC, which is what steady_clock reads.
  timespec until{};
  if (deadline != kNoDeadline) {
    const auto since = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline.time_since_epoch()).count();
    if (since <= 0) return;
    until = {.tv_sec = since / 1'000'000'000, .tv_nsec = since % 1'000'000'000};
  }
  syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, expected, deadline == kNoDeadline ? nullptr : &until, nullptr,
          FUTEX_BITSET_MATCH_ANY);
}

void FutexWakeOne(std::atomic<std::uint32_t>& word) { syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0); }

}  // namespace

void Doorbell::Ring() {
  count_.fetch_add(1);
  if (sleepers_.load() != 0) FutexWakeOne(count_);
}

void Doorbell::WaitPast(std::uint32_t seen, Deadline deadline) {
  if (count_.load() != seen) return;
  sleepers_.fetch_add(1);
  FutexWait(count_, seen, deadline);  // sleeps only while the count is still `seen`
  sleepers_.fetch_sub(1);
}

}  // namespace moe
