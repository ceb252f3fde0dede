// moe_serve's flags.
#pragma once

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>

#include "kernels/weight_type.h"
#include "model/dispatch_format.h"

namespace moe {

enum class TransportChoice { kAuto, kInProcess, kMpi };
enum class LoadFormat {
  kAuto,   // the files of the checkpoint
  kDummy,  // made up from config.json
};

struct ServeOptions {
  std::filesystem::path model;
  LoadFormat load_format = LoadFormat::kAuto;
  std::optional<WeightType> weight_type;  // absent: the narrowest that holds the stored values exactly
  std::string listen = "127.0.0.1:50051";
  std::string metrics_host = "127.0.0.1";
  std::optional<int> metrics_port = 9400;  // rank r serves this + r; absent: any free port; 0: off
  bool expert_metrics = false;
  TransportChoice transport = TransportChoice::kAuto;
  int threads = 0;  // of this rank; 0: its share of the node's processors
  std::string placement = "linear";
  int redundant_experts = 0;
  std::size_t max_sequences = 64;
  std::size_t max_step_tokens = 512;
  std::size_t max_queued = 1024;
  std::size_t kv_tokens = 0;      // 0: enough for max_sequences, within a quarter of the memory
  std::size_t prefill_chunk = 0;  // 0: as many as fit in a step
  ExchangeType exchange_type = ExchangeType::kF32;
  std::chrono::milliseconds exchange_timeout{30'000};
  std::chrono::milliseconds load_timeout{600'000};
  std::chrono::milliseconds drain_timeout{30'000};
  std::filesystem::path ready_file;
  std::string log_level = "info";
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
