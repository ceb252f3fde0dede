#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cmath>
#include <csignal>
#include <string>
#include <vector>

#include "apps/bench_commands.h"
#include "bench/load.h"
#include "bench/load_report.h"
#include "bench/report.h"
#include "core/date.h"

namespace moe {
namespace {

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler writes it");

void OnSignal(int) { interrupted.store(true); }

// The first signal ends a run early, a second one kills.
void WatchSignals() {
  struct sigaction action {};
  action.sa_handler = OnSignal;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
}

struct LoadFlags {
  LoadOptions options;
  double connect_timeout_s = 10;
  double timeout_s = 600;
  std::string arrival = "poisson";
  std::string input_len = "128";
  std::string output_len = "64";
  bool random = false;
  float top_p = 1;
  std::vector<std::string> goodput;
  OutputFlags output;
};

constexpr const char* kLoadExamples = R"(Examples:
  # 200 requests, Poisson arrivals at 20 a second, prompts from a text (a byte is a token)
  moe_bench load --server 127.0.0.1:50051 --num-requests 200 --request-rate 20 --text models/held-out.txt
  # 32 clients that each send the next request when the last one has ended, JSON for a program
  moe_bench load --server 127.0.0.1:50051 --concurrency 32 --num-requests 500 --input-len 64:256 --json
  # the share of requests a second that keep limits, warm-up left out, results kept
  moe_bench load --server 127.0.0.1:50051 --request-rate 5 --warmup 10 --goodput ttft:200 tpot:50 --output run.json
  # the same flags from a file with a section [load], or from the environment
  moe_bench --config run.toml load        MOE_BENCH_REQUEST_RATE=5 moe_bench load
Exit code: 0 every request completed, 1 some did not (or interrupted, or no server), 2 bad usage.
Definitions of all figures: bench/README.md.)";

void AddWorkloadFlags(CLI::App& command, LoadFlags& flags) {
  LoadOptions& options = flags.options;
  command.add_option("--num-requests", options.num_requests, "Generate calls to send")->capture_default_str();
  command.add_option("--input-len", flags.input_len, "tokens of a prompt: N, or A:B drawn uniformly")
      ->capture_default_str();
  command.add_option("--output-len", flags.output_len, "tokens to generate: N, or A:B drawn uniformly")
      ->capture_default_str();
  CLI::Option* text = command.add_option("--text", options.workload.text_file,
                                         "draw prompts from this file at random places, a byte a token");
  command.add_flag("--random", flags.random, "prompts of random token ids (the default without --text)")
      ->excludes(text);
  command.add_option("--seed", options.workload.seed, "names arrivals, lengths, prompts and sampling")
      ->capture_default_str();
  command.add_option("--sequences-per-request", options.workload.sequences_per_request, "sequences of each call")
      ->capture_default_str();
  command.add_option("--warmup", options.warmup, "calls before the run, in no figure")->capture_default_str();
  SamplingOptions& sampling = options.client.sampling;
  command.add_option("--temperature", sampling.temperature, "0 is greedy")->capture_default_str();
  command.add_option("--top-k", sampling.top_k, "0 is off")->capture_default_str();
  command.add_option("--top-p", flags.top_p, "in (0, 1]; 1 is off")->capture_default_str();
  command.add_flag("--ignore-eos,!--no-ignore-eos", sampling.ignore_eos, "generate the full --output-len")
      ->default_str("true");
}

void AddLoadFlags(CLI::App& command, LoadFlags& flags) {
  LoadOptions& options = flags.options;
  options.client.server = "127.0.0.1:50051";
  command.add_option("--server", options.client.server, "HOST:PORT of the router")->capture_default_str();
  command.add_option("--request-rate", options.request_rate, "open loop: calls due a second; inf: all at once")
      ->capture_default_str();
  command.add_option("--arrival", flags.arrival, "open loop: when calls are due")
      ->check(CLI::IsMember({"poisson", "fixed"}))
      ->capture_default_str();
  command
      .add_option("--concurrency", options.concurrency, "closed loop: this many calls are always open; 0: open loop")
      ->capture_default_str();
  command
      .add_option("--max-concurrency", options.max_concurrency,
                  "open loop: calls open at most, others wait; 0: no limit")
      ->capture_default_str();
  AddWorkloadFlags(command, flags);
  command.add_option("--goodput", flags.goodput, "limits of a good request: ttft:MS tpot:MS e2el:MS")->expected(1, 3);
  command.add_option("--connect-timeout", flags.connect_timeout_s, "seconds to wait for the server")
      ->check(RefuseNan)
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  command.add_option("--timeout", flags.timeout_s, "seconds that a call may take")
      ->check(RefuseNan)
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  AddOutputFlags(command, flags.output);
  command.footer(kLoadExamples);
}

std::chrono::milliseconds Milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(std::lround(seconds * 1000)));
}

// What CLI11 does not check by itself.
Status Finish(const CLI::App& command, LoadFlags& flags) {
  LoadOptions& options = flags.options;
  MOE_ASSIGN_OR_RETURN(options.workload.input_len, ParseLengthRange(flags.input_len));
  MOE_ASSIGN_OR_RETURN(options.workload.output_len, ParseLengthRange(flags.output_len));
  MOE_ASSIGN_OR_RETURN(options.slo, ParseSlo(flags.goodput));
  options.arrival = flags.arrival == "fixed" ? Arrival::kFixed : Arrival::kPoisson;
  if (!std::isfinite(options.client.sampling.temperature) || options.client.sampling.temperature < 0) {
    return InvalidArgument("--temperature is ", options.client.sampling.temperature,
                           ", a finite number of at least 0 was expected.");
  }
  if (!(flags.top_p > 0 && flags.top_p <= 1)) {
    return InvalidArgument("--top-p is ", flags.top_p, ", a number in (0, 1] was expected.");
  }
  if (command.get_option("--top-p")->count() > 0) options.client.sampling.top_p = flags.top_p;
  options.client.connect_timeout = Milliseconds(flags.connect_timeout_s);
  options.client.call_timeout = Milliseconds(flags.timeout_s);
  options.client.interrupted = &interrupted;
  options.progress = isatty(STDERR_FILENO) != 0;
  return Status::Ok();
}

Result<int> Load(const CLI::App& command, LoadFlags& flags) {
  if (const Status status = Finish(command, flags); !status.ok()) return Fail(kExitBadUsage, status.message());
  MOE_RETURN_IF_ERROR(CheckOutput(flags.output));
  WatchSignals();
  const std::string when = NowUtc();
  const Result<LoadResult> result = RunLoad(flags.options);
  if (!result.ok()) {
    const bool usage = result.status().code() == StatusCode::kInvalidArgument;
    return Fail(usage ? kExitBadUsage : kExitFailed, result.status().message());
  }
  const int code = WriteReport(command, flags.output,
                               {.kind = "load",
                                .when = when,
                                .host = DescribeHost(),
                                .results_json = LoadResultsJson(*result),
                                .table = LoadTable(*result, flags.options.request_rate)});
  if (code != 0) return code;
  return result->clean() ? 0 : Fail(kExitFailed, LoadComplaint(*result));
}

}  // namespace

BenchCommand AddLoadCommand(CLI::App& app) {
  return MakeCommand(app, "load", "Send requests to a running server; measure throughput and latencies.", AddLoadFlags,
                     Load);
}

}  // namespace moe
