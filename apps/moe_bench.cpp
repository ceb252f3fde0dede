// moe_bench: measurements of moe-serve. Flags and wiring only; what they do is in bench/.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cctype>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "bench/load.h"
#include "bench/load_report.h"
#include "bench/report.h"
#include "core/text.h"

namespace {

constexpr int kFailed = 1;
constexpr int kBadUsage = 2;

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

int Fail(int code, const std::string& sentence) {
  std::cerr << "moe_bench: " << sentence << '\n';
  return code;
}

// A flag's value with the type that it was declared with.
moe::ConfigEntry Describe(const CLI::Option& option) {
  moe::ConfigEntry entry{.name = option.get_lnames().front(), .value = {}};
  std::replace(entry.name.begin(), entry.name.end(), '-', '_');
  if (option.get_expected_max() == 0) {
    // A flag keeps what was given; without it, its default is in the default string.
    const std::string text = option.count() > 0 ? option.results().back() : option.get_default_str();
    entry.value = text == "true";
    return entry;
  }
  std::vector<std::string> results = option.results();
  if (results.empty() && !option.get_default_str().empty()) results = {option.get_default_str()};
  if (results.empty()) return entry;
  const std::string text = CLI::detail::join(results, " ");
  const std::string type = option.get_type_name();
  if (type == "UINT" || type == "INT") {
    entry.value = static_cast<std::int64_t>(std::stoll(text));
  } else if (type.starts_with("FLOAT")) {  // a range may follow
    entry.value = std::stod(text);
  } else {
    entry.value = text;
  }
  return entry;
}

std::vector<moe::ConfigEntry> DescribeAll(const CLI::App& command) {
  std::vector<moe::ConfigEntry> entries;
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_configurable() && !option->get_lnames().empty()) entries.push_back(Describe(*option));
  }
  return entries;
}

// Every flag of `command` also as MOE_BENCH_NAME.
void NameInEnvironment(CLI::App& command) {
  for (CLI::Option* option : command.get_options()) {
    if (!option->get_configurable() || option->get_lnames().empty()) continue;
    std::string name = option->get_lnames().front();
    std::replace(name.begin(), name.end(), '-', '_');
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    option->envname("MOE_BENCH_" + name);
  }
}

struct LoadFlags {
  moe::LoadOptions options;
  double connect_timeout_s = 10;
  double timeout_s = 600;
  std::string arrival = "poisson";
  std::string input_len = "128";
  std::string output_len = "64";
  bool random = false;
  float top_p = 1;
  std::vector<std::string> goodput;
  bool json = false;
  std::string output;
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
  moe::LoadOptions& options = flags.options;
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
  moe::SamplingOptions& sampling = options.client.sampling;
  command.add_option("--temperature", sampling.temperature, "0 is greedy")->capture_default_str();
  command.add_option("--top-k", sampling.top_k, "0 is off")->capture_default_str();
  command.add_option("--top-p", flags.top_p, "in (0, 1]; 1 is off")->capture_default_str();
  command.add_flag("--ignore-eos,!--no-ignore-eos", sampling.ignore_eos, "generate the full --output-len")
      ->default_str("true");
}

void AddLoadFlags(CLI::App& command, LoadFlags& flags) {
  moe::LoadOptions& options = flags.options;
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
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  command.add_option("--timeout", flags.timeout_s, "seconds that a call may take")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  command.add_flag("--json", flags.json, "results as JSON on stdout")->default_str("false");
  command.add_option("--output", flags.output, "write the JSON into this file too");
  command.footer(kLoadExamples);
}

std::chrono::milliseconds Milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(std::lround(seconds * 1000)));
}

