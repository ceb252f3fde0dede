// Sends Generate calls and records what comes back. Hundreds of streams share gRPC's few threads; none blocks one.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "bench/load_records.h"
#include "bench/workload.h"
#include "core/status.h"

namespace moe {

struct SamplingOptions {
  float temperature = 0;
  std::uint32_t top_k = 0;
  std::optional<float> top_p;
  bool ignore_eos = true;
};

class GenerateClient {
 public:
  struct Options {
    std::string server;  // HOST:PORT
    std::chrono::milliseconds connect_timeout{10'000};
    std::chrono::milliseconds call_timeout{600'000};  // of each call, from the moment it is sent
    SamplingOptions sampling;
    const std::atomic<bool>* interrupted = nullptr;  // true: stop waiting for the server
  };
  /// Called once for each call, on a thread of gRPC; must be short.
  using Done = std::function<void(CallRecord)>;

  /// Waits until the server answers GetModel; UNAVAILABLE naming the address when it does not in time.
  static Result<std::unique_ptr<GenerateClient>> Connect(const Options& options);
  /// No call may be open.
  ~GenerateClient();
  GenerateClient(const GenerateClient&) = delete;
  GenerateClient& operator=(const GenerateClient&) = delete;

  const ServedModel& model() const { return model_; }

  struct Ticket {
    std::uint64_t index = 0;
    TimePoint scheduled{};
  };
  void Start(const PlannedCall& call, const Ticket& ticket, Done done);

  /// Cancels every open call; each still ends through its `done`.
  void CancelAll();

 private:
  struct State;
  explicit GenerateClient(const Options& options);

  Options options_;
  ServedModel model_;
  std::unique_ptr<State> state_;
};

}  // namespace moe
