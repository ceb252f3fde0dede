#include "apps/serve_options.h"

#include <CLI/CLI.hpp>
#include <array>
#include <string_view>

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
  moe_serve worker --model DIR --listen 0.0.0.0:6001 --metrics-port 9401
  moe_serve router --model DIR --workers host1:6001,host2:6001 --redundant-experts 8
      a fleet without MPI: workers first or last, each told by the router what to host; one that is lost may come back
  moe_serve --model DIR --listen 127.0.0.1:0 --metrics-port auto --ready-file /tmp/ready.json
      any free ports; the file says which

Every flag can also be given in a TOML file (--config FILE) and in the environment (--max-queued as MOE_MAX_QUEUED).
SIGTERM to the router drains: what is accepted finishes, nothing more is accepted. A second one stops at once.)";

void AddAddressOptions(CLI::App& app, FlagAdder& add, ServeOptions& o) {
  add.Add("--listen", o.listen,
          "HOST:PORT of the gRPC services; port 0: any free one; or unix:/PATH for this machine alone")
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

void AddObservationOptions(FlagAdder& add, ServeOptions& o) {
  constexpr std::size_t kMostSteps = std::size_t{1} << 30;
  constexpr std::uint64_t kLeastTrace = 64 << 10;
  constexpr std::uint64_t kMostTrace = std::uint64_t{1} << 50;
  add.Add("--trace", o.trace, "File that the routing of every step is recorded in (docs/trace-format.md)");
  add.Add("--trace-limit", o.trace_limit, "Bytes of a trace, at which its recording ends; 64K, 100M, 2G …")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(kLeastTrace, kMostTrace));
  add.Add("--load-window-steps", o.load_window_steps, "Steps that the figures of layers and experts cover")
      ->check(CLI::Range(std::size_t{1}, kMostSteps));
  add.AddSeconds("--load-window-seconds", o.load_window_age,
                 "Seconds that they cover at most, while there are steps; 0: however long the steps take");
}

void AddRebalanceOptions(FlagAdder& add, ServeOptions& o) {
  add.AddChoice<RebalanceMode>(
      "--rebalance", o.rebalance,
      {{"off", RebalanceMode::kOff}, {"advise", RebalanceMode::kAdvise}, {"auto", RebalanceMode::kAuto}}, "off",
      "advise: say now and then whether experts should move; auto: move them; off: only when Cluster.Rebalance asks");
  add.AddSeconds("--rebalance-interval", o.rebalance_interval, "Seconds between two looks at the load")
      ->check(CLI::Range(0.1, 1e6));
  add.Add("--rebalance-gain", o.rebalance_gain, "Share of a mean step that moving must win")
      ->check(CLI::Range(0.0, 1.0));
  add.AddSeconds("--rebalance-horizon", o.rebalance_horizon,
                 "Seconds that a load is trusted to last: by then moving must have been earned back");
  add.AddSeconds("--rebalance-cooldown", o.rebalance_cooldown, "For auto: seconds from one move to the next at least");
}

void AddMigrationOptions(FlagAdder& add, ServeOptions& o) {
  constexpr std::uint64_t kMost = std::uint64_t{1} << 50;
  add.Add(
         "--migration-bandwidth", o.migration_bandwidth,
         "Bytes of weights per second that each worker loads when experts move, 16M, 1G …; 0: no limit. The default is "
         "low against what a worker reads for its rows, so that these hardly notice")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::uint64_t{0}, kMost));
}

void AddFleetOptions(CLI::App& app, FlagAdder& add, ServeOptions& o) {
  if (o.role != ServeRole::kRouter) return;
  add.Add("--workers", o.workers,
          "HOST:PORT or unix:/PATH of each worker, with commas between them; the first is rank 1")
      ->delimiter(',')
      ->required()
      ->check([](const std::string& value) { return ParseListenAddress(value).status().message(); });
  app.get_option("--transport")->default_str("grpc");
}

void AddTlsOptions(FlagAdder& add, TlsFiles& tls) {
  add.Add("--tls-cert", tls.certificate, "PEM file with this process's certificate and its chain");
  add.Add("--tls-key", tls.key, "PEM file with that certificate's key");
  add.Add(
      "--tls-ca", tls.ca,
      "PEM file with the authority that the other end's certificate must come from: of clients, and between routers "
      "and workers");
}

