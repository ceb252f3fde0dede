// moe_serve's flags.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ranks/rank_setup.h"
#include "rpc/tls.h"

namespace moe {

/// What the first word of the command line says.
enum class ServeRole : std::uint8_t {
  kJob,     // none: embedded, or a rank of an MPI job
  kRouter,  // of a fleet, without MPI
  kWorker,
};

struct ServeOptions : RankOptions {
  ServeRole role = ServeRole::kJob;
  std::vector<std::string> workers;  // HOST:PORT of each, for a router of a fleet
  TlsFiles tls;
  std::string listen = "127.0.0.1:50051";
  std::string metrics_host = "127.0.0.1";
  std::optional<int> metrics_port = 9400;  // rank r serves this + r; absent: any free port; 0: off
  bool expert_metrics = false;
  std::size_t max_sequences = 64;
  std::size_t max_queued = 1024;
  std::size_t prefill_chunk = 0;  // 0: as many as fit in a step
  std::chrono::milliseconds drain_timeout{30'000};
  std::filesystem::path ready_file;
  std::filesystem::path trace;                         // recorded from the first step on; empty: nothing is
  std::uint64_t trace_limit = std::uint64_t{1} << 30;  // bytes of a trace that names no limit of its own
  std::size_t load_window_steps = 1024;
  std::chrono::milliseconds load_window_age{600'000};           // 0: no limit
  std::uint64_t migration_bandwidth = std::uint64_t{64} << 20;  // bytes per second that a worker loads; 0: no limit
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

/// `argv` may begin with a role. A flag that its role has no use for is bad usage.
ParsedServeOptions ParseServeOptions(int argc, char** argv);

}  // namespace moe
