#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "metrics/metrics.h"
#include "tests/metrics/exposition.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

int PortOf(const std::string& address) { return std::stoi(address.substr(address.rfind(':') + 1)); }

TEST(MetricsServerTest, PortZeroReportsTheAddressReallyBound) {
  auto server = MetricsServer::Start("127.0.0.1", 0);
  ASSERT_TRUE(server.ok()) << server.status().message();
  EXPECT_THAT((*server)->address(), StartsWith("127.0.0.1:"));
  EXPECT_GT(PortOf((*server)->address()), 0);

  MetricsRegistry registry;
  registry.AddCounter("moe_steps_total", "Steps.").Add(12);
  (*server)->Serve("/metrics", registry);
  const HttpResponse response = HttpGet((*server)->address(), "/metrics");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(SampleValue(response.body, "moe_steps_total"), 12);
  EXPECT_GT(SampleValue(response.body, "process_resident_memory_bytes").value_or(0), 0);
}

TEST(MetricsServerTest, EachPathServesItsOwnRegistry) {
  auto server = MetricsServer::Start("127.0.0.1", 0);
  ASSERT_TRUE(server.ok()) << server.status().message();
  MetricsRegistry common;
  MetricsRegistry experts(MetricsRegistry::Process::kLeaveOut);
  common.AddCounter("moe_steps_total", "Steps.").Add(1);
  experts.AddCounter("moe_expert_layer_tokens_total", "Tokens.", {{"expert", "3"}, {"layer", "0"}}).Add(2);
  (*server)->Serve("/metrics", common);
  (*server)->Serve("/metrics/experts", experts);

  const std::string first = HttpGet((*server)->address(), "/metrics").body;
  EXPECT_THAT(first, HasSubstr("moe_steps_total 1"));
  EXPECT_THAT(first, Not(HasSubstr("moe_expert_layer_tokens_total")));
  const std::string second = HttpGet((*server)->address(), "/metrics/experts").body;
  EXPECT_THAT(second, HasSubstr("moe_expert_layer_tokens_total{expert=\"3\",layer=\"0\"} 2"));
  EXPECT_THAT(second, Not(HasSubstr("moe_steps_total")));
  EXPECT_THAT(second, Not(HasSubstr("process_")));
}

TEST(MetricsServerTest, PathsThatNobodyServesAreNotFound) {
  auto server = MetricsServer::Start("127.0.0.1", 0);
  ASSERT_TRUE(server.ok()) << server.status().message();
  MetricsRegistry registry;
  (*server)->Serve("/metrics", registry);
  EXPECT_EQ(HttpGet((*server)->address(), "/metrics").status, 200);
  for (const char* path : {"/", "/metrics/experts", "/metricsx", "/metrics/../etc/passwd"}) {
    EXPECT_EQ(HttpGet((*server)->address(), path).status, 404) << path;
  }
}

TEST(MetricsServerTest, MetricsAddedAfterServeAreScraped) {
  auto server = MetricsServer::Start("127.0.0.1", 0);
  ASSERT_TRUE(server.ok()) << server.status().message();
  MetricsRegistry registry(MetricsRegistry::Process::kLeaveOut);
  (*server)->Serve("/metrics", registry);
  const Gauge gauge = registry.AddGauge("moe_requests_running", "Running.");
  for (const double value : {4.0, 0.0}) {
    gauge.Set(value);
    EXPECT_EQ(SampleValue(HttpGet((*server)->address(), "/metrics").body, "moe_requests_running"), value);
  }
}

TEST(MetricsServerTest, WhatIsServedIsCleanUnderPromtool) {
  auto server = MetricsServer::Start("127.0.0.1", 0);
  ASSERT_TRUE(server.ok()) << server.status().message();
  MetricsRegistry registry;
  registry.AddCounter("moe_steps_total", "Steps.").Add(1);
  (*server)->Serve("/metrics", registry);
  (void)HttpGet((*server)->address(), "/metrics");  // the server's own figures appear with the second scrape
  const CommandResult result = CheckWithPromtool(HttpGet((*server)->address(), "/metrics").body);
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_EQ(result.output, "");
}

TEST(MetricsServerTest, ATakenPortIsUnavailableAndNamed) {
  auto first = MetricsServer::Start("127.0.0.1", 0);
  ASSERT_TRUE(first.ok()) << first.status().message();
  auto second = MetricsServer::Start("127.0.0.1", PortOf((*first)->address()));
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(second.status().message(), HasSubstr((*first)->address()));
  EXPECT_THAT(second.status().message(), HasSubstr("Address already in use"));
}

TEST(MetricsServerTest, APortIsFreeAgainWhenItsServerIsGone) {
  auto first = MetricsServer::Start("127.0.0.1", 0);
  ASSERT_TRUE(first.ok()) << first.status().message();
  const int port = PortOf((*first)->address());
  (*first).reset();
  EXPECT_EQ(HttpGet("127.0.0.1:" + std::to_string(port), "/metrics").status, 0);
  auto second = MetricsServer::Start("127.0.0.1", port);
  EXPECT_TRUE(second.ok()) << second.status().message();
}

TEST(MetricsServerTest, AddressesThatCannotBeAreRefusedByName) {
  auto host = MetricsServer::Start("256.0.0.1", 9400);
  ASSERT_FALSE(host.ok());
  EXPECT_EQ(host.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(host.status().message(), HasSubstr("256.0.0.1:9400"));
  for (const int port : {-1, 65536}) {
    auto server = MetricsServer::Start("127.0.0.1", port);
    ASSERT_FALSE(server.ok());
    EXPECT_EQ(server.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(server.status().message(), HasSubstr(std::to_string(port)));
  }
}

}  // namespace
}  // namespace moe
