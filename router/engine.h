// One step: a few tokens of each of some sequences through all layers, and what follows from them.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "model/decoder.h"
#include "model/dense_backend.h"
#include "model/parameter_count.h"
#include "placement/load_window.h"
#include "router/expert_exchange.h"
#include "router/head.h"
#include "router/micro_batch_choice.h"
#include "router/micro_batches.h"
#include "router/scheduler.h"
#include "router/trace_recorder.h"

namespace moe {

/// What a step was like; reused by the next one.
struct StepReport {
  std::size_t tokens = 0;
  int micro_batches = 1;  // that the decoder's rows were cut into
  bool micro_batch_trial = false;
  double seconds = 0;
  double attention_seconds = 0;  // and the dense MLPs, shared experts and norms
  double gate_seconds = 0;
  double head_seconds = 0;
  double sample_seconds = 0;
  ExchangeTimes exchange;
  std::span<const WorkerStep> workers;
  std::uint64_t distinct_experts = 0;            // (layer, expert) pairs that any token used
  std::uint64_t touched_parameters = 0;          // distinct ones, of the dense part and of those experts
  std::span<const std::uint64_t> expert_tokens;  // (sparse layers, experts)
};

/// Sums over all steps so far.
struct EngineTotals {
  std::uint64_t steps = 0;
  std::uint64_t distinct_experts = 0;
  std::uint64_t touched_parameters = 0;
  std::vector<WorkerStep> workers;
};

class Engine {
 public:
  struct Options {
    std::size_t max_step_tokens = 0;
    std::size_t load_window_steps = 0;
    std::chrono::milliseconds load_window_age{0};  // 0: no limit
    MicroBatchChoice::Options micro_batches;       // as many as backend and exchange take
    MicroBatchChoice::Observer on_micro_batches;   // may be empty; by the thread that steps
  };

  /// `exchange` is null for a model without experts. Everything must outlive the engine.
  struct Parts {
    const ModelConfig& config;
    DenseBackend& backend;
    ExpertExchange* exchange;
    const Kernels& kernels;
    ThreadPool& pool;
  };
  Engine(Options options, Parts parts);

  /// Computes the chunks and appends tokens and scores to their sequences. A sequence with a token that wants an expert
  /// no worker has gets its `failure` set, and nothing else of it counts; the others do not notice. After a failure
  /// nothing of the step counts and the transport is done for; once the exchange has another one, the same chunks may
  /// be given again.
  Status Step(std::span<const Chunk> chunks);

  MicroBatchChoice& micro_batch_choice() { return choice_; }
  /// Null for a model without experts.
  ExpertExchange* exchange() const { return exchange_; }

  /// Between two steps: from now on they are recorded, until this is called with null. The recorder lives until then.
  void Record(TraceRecorder* recorder) { recorder_ = recorder; }
  const TraceRecorder* recorder() const { return recorder_; }

  const StepReport& report() const { return report_; }
  const EngineTotals& totals() const { return totals_; }
  const ParameterCount& parameters() const { return parameters_; }
  const LoadWindow& load_window() const { return window_; }
  const ModelConfig& config() const { return config_; }

 private:
  /// The experts of a micro-batch, from Start to Finish.
  struct Flight {
    bool under_way = false;
    Tensor shared;  // what joins them
  };

  /// The layers of one stack over the chunks that are for it.
  Status RunStack(const StackSpec& stack, std::span<const Chunk> chunks);
  Status RunLayers(const StackSpec& stack, std::span<const Chunk> chunks);
  /// One layer of one micro-batch, as far as it needs no worker's answer.
  Status Layer(std::size_t layer, std::size_t micro_batch, std::span<const Chunk> chunks);
  Status StartExperts(std::size_t layer, std::size_t micro_batch, Tensor input, std::span<const Chunk> chunks);
  /// What is left of the micro-batch's layer before, if anything.
  Status FinishExperts(std::size_t micro_batch);
  /// Leaves the sequences of tokens that nobody can serve out of the rest of the step.
  void LeaveOut(std::size_t sparse_index, std::span<const Chunk> chunks);
  void NoteRouting(std::size_t sparse_index, std::span<const Chunk> chunks);
  /// What a step that succeeded changes beside its sequences' tokens.
  void Commit(std::span<const Chunk> chunks);

  const Options options_;
  const ModelConfig& config_;
  const std::vector<StackSpec> stacks_;
  const ParameterCount parameters_;
  DenseBackend& backend_;
  ExpertExchange* const exchange_;
  Decoder decoder_;
  Head head_;
  LoadWindow window_;
  TraceRecorder* recorder_ = nullptr;

  MicroBatches micro_batches_;
  MicroBatchChoice choice_;
  std::array<Flight, kMaxMicroBatches> flights_;  // by micro-batch
  std::vector<std::size_t> sparse_index_;         // by layer
  std::vector<std::int32_t> topk_ids_;            // (rows, k)
  std::vector<float> topk_weights_;               // (rows, k)
  std::vector<std::uint64_t> expert_tokens_;      // (sparse layers, experts)
  /// A sequence of this step that cannot be computed.
  struct Unserved {
    Sequence* sequence = nullptr;
    Status why;
  };
  std::vector<Unserved> unserved_;
  std::vector<std::uint8_t> left_out_;  // (rows): of the stack that runs
  StepReport report_;
  EngineTotals totals_;
};

}  // namespace moe
