#include "bench/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "bench/load_report.h"
#include "core/date.h"

namespace moe {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::MatchesRegex;

std::vector<std::string> Keys(const json& object) {
  std::vector<std::string> keys;
  for (const auto& item : object.items()) keys.push_back(item.key());
  return keys;
}

LoadResult SomeResult() {
  LoadResult result;
  result.model.name = "toy";
  result.figures.completed = 3;
  result.figures.ttft_ms = Summary{1, 2, 3, 4, 5, 6, 7};
  return result;
}

TEST(EnvelopeJson, HasExactlyThePromisedKeys) {
  const json envelope = json::parse(EnvelopeJson({.kind = "load",
                                                  .when = NowUtc(),
                                                  .host = DescribeHost(),
                                                  .build = DescribeBuild(),
                                                  .config = {{"seed", std::int64_t{1}}},
                                                  .results_json = "{\"completed\": 3}"}));
  EXPECT_THAT(Keys(envelope),
              testing::UnorderedElementsAre("schema", "kind", "when", "host", "build", "config", "results"));
  EXPECT_EQ(envelope["schema"], 1);
  EXPECT_EQ(envelope["kind"], "load");
  EXPECT_THAT(envelope["when"].get<std::string>(), MatchesRegex("....-..-..T..:..:..Z"));
  EXPECT_THAT(Keys(envelope["host"]), testing::UnorderedElementsAre("cpu", "cores", "memory_bytes", "isa",
                                                                    "read_bandwidth_bytes_per_s", "peak_flops"));
  EXPECT_GE(envelope["host"]["cores"], 1);
  EXPECT_GT(envelope["host"]["memory_bytes"], 1 << 20);
  EXPECT_TRUE(envelope["host"]["peak_flops"].is_null());
  EXPECT_THAT(Keys(envelope["build"]), testing::UnorderedElementsAre("version", "commit", "compiler"));
  EXPECT_THAT(envelope["build"]["version"].get<std::string>(), MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+"));
  EXPECT_EQ(envelope["results"]["completed"], 3);
}

TEST(EnvelopeJson, KeepsTheTypesOfFlags) {
  const json config = json::parse(EnvelopeJson({.config = {{"a", std::monostate{}},
                                                           {"b", true},
                                                           {"c", std::int64_t{-2}},
                                                           {"d", 0.5},
                                                           {"e", std::numeric_limits<double>::infinity()},
                                                           {"f", std::string("x\xff")}},
                                                .results_json = "{}"}))["config"];
  EXPECT_TRUE(config["a"].is_null());
  EXPECT_EQ(config["b"], true);
  EXPECT_EQ(config["c"], -2);
  EXPECT_EQ(config["d"], 0.5);
  EXPECT_EQ(config["e"], "inf");
  EXPECT_TRUE(config["f"].is_string());
}

TEST(LoadResultsJson, HasThePromisedKeys) {
  const json results = json::parse(LoadResultsJson(SomeResult()));
  for (const char* key :
       {"completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput",
        "output_throughput", "total_token_throughput", "max_concurrency", "duration"}) {
    EXPECT_TRUE(results.contains(key)) << key;
  }
  for (const char* name : {"ttft", "tpot", "itl", "e2el"}) {
    for (const char* statistic : {"mean", "median", "std", "p50", "p90", "p95", "p99"}) {
      EXPECT_TRUE(results.contains(Cat(statistic, "_", name, "_ms"))) << statistic << name;
    }
  }
  EXPECT_EQ(results["mean_ttft_ms"], 1);
  EXPECT_EQ(results["median_ttft_ms"], 2);
  EXPECT_EQ(results["std_ttft_ms"], 3);
  EXPECT_EQ(results["p50_ttft_ms"], 4);
  EXPECT_EQ(results["p90_ttft_ms"], 5);
  EXPECT_EQ(results["p95_ttft_ms"], 6);
  EXPECT_EQ(results["p99_ttft_ms"], 7);
  EXPECT_TRUE(results["mean_itl_ms"].is_null());
  EXPECT_TRUE(results["request_goodput"].is_null());
  EXPECT_TRUE(results["max_concurrency"].is_null());
}

TEST(LoadTable, ShowsCountsReasonsAndLatencies) {
  LoadResult result = SomeResult();
  result.figures.failed = 2;
  result.figures.failures["RESOURCE_EXHAUSTED"] = {2, "queue is full"};
  const std::string table = LoadTable(result, 12.5);
  EXPECT_THAT(table, MatchesRegex("(.|\n)*Successful requests: +3\n(.|\n)*Failed requests: +2\n(.|\n)*"));
  EXPECT_THAT(table, MatchesRegex("(.|\n)*RESOURCE_EXHAUSTED: +2\n +queue is full\n(.|\n)*"));
  EXPECT_THAT(table, MatchesRegex("(.|\n)*Request rate configured \\(req/s\\): +12\\.50\n(.|\n)*"));
  EXPECT_THAT(table, MatchesRegex("(.|\n)*P99 TTFT \\(ms\\): +7\\.00\n(.|\n)*"));
}

TEST(LoadComplaint, IsOneSentenceOrNothing) {
  LoadResult result = SomeResult();
  EXPECT_EQ(LoadComplaint(result), "");
  result.figures.failed = 2;
  result.figures.failures["RESOURCE_EXHAUSTED"] = {2, "queue is full"};
  EXPECT_EQ(LoadComplaint(result), "2 of 5 requests did not complete: RESOURCE_EXHAUSTED 2 (queue is full).");
  result.interrupted = true;
  result.figures.not_sent = 5;
  EXPECT_THAT(LoadComplaint(result), HasSubstr("; interrupted with 3 of 10 requests completed."));
}

}  // namespace
}  // namespace moe
