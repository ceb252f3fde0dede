// A binary of its own: it counts every operator new.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "metrics/metrics.h"

namespace {
std::atomic<int> allocations = 0;
}  // namespace

// Not inlined: GCC would see free() take what operator new returned, and warn.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* const memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t /*size*/) noexcept { std::free(memory); }

namespace moe {
namespace {

TEST(AllocationTest, HandlesDoNotAllocate) {
  MetricsRegistry registry;
  const Counter counter = registry.AddCounter("moe_steps_total", "Steps.");
  const Gauge gauge = registry.AddGauge("moe_requests_running", "Running.");
  const Histogram histogram = registry.AddHistogram("moe_step_seconds", "Steps.", ExponentialBuckets(1e-4, 2, 16));

  int before = allocations;
  (void)registry.Text();
  ASSERT_GT(allocations, before) << "the count must see what the library allocates";

  before = allocations;
  for (int i = 0; i < 100; ++i) {
    counter.Add();
    gauge.Set(i);
    gauge.Add(-1);
    histogram.Observe(1e-5 * i * i);
  }
  const int after = allocations;
  EXPECT_EQ(after, before);
  EXPECT_EQ(counter.value() + gauge.value(), 198);
}

}  // namespace
}  // namespace moe
