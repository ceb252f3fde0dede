#include "core/bounded_queue.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

namespace moe {
namespace {

TEST(BoundedQueue, RefusesAtCapacityAndKeepsTheValue) {
  BoundedQueue<std::unique_ptr<int>> queue(1);
  EXPECT_TRUE(queue.TryPush(std::make_unique<int>(1)));
  auto second = std::make_unique<int>(2);
  EXPECT_FALSE(queue.TryPush(std::move(second)));
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(**queue.Pop(kNoDeadline), 1);
  EXPECT_TRUE(queue.TryPush(std::move(second)));
}

TEST(BoundedQueue, PopEndsAtTheDeadline) {
  BoundedQueue<int> queue(1);
  EXPECT_FALSE(queue.Pop(After(std::chrono::milliseconds(1))).has_value());
}

TEST(BoundedQueue, CloseEndsWaitingButKeepsWhatIsInside) {
  BoundedQueue<int> queue(2);
  EXPECT_TRUE(queue.TryPush(5));
  queue.Close();
  EXPECT_FALSE(queue.TryPush(6));
  EXPECT_EQ(queue.Pop(kNoDeadline), 5);
  EXPECT_FALSE(queue.Pop(kNoDeadline).has_value());
}

TEST(BoundedQueue, HandsEveryItemOverInOrder) {
  BoundedQueue<int> queue(4);
  std::thread producer([&] {
    for (int i = 0; i < 1000; ++i)
      while (!queue.TryPush(int{i})) std::this_thread::yield();
    queue.Close();
  });
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(queue.Pop(kNoDeadline), i);
  EXPECT_FALSE(queue.Pop(kNoDeadline).has_value());
  producer.join();
}

}  // namespace
}  // namespace moe
