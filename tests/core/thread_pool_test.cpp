#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace moe {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, RunsEveryItemOnce) {
  ThreadPool pool(GetParam());
  for (const std::size_t count : {0u, 1u, 2u, 3u, 17u, 1000u}) {
    std::vector<std::atomic<int>> hits(count);
    pool.ParallelFor(count, [&](std::size_t i, int thread) {
      EXPECT_GE(thread, 0);
      EXPECT_LT(thread, GetParam());
      hits[i].fetch_add(1);
    });
    for (const auto& hit : hits) EXPECT_EQ(hit.load(), 1);
  }
}

TEST_P(ThreadPoolTest, KeepsLoopsApartWhenTheyFollowClosely) {
  ThreadPool pool(GetParam());
  // Results live on the caller's stack: an item that ran late would write into a dead frame.
  for (int loop = 0; loop < 3000; ++loop) {
    std::vector<int> out(5, -1);
    pool.ParallelFor(out.size(), [&](std::size_t i, int) { out[i] = loop; });
    for (const int value : out) ASSERT_EQ(value, loop);
  }
}

TEST_P(ThreadPoolTest, KeepsLoopsApartWhenALongerOneFollows) {
  // A thread late for a loop that has ended must not take an item of the next one, whose indices go further. That takes
  // bad luck, hence the many loops.
  ThreadPool pool(ThreadPool::Options{.threads = GetParam(), .spin_microseconds = 20});
  std::vector<std::atomic<int>> hits(3);
  for (int loop = 0; loop < 200'000; ++loop) {
    const std::size_t count = loop % 2 == 0 ? 2 : 3;
    pool.ParallelFor(count, [&](std::size_t i, int) { hits[i].fetch_add(1); });
    for (std::size_t i = 0; i < hits.size(); ++i) ASSERT_EQ(hits[i].exchange(0), i < count ? 1 : 0) << "loop " << loop;
  }
}

TEST_P(ThreadPoolTest, CallersOnSeveralThreadsTakeTurns) {
  ThreadPool pool(GetParam());
  std::atomic<int> inside{0};
  std::atomic<int> total{0};
  const auto call = [&] {
    for (int loop = 0; loop < 200; ++loop) {
      pool.ParallelFor(4, [&](std::size_t, int) {
        EXPECT_LE(inside.fetch_add(1) + 1, GetParam());
        total.fetch_add(1);
        inside.fetch_sub(1);
      });
    }
  };
  std::thread other(call);
  call();
  other.join();
  EXPECT_EQ(total.load(), 2 * 200 * 4);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 4));

TEST(ThreadPool, SpinningPoolAlsoStops) {
  ThreadPool pool(ThreadPool::Options{.threads = 3, .spin_microseconds = 50});
  std::atomic<int> total{0};
  for (int loop = 0; loop < 100; ++loop) pool.ParallelFor(10, [&](std::size_t, int) { total.fetch_add(1); });
  EXPECT_EQ(total.load(), 1000);
}

}  // namespace
}  // namespace moe
