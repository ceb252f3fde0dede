#include "metrics/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <thread>

#include "tests/metrics/exposition.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(MetricsRegistryTest, CounterAddsAndIgnoresNegativeAmounts) {
  MetricsRegistry registry(MetricsRegistry::Process::kLeaveOut);
  const Counter counter = registry.AddCounter("moe_rows_total", "Rows.");
  counter.Add();
  counter.Add(41.5);
  counter.Add(-10);
  EXPECT_EQ(counter.value(), 42.5);
  EXPECT_EQ(SampleValue(registry.Text(), "moe_rows_total"), 42.5);
}

TEST(MetricsRegistryTest, GaugeSetsAndAddsBothWays) {
  MetricsRegistry registry(MetricsRegistry::Process::kLeaveOut);
  const Gauge gauge = registry.AddGauge("moe_waiting", "Waiting.");
  gauge.Set(7);
  gauge.Add(-9.5);
  EXPECT_EQ(gauge.value(), -2.5);
  EXPECT_EQ(SampleValue(registry.Text(), "moe_waiting"), -2.5);
}

TEST(MetricsRegistryTest, HistogramBucketsIncludeTheirUpperBound) {
  MetricsRegistry registry(MetricsRegistry::Process::kLeaveOut);
  const double bounds[] = {0.5, 2};
  const Histogram histogram = registry.AddHistogram("moe_step_seconds", "Steps.", bounds);
  for (const double value : {0.25, 0.5, 0.75, 2.0, 3.0}) histogram.Observe(value);
  const std::string text = registry.Text();
  EXPECT_EQ(SampleValue(text, "moe_step_seconds_bucket{le=\"0.5\"}"), 2);
  EXPECT_EQ(SampleValue(text, "moe_step_seconds_bucket{le=\"2\"}"), 4);
  EXPECT_EQ(SampleValue(text, "moe_step_seconds_bucket{le=\"+Inf\"}"), 5);
  EXPECT_EQ(SampleValue(text, "moe_step_seconds_count"), 5);
  EXPECT_EQ(SampleValue(text, "moe_step_seconds_sum"), 6.5);
}

TEST(HistogramBatchTest, AddsWhatSingleObservationsWould) {
  MetricsRegistry registry(MetricsRegistry::Process::kLeaveOut);
  const double bounds[] = {0.5, 2};
  const Histogram single = registry.AddHistogram("moe_single", "By value.", bounds);
  const Histogram batched = registry.AddHistogram("moe_batched", "By batch.", bounds);
  HistogramBatch batch(batched, bounds);
  for (int round = 0; round < 2; ++round) {
    for (const double value : {0.1, 0.5, 0.6, 2.0, 7.0}) {
      single.Observe(value);
      batch.Add(value);
    }
    batch.Flush();
    batch.Flush();  // nothing is left to add
  }
  const std::string text = registry.Text();
  for (const char* sample : {"_bucket{le=\"0.5\"}", "_bucket{le=\"2\"}", "_bucket{le=\"+Inf\"}", "_sum", "_count"})
    EXPECT_EQ(SampleValue(text, std::string("moe_batched") + sample),
              SampleValue(text, std::string("moe_single") + sample))
        << sample;
  EXPECT_EQ(SampleValue(text, "moe_batched_count"), 10);
}

TEST(MetricsRegistryTest, SameNameAndLabelsGiveTheSameMetric) {
  MetricsRegistry registry(MetricsRegistry::Process::kLeaveOut);
  registry.AddCounter("moe_rank_rows_total", "Rows.", {{"rank", "1"}}).Add(1);
  registry.AddCounter("moe_rank_rows_total", "Rows.", {{"rank", "1"}}).Add(2);
  registry.AddCounter("moe_rank_rows_total", "Rows.", {{"rank", "2"}}).Add(10);
  const std::string text = registry.Text();
  EXPECT_EQ(SampleValue(text, "moe_rank_rows_total{rank=\"1\"}"), 3);
  EXPECT_EQ(SampleValue(text, "moe_rank_rows_total{rank=\"2\"}"), 10);
}

TEST(MetricsRegistryTest, LabelValuesAreEscaped) {
  MetricsRegistry registry(MetricsRegistry::Process::kLeaveOut);
  registry.AddGauge("moe_build_info", "Build.", {{"commit", "a\"b\\c\nd"}}).Set(1);
  EXPECT_THAT(registry.Text(), HasSubstr("moe_build_info{commit=\"a\\\"b\\\\c\\nd\"} 1\n"));
}

