// What a pool says of the time its threads spend in items. Nothing is compared with a duration that the machine
// chooses: items last until the clock has moved, or until another thread has got somewhere.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <vector>

#include "core/clock.h"
#include "core/thread_pool.h"

namespace moe {
namespace {

using std::chrono::nanoseconds;

constexpr nanoseconds kWhile = std::chrono::milliseconds(1);

// Returns when the clock has moved by at least `time`.
void Last(nanoseconds time) {
  const TimePoint begin = Clock::now();
  while (Clock::now() - begin < time) {
  }
}

void Brief() { Last(nanoseconds(1)); }

class PoolUsageTest : public testing::TestWithParam<int> {};

TEST_P(PoolUsageTest, HasEveryItemOfALoopThatHasReturned) {
  ThreadPool pool(ThreadPool::Options{.threads = GetParam(), .spin_microseconds = 20});
  for (int loop = 0; loop < 2000; ++loop) {
    const ThreadPool::Usage before = pool.usage();
    std::atomic<std::int64_t> inside{0};
    const TimePoint begin = Clock::now();
    pool.ParallelFor(static_cast<std::size_t>(loop % 7 + 1), [&](std::size_t, int) {
      const TimePoint started = Clock::now();
      Brief();
      inside.fetch_add((Clock::now() - started).count());
    });
    const nanoseconds around = Clock::now() - begin;
    const ThreadPool::Usage after = pool.usage();
    ASSERT_EQ(after.loops, before.loops + 1);
    const nanoseconds busy = after.busy - before.busy;
    const nanoseconds loop_time = after.loop_time - before.loop_time;
    ASSERT_GE(busy.count(), inside.load());
    ASSERT_LE(busy, loop_time * GetParam());
    ASSERT_LE(loop_time, around);
  }
}

TEST_P(PoolUsageTest, IsTheSumOfTheThreads) {
  ThreadPool pool(GetParam());
  std::vector<std::atomic<int>> items(static_cast<std::size_t>(GetParam()));
  pool.ParallelFor(100, [&](std::size_t, int thread) {
    Brief();
    items[static_cast<std::size_t>(thread)].fetch_add(1);
  });
  nanoseconds sum{0};
  for (int t = 0; t < GetParam(); ++t) {
    EXPECT_EQ(pool.busy(t) > nanoseconds(0), items[static_cast<std::size_t>(t)].load() > 0) << "thread " << t;
    EXPECT_LE(pool.busy(t), pool.usage().loop_time);
    sum += pool.busy(t);
  }
  EXPECT_EQ(pool.usage().busy, sum);
}

TEST_P(PoolUsageTest, StandsStillBetweenLoops) {
  // Threads that spin for the next loop, and the caller, are not busy.
  ThreadPool pool(ThreadPool::Options{.threads = GetParam(), .spin_microseconds = 10'000});
  pool.ParallelFor(8, [](std::size_t, int) { Brief(); });
  const ThreadPool::Usage after = pool.usage();
  Last(kWhile);
  pool.ParallelFor(0, [](std::size_t, int) {});
  EXPECT_EQ(pool.usage().loops, 1u);
  EXPECT_EQ(pool.usage().busy, after.busy);
  EXPECT_EQ(pool.usage().loop_time, after.loop_time);
}

INSTANTIATE_TEST_SUITE_P(Threads, PoolUsageTest, testing::Values(1, 2, 4));

TEST(PoolUsage, AThreadThatWaitsForAStragglerIsIdle) {
  ThreadPool pool(2);
  pool.ParallelFor(2, [&](std::size_t item, int thread) {
    Brief();
    if (item == 1) return;
    // The other thread has run item 1 and has nothing left to do; from then on this one works alone.
    while (pool.busy(1 - thread) == nanoseconds(0)) {
    }
    Last(kWhile);
  });
  const ThreadPool::Usage usage = pool.usage();
  EXPECT_GE(usage.loop_time * 2 - usage.busy, kWhile);
  EXPECT_GE(usage.busy, kWhile);
}

TEST(PoolUsage, ThreadsThatWorkSideBySideAreBothBusy) {
  ThreadPool pool(2);
  std::atomic<int> inside{0};
  pool.ParallelFor(2, [&](std::size_t, int) {
    inside.fetch_add(1);
    while (inside.load() < 2) {  // so that each thread has one
    }
    Last(kWhile);
  });
  EXPECT_GE(pool.busy(0), kWhile);
  EXPECT_GE(pool.busy(1), kWhile);
}

TEST(PoolUsage, ALoopOfOneItemLeavesTheOtherThreadsIdle) {
  ThreadPool pool(3);
  pool.ParallelFor(1, [](std::size_t, int) { Last(kWhile); });
  EXPECT_GE(pool.busy(0), kWhile);
  EXPECT_EQ(pool.usage().busy, pool.busy(0));
  EXPECT_GE(pool.usage().loop_time, pool.busy(0));
}

}  // namespace
}  // namespace moe
