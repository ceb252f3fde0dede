#include "core/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

namespace moe {
namespace {

TEST(AllowedProcessors, AreThoseThatTheThreadIsKeptTo) {
  const std::vector<int> all = AllowedProcessors();
  ASSERT_FALSE(all.empty());
  EXPECT_TRUE(std::is_sorted(all.begin(), all.end()));
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  cpu_set_t last;
  CPU_ZERO(&last);
  CPU_SET(static_cast<std::size_t>(all.back()), &last);
  ASSERT_EQ(sched_setaffinity(0, sizeof(last), &last), 0);
  EXPECT_THAT(AllowedProcessors(), testing::ElementsAre(all.back()));
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
  EXPECT_EQ(AllowedProcessors(), all);
}

TEST(HostName, IsOne) {
  EXPECT_FALSE(HostName().empty());
  EXPECT_LE(HostName().size(), 255u);
  EXPECT_EQ(HostName(), HostName());
}

TEST(MachineMemoryBytes, IsMoreThanThisProgramTakes) { EXPECT_GT(MachineMemoryBytes(), std::uint64_t{1} << 24); }

}  // namespace
}  // namespace moe