TEST(MetricsRegistryTest, LargeCountsKeepEveryDigit) {
  MetricsRegistry registry(MetricsRegistry::Process::kLeaveOut);
  registry.AddGauge("moe_model_parameters", "Parameters.").Set(671026419200.0);
  registry.AddCounter("moe_step_touched_parameters_total", "Touched.").Add(9007199254740991.0);
  const std::string text = registry.Text();
  EXPECT_EQ(SampleValue(text, "moe_model_parameters"), 671026419200.0);
  EXPECT_EQ(SampleValue(text, "moe_step_touched_parameters_total"), 9007199254740991.0);
}

TEST(MetricsRegistryTest, ConcurrentObservationsAreAllCounted) {
  MetricsRegistry registry(MetricsRegistry::Process::kLeaveOut);
  const Counter counter = registry.AddCounter("moe_steps_total", "Steps.");
  const Histogram histogram = registry.AddHistogram("moe_step_seconds", "Steps.", ExponentialBuckets(0.001, 2, 10));
  constexpr int kThreads = 4;
  constexpr int kEach = 5000;
  {
    std::vector<std::jthread> threads;
    threads.reserve(kThreads);
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < kEach; ++i) {
          counter.Add();
          histogram.Observe(0.25);
        }
      });
    }
    for (int i = 0; i < 20; ++i) EXPECT_THAT(registry.Text(), HasSubstr("moe_steps_total"));
  }
  EXPECT_EQ(counter.value(), kThreads * kEach);
  EXPECT_EQ(SampleValue(registry.Text(), "moe_step_seconds_count"), kThreads * kEach);
  EXPECT_EQ(SampleValue(registry.Text(), "moe_step_seconds_sum"), kThreads * kEach * 0.25);
}

TEST(MetricsRegistryTest, ExportsTheProcessUnlessAskedNotTo) {
  MetricsRegistry with;
  MetricsRegistry without(MetricsRegistry::Process::kLeaveOut);
  for (const char* name : {"process_resident_memory_bytes", "process_virtual_memory_bytes", "process_cpu_seconds_total",
                           "process_open_fds", "process_max_fds", "process_start_time_seconds", "process_threads"}) {
    EXPECT_GT(SampleValue(with.Text(), name).value_or(-1), 0) << name;
  }
  EXPECT_THAT(without.Text(), Not(HasSubstr("process_")));
}

TEST(MetricsRegistryDeathTest, OneNameForTwoTypesIsABrokenInvariant) {
  MetricsRegistry registry;
  registry.AddCounter("moe_steps_total", "Steps.");
  EXPECT_DEATH(registry.AddGauge("moe_steps_total", "Steps."), "moe_steps_total");
}

TEST(MetricsRegistryDeathTest, BucketsOutOfOrderAreABrokenInvariant) {
  MetricsRegistry registry;
  const double equal[] = {1, 1};
  EXPECT_DEATH(registry.AddHistogram("moe_step_seconds", "Steps.", equal), "moe_step_seconds.*ascend");
}

TEST(ExponentialBucketsTest, EachBoundIsAFactorAboveTheOneBefore) {
  EXPECT_THAT(ExponentialBuckets(0.5, 4, 4), ElementsAre(0.5, 2, 8, 32));
  EXPECT_THAT(ExponentialBuckets(3, 2, 1), ElementsAre(3));
}

TEST(MetricsRegistryTest, TextIsCleanUnderPromtool) {
  MetricsRegistry registry;
  registry.AddCounter("moe_requests_total", "Requests by outcome.", {{"outcome", "finished"}}).Add(3);
  registry.AddGauge("moe_model_parameters", "Parameters.", {{"scope", "active"}}).Set(1.5e9);
  registry.AddHistogram("moe_step_seconds", "Steps.", ExponentialBuckets(1e-4, 2, 16)).Observe(0.01);
  const CommandResult result = CheckWithPromtool(registry.Text());
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_EQ(result.output, "");
}

TEST(MetricsRegistryTest, PromtoolComplainsAboutABadName) {
  MetricsRegistry registry(MetricsRegistry::Process::kLeaveOut);
  registry.AddCounter("moe_latency_milliseconds", "");
  EXPECT_NE(CheckWithPromtool(registry.Text()).exit_code, 0);
}

}  // namespace
}  // namespace moe
