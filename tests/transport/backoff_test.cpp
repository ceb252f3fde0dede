#include "transport/backoff.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "transport/doorbell.h"

namespace moe {
namespace {

// Sleeps that only a ring or a deadline ends within a test's time.
constexpr BackoffOptions kHours{
    .first_sleep = std::chrono::hours(1), .active_sleep = std::chrono::hours(1), .idle_sleep = std::chrono::hours(1)};

TEST(Doorbell, ARingBeforeTheWaitIsNotLost) {
  Doorbell bell;
  const std::uint32_t seen = bell.count();
  bell.Ring();
  bell.WaitPast(seen, kNoDeadline);  // would sleep for ever
  EXPECT_NE(bell.count(), seen);
}

TEST(Doorbell, AWaitEndsAtItsDeadline) {
  Doorbell bell;
  const TimePoint deadline = After(std::chrono::milliseconds(2));
  while (Clock::now() < deadline) bell.WaitPast(bell.count(), deadline);
  bell.WaitPast(bell.count(), TimePoint::min());
  EXPECT_EQ(bell.count(), 0u);
}

TEST(Doorbell, TwoThreadsHandABallBackAndForth) {
  constexpr int kRounds = 5'000;
  Doorbell bells[2];
  std::atomic<int> ball{0};
  const auto play = [&](int side) {
    while (true) {
      const std::uint32_t seen = bells[side].count();
      const int now = ball.load();
      if (now >= kRounds) break;
      if (now % 2 != side) {
        bells[side].WaitPast(seen, kNoDeadline);
        continue;
      }
      ball.store(now + 1);
      bells[1 - side].Ring();
    }
    bells[1 - side].Ring();
  };
  std::thread other(play, 1);
  play(0);
  other.join();
  EXPECT_EQ(ball.load(), kRounds);
}

TEST(Backoff, APauseNeverOutlastsItsDeadline) {
  Backoff backoff(kHours);
  backoff.Pause(After(std::chrono::milliseconds(1)));  // would sleep for an hour
  backoff.Pause(TimePoint::min());
}

TEST(Backoff, ARingEndsTheSleep) {
  Doorbell bell;
  Backoff backoff(kHours, &bell);
  std::thread ringer([&] { bell.Ring(); });
  backoff.Pause(kNoDeadline);
  ringer.join();
}

TEST(Backoff, ARingSinceThePollBeforeIsNotSleptThrough) {
  Doorbell bell;
  Backoff backoff(kHours, &bell);
  bell.Ring();  // after the poll that found nothing
  backoff.Pause(kNoDeadline);
  bell.Ring();
  backoff.Pause(kNoDeadline);
}

TEST(Backoff, ARingDuringThePollThatMadeProgressIsNotSleptThrough) {
  Doorbell bell;
  Backoff backoff(kHours, &bell);
  backoff.Pause(After(std::chrono::milliseconds(1)));
  bell.Ring();  // while a poll takes another message
  backoff.Progress();
  backoff.Pause(kNoDeadline);
}

}  // namespace
}  // namespace moe
