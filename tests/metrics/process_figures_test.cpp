#include "metrics/process_figures.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <string>
#include <thread>

namespace moe {
namespace {

// Fields of proc(5): utime 14, stime 15, num_threads 20, starttime 22, vsize 23, rss 24.
constexpr const char* kFieldsFromState =
    " S 1 2 3 0 -1 4194560 10 0 0 0 250 150 0 0 20 0 9 0 1200 123456789 77 18446744073709551615 1 1 0 0\n";

TEST(ProcessFiguresTest, ReadsTheFieldsOfProc5) {
  const auto figures = ParseProcessStat(std::string("42 (moe_serve)") + kFieldsFromState, 1000);
  const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  ASSERT_TRUE(figures.has_value());
  EXPECT_EQ(figures->cpu_seconds, 400 / ticks);
  EXPECT_EQ(figures->threads, 9);
  EXPECT_EQ(figures->start_unix_seconds, 1000 + 1200 / ticks);
  EXPECT_EQ(figures->virtual_bytes, 123456789);
  EXPECT_EQ(figures->resident_bytes, 77.0 * static_cast<double>(sysconf(_SC_PAGESIZE)));
}

TEST(ProcessFiguresTest, ACommandNameMayHoldBracketsAndSpaces) {
  const auto figures = ParseProcessStat(std::string("42 (a) b (c)") + kFieldsFromState, 0);
  ASSERT_TRUE(figures.has_value());
  EXPECT_EQ(figures->threads, 9);
}

TEST(ProcessFiguresTest, ALineOfAnotherFormGivesNothing) {
  for (const char* line : {"", "42 moe_serve S 1 2", "42 (moe_serve) S 1 2 3",
                           "42 (x) S 1 2 3 0 -1 4194560 10 0 0 0 2x0 150 0 0 20 0 9 0 1200 123456789 77 1"}) {
    EXPECT_FALSE(ParseProcessStat(line, 0).has_value()) << line;
  }
}

TEST(ProcessFiguresTest, ThisProcessHasPlausibleFigures) {
  const auto figures = ReadProcessFigures();
  ASSERT_TRUE(figures.has_value());
  EXPECT_GT(figures->resident_bytes, 100'000);
  EXPECT_GE(figures->virtual_bytes, figures->resident_bytes);
  EXPECT_GT(figures->cpu_seconds, 0);
  const auto now = static_cast<double>(std::time(nullptr));
  EXPECT_GT(figures->start_unix_seconds, now - 3600);
  EXPECT_LE(figures->start_unix_seconds, now + 2);
}

// In a process of its own, which begins with one thread: the kernel counts those that have been joined a moment longer.
TEST(ProcessFiguresDeathTest, OneMoreThreadIsSeen) {
  const auto count = [] {
    const double before = ReadProcessFigures()->threads;
    double during = 0;
    std::jthread([&] { during = ReadProcessFigures()->threads; }).join();
    std::fprintf(stderr, "%g, then %g\n", before, during);
    _exit(0);
  };
  EXPECT_EXIT(count(), testing::ExitedWithCode(0), "^1, then 2\n");
}

TEST(ProcessFiguresTest, OneMoreOpenFileIsSeen) {
  int expected = 0;  // counted another way
  for (int descriptor = 0; descriptor < 1024; ++descriptor) expected += fcntl(descriptor, F_GETFD) != -1 ? 1 : 0;
  const int before = CountOpenFiles();
  ASSERT_EQ(before, expected);
  const int file = open("/dev/null", O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(CountOpenFiles(), before + 1);
  close(file);
  EXPECT_EQ(CountOpenFiles(), before);
  EXPECT_GT(MaxOpenFiles(), before);
}

}  // namespace
}  // namespace moe