constexpr std::array kOfRoutersAlone = {"--attention-weight-type",
                                        "--kv-type",
                                        "--placement",
                                        "--loads",
                                        "--redundant-experts",
                                        "--micro-batches",
                                        "--exchange-type",
                                        "--exchange-timeout",
                                        "--load-timeout",
                                        "--expert-metrics",
                                        "--max-sequences",
                                        "--max-queued",
                                        "--kv-tokens",
                                        "--prefill-chunk",
                                        "--drain-timeout",
                                        "--routing",
                                        "--routing-seed",
                                        "--trace",
                                        "--trace-limit",
                                        "--load-window-steps",
                                        "--load-window-seconds",
                                        "--rebalance",
                                        "--rebalance-interval",
                                        "--rebalance-gain",
                                        "--rebalance-horizon",
                                        "--rebalance-cooldown",
                                        "--migration-bandwidth"};

/// Why the flags do not fit the role; empty when they do.
std::string Misfit(const CLI::App& app, const ServeOptions& o) {
  if (o.role == ServeRole::kJob) return "";
  if (o.transport != TransportChoice::kAuto && !IsGrpc(o.transport))
    return "--transport: a router or a worker of a fleet speaks grpc";
  if (o.role == ServeRole::kRouter) {
    if (app.get_option("--backend")->count() == 0) return "";
    return "--backend is for the workers; a router of a fleet computes on its processors";
  }
  for (const char* flag : kOfRoutersAlone)
    if (app.get_option(flag)->count() > 0) return Cat(flag, " is for the router; a worker has no use for it");
  return "";
}

/// Takes a role from the front of the command line.
ServeRole TakeRole(int& argc, char**& argv) {
  const std::string_view word = argc > 1 ? argv[1] : "";
  const ServeRole role = word == "router"   ? ServeRole::kRouter
                         : word == "worker" ? ServeRole::kWorker
                                            : ServeRole::kJob;
  if (role != ServeRole::kJob) {
    argv[1] = argv[0];
    ++argv;
    --argc;
  }
  return role;
}

}  // namespace

ParsedServeOptions ParseServeOptions(int argc, char** argv) {
  ParsedServeOptions parsed;
  ServeOptions& options = parsed.options;
  options.role = TakeRole(argc, argv);
  CLI::App app("Serves a Mixture-of-Experts model to gRPC clients, over one process or many.",
               options.role == ServeRole::kRouter   ? "moe_serve router"
               : options.role == ServeRole::kWorker ? "moe_serve worker"
                                                    : "moe_serve [router|worker]");
  app.footer(kExamples);
  app.set_version_flag("--version", Cat("moe_serve ", kBuildVersion, " (", kBuildCommit, ")"));
  app.set_config("--config", "", "TOML file with any of these flags");
  app.allow_config_extras(CLI::config_extras_mode::error);
  FlagAdder add(app);
  AddRankFlags(add, parsed.options);
  AddMicroBatchesFlag(add, parsed.options.micro_batches);
  AddAddressOptions(app, add, parsed.options);
  AddLimitOptions(add, parsed.options);
  AddObservationOptions(add, parsed.options);
  AddRebalanceOptions(add, parsed.options);
  AddMigrationOptions(add, parsed.options);
  AddFleetOptions(app, add, options);
  AddTlsOptions(add, options.tls);
  add.Add("--log-level", parsed.options.log_level, "trace, debug, info, warning, error or off")
      ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error", "off"}));
  try {
    app.parse(argc, argv);
    parsed.text = Misfit(app, options);
    parsed.run = parsed.text.empty();
    if (!parsed.run) parsed.exit_code = kExitBadUsage;
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    std::ostringstream err;
    const int code = app.exit(error, out, err);
    parsed.exit_code = code == 0 ? 0 : kExitBadUsage;
    parsed.text = code == 0 ? out.str() : Cat(error.what(), " (moe_serve --help lists the flags)");
  }
  return parsed;
}

}  // namespace moe
