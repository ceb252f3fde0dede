#include "apps/serve_options.h"

#include <CLI/CLI.hpp>

#include "apps/flags.h"
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

void AddModelOptions(FlagAdder& add, ServeOptions& o) {
  add.Add("--model", o.model, "Folder of a Hugging Face checkpoint")->required();
  add.AddChoice<LoadFormat>("--load-format", o.load_format,
                            {{"auto", LoadFormat::kAuto}, {"dummy", LoadFormat::kDummy}}, "auto",
                            "dummy: config.json only, with random weights that are the same on every topology");
  add.AddChoice<std::optional<WeightType>>(
      "--weight-type", o.weight_type,
      {{"auto", std::nullopt}, {"f32", WeightType::kF32}, {"bf16", WeightType::kBf16}, {"f16", WeightType::kF16}},
      "auto", "Type that weights are held in; auto: the narrowest that loses nothing of what is stored");
  add.Add("--placement", o.placement, "linear, round_robin or a placement file")
      ->check([](const std::string& value) -> std::string {
        if (value == "linear" || value == "round_robin" || std::filesystem::exists(value)) return "";
        return Cat(value, " is not linear, round_robin or a file that exists");
      });
  add.Add("--redundant-experts", o.redundant_experts, "Extra slots per layer, over all workers")
      ->check(CLI::Range(0, 1'000'000));
}

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

void AddMachineOptions(FlagAdder& add, ServeOptions& o) {
  add.AddChoice<TransportChoice>(
      "--transport", o.transport,
      {{"auto", TransportChoice::kAuto}, {"inprocess", TransportChoice::kInProcess}, {"mpi", TransportChoice::kMpi}},
      "auto", "auto: mpi under mpirun with two or more ranks, else inprocess");
  static const Choices<int> backends = {{"auto", 0}, {"cpu", 0}};
  static int unused_backend = 0;  // one backend exists; the flag says so
  add.AddChoice<int>("--backend", unused_backend, backends, "auto", "Where experts are computed");
  add.Add("--threads", o.threads, "Compute threads of each rank; 0: its share of the processors")
      ->check(CLI::Range(0, 4096));
  add.AddChoice<ExchangeType>("--exchange-type", o.exchange_type,
                              {{"f32", ExchangeType::kF32}, {"bf16", ExchangeType::kBf16}}, "f32",
                              "Type of the rows between router and workers");
  add.AddSeconds("--exchange-timeout", o.exchange_timeout, "Seconds that a worker may take to answer");
  add.AddSeconds("--load-timeout", o.load_timeout, "Seconds that workers may take to load");
}

void AddLimitOptions(FlagAdder& add, ServeOptions& o) {
  constexpr std::size_t kMost = 1 << 20;
  constexpr std::size_t kMostKvTokens = std::size_t{1} << 40;  // far above any memory; far below what overflows
  add.Add("--max-sequences", o.max_sequences, "Sequences that run at a time")->check(CLI::Range(std::size_t{1}, kMost));
  add.Add("--max-step-tokens", o.max_step_tokens, "Tokens of an engine step")->check(CLI::Range(std::size_t{2}, kMost));
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
  AddModelOptions(add, parsed.options);
  AddAddressOptions(app, add, parsed.options);
  AddMachineOptions(add, parsed.options);
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
