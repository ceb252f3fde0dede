#include "transport/backoff.h"

#include <sys/prctl.h>

#include <algorithm>
#include <thread>

namespace moe {

Backoff::Backoff(const BackoffOptions& options, Doorbell* bell)
    : options_(options), bell_(bell), seen_(bell == nullptr ? 0 : bell->count()) {
  Progress();
}

// Leaves seen_ alone: a ring since the poll that made this progress announces something that poll has not seen.
void Backoff::Progress() {
  last_progress_ = Clock::now();
  next_sleep_ = options_.first_sleep;
}

void Backoff::Pause(Deadline deadline) {
  const TimePoint now = Clock::now();
  if (now - last_progress_ < options_.spin) {
    options_.spin_yields ? std::this_thread::yield() : SpinHint();
  } else {
    Sleep(now, deadline);
  }
  if (bell_ != nullptr) seen_ = bell_->count();
}

void Backoff::Sleep(TimePoint now, Deadline deadline) {
  const bool active = now - last_progress_ < options_.active_for;
  const auto longest = active ? options_.active_sleep : options_.idle_sleep;
  const TimePoint until = std::min(deadline, now + std::min(next_sleep_, longest));
  next_sleep_ = std::min(next_sleep_ * 2, longest);
  if (bell_ != nullptr) {
    bell_->WaitPast(seen_, until);
    // A ring without a complete message is a step of a long one: more comes soon.
    if (bell_->count() != seen_) Progress();
  } else {
    std::this_thread::sleep_until(until);
  }
}

void UseExactSleeps() { prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL); }

}  // namespace moe
