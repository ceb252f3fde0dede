// moe_serve's flags.
#pragma once

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include "ranks/rank_setup.h"

namespace moe {

struct ServeOptions : RankOptions {
  std::string listen = "127.0.0.1:50051";
  std::string metrics_host = "127.0.0.1";
  std::optional<int> metrics_port = 9400;  // rank r serves this + r; absent: any free port; 0: off
  bool expert_metrics = false;
  std::size_t max_sequences = 64;
  std::size_t max_queued = 1024;
  std::size_t prefill_chunk = 0;  // 0: as many as fit in a step
  std::chrono::milliseconds drain_timeout{30'000};
  std::filesystem::path ready_file;
  std::string log_level = "info";
};

/// A rank of moe_serve, before it takes its role.
struct ServeSetup : RankSetup {
  ServeSetup(RankSetup rank_setup, ServeOptions serve_options)
      : RankSetup(std::move(rank_setup)), options(std::move(serve_options)) {}

  ServeOptions options;
};

/// What the command line asks for: to run, or to print `text` and exit with `exit_code` (help, version, bad usage).
struct ParsedServeOptions {
  ServeOptions options;
  bool run = false;
  int exit_code = 0;
  std::string text;
};

ParsedServeOptions ParseServeOptions(int argc, char** argv);

}  // namespace moe
