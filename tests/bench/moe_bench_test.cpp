// The program itself: exit codes, one sentence on stderr, pure JSON on stdout, flags from file and environment.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/text.h"
#include "tests/bench/fake_inference_server.h"
#include "tests/bench/program.h"

namespace moe {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::string LoadArguments(const FakeInferenceServer& server, const std::string& more = "") {
  return Cat("load --server ", server.address(), " --num-requests 5 --input-len 8 --output-len 4 ", more);
}

TEST_F(Program, HelpAndVersionAreNoErrors) {
  const Outcome help = Run("load --help");
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("--request-rate"));
  EXPECT_THAT(help.out, HasSubstr("Examples:"));
  const Outcome version = Run("--version");
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, testing::StartsWith("moe_bench "));
}

TEST_F(Program, PrintsATableAndExitsWithZero) {
  const FakeInferenceServer server;
  const Outcome run = Run(LoadArguments(server));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("Successful requests:"));
  EXPECT_EQ(run.err, "");  // no progress bar: stderr is no terminal
}

TEST_F(Program, PrintsNothingButJsonWhenAsked) {
  const FakeInferenceServer server;
  const Outcome run =
      Run(LoadArguments(server, Cat("--json --goodput ttft:1e6 e2el:1e6 --output ", folder_, "/result.json")));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const json report = json::parse(run.out);
  EXPECT_EQ(report["kind"], "load");
  EXPECT_EQ(report["results"]["completed"], 5);
  EXPECT_EQ(report["results"]["request_goodput"], report["results"]["request_throughput"]);
  EXPECT_EQ(json::parse(Read("result.json")), report);
  const json& config = report["config"];
  EXPECT_EQ(config["num_requests"], 5);
  EXPECT_EQ(config["request_rate"], "inf");
  EXPECT_EQ(config["top_p"], 1);
  EXPECT_EQ(config["ignore_eos"], true);
  EXPECT_EQ(config["json"], true);
  EXPECT_EQ(config["random"], false);
  EXPECT_TRUE(config["text"].is_null());
  EXPECT_EQ(config["connect_timeout"], 10);
  EXPECT_EQ(config["goodput"], "ttft:1e6 e2el:1e6");
}

TEST_F(Program, TakesFlagsFromFileAndEnvironment) {
  const FakeInferenceServer server;
  std::ofstream(folder_ + "/run.toml") << "[load]\nnum-requests = 3\nignore-eos = false\nseed = 4\n";
  const Outcome run = Run(Cat("load --json --config '", folder_, "/run.toml' --seed 9"),
                          Cat("MOE_BENCH_SERVER=", server.address(), " MOE_BENCH_OUTPUT_LEN=2"));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const json report = json::parse(run.out);
  EXPECT_EQ(report["results"]["completed"], 3);
  EXPECT_EQ(report["results"]["total_output_tokens"], 6);
  EXPECT_EQ(report["config"]["ignore_eos"], false);
  EXPECT_EQ(report["config"]["seed"], 9);  // the command line wins
}

TEST_F(Program, FailuresAreExitCodeOneWithAReason) {
  const FakeInferenceServer server({.faults = {{"moe-bench-3", Fault::kRefuse}}});
  const Outcome run = Run(LoadArguments(server, "--json"));
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(run.err, "moe_bench: 1 of 5 requests did not complete: RESOURCE_EXHAUSTED 1 (queue is full).\n");
  const json results = json::parse(run.out)["results"];
  EXPECT_EQ(results["completed"], 4);
  EXPECT_EQ(results["failures"]["RESOURCE_EXHAUSTED"]["count"], 1);
}

TEST_F(Program, AnInterruptPrintsWhatThereIs) {
  FakeInferenceServer server({.faults = {{"moe-bench-1", Fault::kHang}}});
  const pid_t child = Start(LoadArguments(server, "--json --concurrency 1"));
  server.WaitForHanging(1);
  ASSERT_EQ(kill(child, SIGINT), 0);
  const Outcome run = Wait(child);
  EXPECT_EQ(run.exit_code, 1);
  const json results = json::parse(run.out)["results"];
  EXPECT_EQ(results["completed"], 1);
  EXPECT_EQ(results["interrupted"], 1);
  EXPECT_EQ(results["not_sent"], 3);
  EXPECT_THAT(run.err, HasSubstr("interrupted with 1 of 5 requests completed"));
}

TEST_F(Program, BadUsageIsExitCodeTwoAndOneSentence) {
  const FakeInferenceServer server;
  std::ofstream(folder_ + "/bad.toml") << "[load]\nrequest-rat = 3\n";
  const std::pair<std::string, const char*> cases[] = {
      {"", "subcommand"},
      {"nonsense", "nonsense"},
      {"load --nonsense", "--nonsense"},
      {"load --num-requests x", "--num-requests"},
      {"load --num-requests -1", "--num-requests"},
      {"load --arrival never", "never"},
      {"load --input-len 0", "\"0\""},
      {"load --goodput fast:1", "fast:1"},
      {"load --top-p 0", "--top-p"},
      {"load --temperature -0.5", "--temperature"},
      {"load --temperature nan", "--temperature"},
      {"load --timeout 0", "--timeout"},
      {"load --timeout nan", "--timeout"},
      {"load --concurrency 2 --request-rate 3", "--concurrency 2"},
      {"load --text a --random", "--random"},
      {"load --output /nonexistent/x", "/nonexistent/x"},
      {"load --config /nonexistent/x", "/nonexistent/x"},
      {"load --config " + folder_ + "/bad.toml", "request-rat"},
      {LoadArguments(server, "--text /nonexistent/x"), "/nonexistent/x"},
      {Cat("load --server ", server.address(), " --input-len 600"), "context of 512"},
  };
  for (const auto& [arguments, expected] : cases) ExpectRefused(arguments, expected);
}

TEST_F(Program, NoServerIsExitCodeOne) {
  const Outcome run = Run("load --server 127.0.0.1:1 --connect-timeout 0.05");
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(run.err, "moe_bench: server 127.0.0.1:1 could not be reached within 0.05 s.\n");
}

}  // namespace
}  // namespace moe
