#include "apps/serve_options.h"

#include <CLI/CLI.hpp>

#include "apps/flags.h"
#include "apps/rank_flags.h"
#include "build_info.h"
#include "core/text.h"
#include "rpc/listen_address.h"

namespace moe {
namespace {

constexpr const char* kExamples = R"(
Examples:
  moe_serve --model models/eight-languages-moe
      router and experts in one process
  mpirun --oversubscribe --bind-to none -n 8 moe_serve --model models/eight-languages-moe
      rank 0 routes, ranks 1 to 7 host the experts (as root, mpirun also needs --allow-run-as-root)
  moe_serve --model DIR --listen 127.0.0.1:0 --metrics-port auto --ready-file /tmp/ready.json
      any free ports; the file says which

Every flag can also be given in a TOML file (--config FILE) and in the environment (--max-queued as MOE_MAX_QUEUED).
SIGTERM to the router drains: what is accepted finishes, nothing more is accepted. A second one stops at once.)";

void AddAddressOptions(CLI::App& app, FlagAdder& add, ServeOptions& o) {
  add.Add("--listen", o.listen, "HOST:PORT of the gRPC services; port 0: any free one")
      ->check([](const std::string& value) { return ParseListenAddress(value).status().message(); });
  add.Add("--metrics-host", o.metrics_host, "Host that metrics and the workers' control services listen on");
  app.add_option_function<std::string>(
         "--metrics-port",
         [&o](const std::string& text) { o.metrics_port = text == "auto" ? std::optional<int>() : std::stoi(text); },
         "Rank r serves /metrics on this + r; auto: any free ports; 0: off")
      ->envname(EnvironmentName("--metrics-port"))
      ->default_str("9400")
      ->check(CLI::IsMember({"auto"}) | CLI::Range(0, 65535));
  add.AddSwitch("--expert-metrics", o.expert_metrics, "Serve counts per layer and expert on /metrics/experts");
  add.Add("--ready-file", o.ready_file, "JSON file with the addresses really bound, written when serving");
}

void AddBackendOption(FlagAdder& add) {
  static const Choices<int> backends = {{"auto", 0}, {"cpu", 0}};
  static int unused_backend = 0;  // one backend exists; the flag says so
  add.AddChoice<int>("--backend", unused_backend, backends, "auto", "Where experts are computed");
}

void AddLimitOptions(FlagAdder& add, ServeOptions& o) {
  constexpr std::size_t kMost = 1 << 20;
  constexpr std::size_t kMostKvTokens = std::size_t{1} << 40;  // far above any memory; far below what overflows
  add.Add("--max-sequences", o.max_sequences, "Sequences that run at a time")->check(CLI::Range(std::size_t{1}, kMost));
  add.Add("--max-queued", o.max_queued, "Sequences that wait at a time")->check(CLI::Range(std::size_t{1}, kMost));
  add.Add("--kv-tokens", o.kv_tokens,
          "Positions of the KV cache; 0: enough for --max-sequences, at most a quarter of the memory")
      ->check(CLI::Range(std::size_t{0}, kMostKvTokens));
  add.Add("--prefill-chunk", o.prefill_chunk, "Prompt tokens of a sequence in a step; 0: as many as fit")
      ->check(CLI::Range(std::size_t{0}, kMost));
  add.AddSeconds("--drain-timeout", o.drain_timeout, "Seconds that a drain may take");
}

}  // namespace

ParsedServeOptions ParseServeOptions(int argc, char** argv) {
  ParsedServeOptions parsed;
  CLI::App app("Serves a Mixture-of-Experts model to gRPC clients, over one process or many.", "moe_serve");
  app.footer(kExamples);
  app.set_version_flag("--version", Cat("moe_serve ", kBuildVersion, " (", kBuildCommit, ")"));
  app.set_config("--config", "", "TOML file with any of these flags");
  app.allow_config_extras(CLI::config_extras_mode::error);
  FlagAdder add(app);
  AddRankFlags(add, parsed.options);
  AddAddressOptions(app, add, parsed.options);
  AddBackendOption(add);
  AddLimitOptions(add, parsed.options);
  add.Add("--log-level", parsed.options.log_level, "trace, debug, info, warning, error or off")
      ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error", "off"}));
  try {
    app.parse(argc, argv);
    parsed.run = true;
  } catch (const CLI::ParseError& error) {
    constexpr int kBadUsage = 2;
    std::ostringstream out;
    std::ostringstream err;
    const int code = app.exit(error, out, err);
    parsed.exit_code = code == 0 ? 0 : kBadUsage;
    parsed.text = code == 0 ? out.str() : Cat(error.what(), " (moe_serve --help lists the flags)");
  }
  return parsed;
}

}  // namespace moe