// What CLI11 does not check by itself.
moe::Status Finish(const CLI::App& command, LoadFlags& flags) {
  moe::LoadOptions& options = flags.options;
  MOE_ASSIGN_OR_RETURN(options.workload.input_len, moe::ParseLengthRange(flags.input_len));
  MOE_ASSIGN_OR_RETURN(options.workload.output_len, moe::ParseLengthRange(flags.output_len));
  MOE_ASSIGN_OR_RETURN(options.slo, moe::ParseSlo(flags.goodput));
  options.arrival = flags.arrival == "fixed" ? moe::Arrival::kFixed : moe::Arrival::kPoisson;
  if (!std::isfinite(options.client.sampling.temperature) || options.client.sampling.temperature < 0) {
    return moe::InvalidArgument("--temperature is ", options.client.sampling.temperature,
                                ", a finite number of at least 0 was expected.");
  }
  if (!(flags.top_p > 0 && flags.top_p <= 1)) {
    return moe::InvalidArgument("--top-p is ", flags.top_p, ", a number in (0, 1] was expected.");
  }
  if (command.get_option("--top-p")->count() > 0) options.client.sampling.top_p = flags.top_p;
  options.client.connect_timeout = Milliseconds(flags.connect_timeout_s);
  options.client.call_timeout = Milliseconds(flags.timeout_s);
  options.client.interrupted = &interrupted;
  options.progress = isatty(STDERR_FILENO) != 0;
  return moe::Status::Ok();
}

int Load(const CLI::App& command, LoadFlags& flags) {
  if (const moe::Status status = Finish(command, flags); !status.ok()) return Fail(kBadUsage, status.message());
  // Before the run, because a long one must not end with nowhere to go; what is there stays until there is more to say.
  if (!flags.output.empty() && !std::ofstream(flags.output, std::ios::app)) {
    return Fail(kBadUsage, moe::Cat("--output ", flags.output, ": cannot be written."));
  }
  WatchSignals();
  const std::string when = moe::NowUtc();
  const moe::Result<moe::LoadResult> result = moe::RunLoad(flags.options);
  if (!result.ok()) {
    const bool usage = result.status().code() == moe::StatusCode::kInvalidArgument;
    return Fail(usage ? kBadUsage : kFailed, result.status().message());
  }
  const std::string json = moe::EnvelopeJson({.kind = "load",
                                              .when = when,
                                              .host = moe::DescribeHost(),
                                              .build = moe::DescribeBuild(),
                                              .config = DescribeAll(command),
                                              .results_json = moe::LoadResultsJson(*result)});
  std::cout << (flags.json ? json : moe::LoadTable(*result, flags.options.request_rate)) << std::flush;
  if (!flags.output.empty()) {
    std::ofstream file(flags.output, std::ios::binary);
    file << json << std::flush;
    if (!file) return Fail(kFailed, moe::Cat("--output ", flags.output, ": could not be written in full."));
  }
  if (!std::cout) return Fail(kFailed, "the results could not be written to standard output.");
  if (!result->clean()) return Fail(kFailed, moe::LoadComplaint(*result));
  return 0;
}

std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Measurements of moe-serve."};
  const moe::BuildDescription build = moe::DescribeBuild();
  app.set_version_flag("--version", moe::Cat("moe_bench ", build.version, " (", build.commit, ")"));
  app.set_config("--config", "", "TOML file with flags, a section for each command, for example [load]");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.require_subcommand(1);
  app.fallthrough();
  app.footer(
      "moe_bench COMMAND --help shows a command's flags and examples, for example:\n"
      "  moe_bench load --server 127.0.0.1:50051 --num-requests 200 --request-rate 20");

  LoadFlags load_flags;
  CLI::App* load = app.add_subcommand("load", "Send requests to a running server; measure throughput and latencies.");
  AddLoadFlags(*load, load_flags);
  load->configurable();
  load->fallthrough();
  NameInEnvironment(*load);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and version are no errors; CLI11 prints them on stdout.
    if (error.get_exit_code() == 0) return app.exit(error);
    if (const auto* config = dynamic_cast<const CLI::ConfigError*>(&error)) {
      return Fail(kBadUsage, moe::Cat("--config: a key is unknown or wrong: ", FirstLine(config->what()), "."));
    }
    // CLI11 would only say that a command is missing.
    if (const std::vector<std::string> rest = app.remaining(); app.get_subcommands().empty() && !rest.empty()) {
      return Fail(kBadUsage, moe::Cat("\"", rest.front(), "\" is neither a command nor a flag (commands: load)."));
    }
    return Fail(kBadUsage, FirstLine(error.what()) + " (moe_bench --help shows what is known)");
  }
  return Load(*load, load_flags);
}
