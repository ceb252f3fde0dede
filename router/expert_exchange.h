// The sparse half of a layer, seen from the router: plan, send the rows out, wait, combine what comes back.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/clock.h"
#include "core/matrix.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "model/dispatch_format.h"
#include "placement/placement.h"
#include "router/dispatch_plan.h"
#include "transport/transport.h"

namespace moe {

/// Seconds of one step, by what the router did; all layers together.
struct ExchangeTimes {
  double dispatch = 0;  // plan and copying rows out
  double wait = 0;      // for workers, from when the router had nothing else to do
  double experts = 0;   // of `wait`, at most the longest worker's own computing, as it says
  double combine = 0;
};

/// What one worker did in one step.
struct WorkerStep {
  std::uint64_t rows = 0;   // (token, expert) pairs
  double busy_seconds = 0;  // as the worker says
};

/// Told of every exchange with a worker: seconds from dispatch to its reply.
class ExchangeObserver {
 public:
  virtual ~ExchangeObserver() = default;
  virtual void OnExchange(WorkerId worker, double seconds) = 0;
};

class ExpertExchange {
 public:
  struct Options {
    std::size_t max_tokens = 0;
    std::size_t hidden = 0;
    std::size_t num_experts = 0;
    std::size_t experts_per_token = 0;
    ExchangeType type = ExchangeType::kF32;
    std::chrono::milliseconds timeout{0};  // of one exchange
  };

  /// The limits that a transport needs for exchanges of this shape.
  static TransportLimits Limits(const Options& options);

  ExpertExchange(Options options, Transport& transport, const Placement& placement, const Kernels& kernels,
                 ThreadPool& pool, ExchangeObserver* observer);

  /// The rows of one layer and where they go. `layer` is absolute, `sparse_index` counts the sparse layers.
  struct LayerInput {
    std::uint32_t layer = 0;
    std::size_t sparse_index = 0;
    bool scales_input = false;           // weights have done their work on the experts' inputs
    MatrixView<const float> in;          // (tokens, hidden)
    MatrixView<const std::int32_t> ids;  // (tokens, k)
    MatrixView<const float> weights;     // (tokens, k)
  };
  /// Sends the rows out. What the views of `input` show must stay until Finish.
  Status Start(const LayerInput& input);
  /// What joins the experts' sum on its way into the residual stream.
  struct LayerOutput {
    MatrixView<const float> shared;  // (tokens, hidden) of the shared experts, or empty
    float scale = 1;                 // of the sum
    MatrixView<float> residual;      // (tokens, hidden)
  };
  /// Waits for the rows and combines them: residual += scale * (sum over a token's experts of weight * expert(in row),
  /// in the order of its top-k list, plus shared), in fp32. After a failure the exchange is done for: a late worker may
  /// still read its buffers, so it must not run again.
  Status Finish(const LayerOutput& output);

  /// Resets the sums below.
  void BeginStep();
  const ExchangeTimes& times() const { return times_; }
  std::span<const WorkerStep> workers() const { return workers_; }
  /// Tokens of each expert in the layer run last.
  std::span<const std::uint32_t> expert_tokens() const { return plan_.expert_tokens(); }

 private:
  void Send();
  /// The longest worker's own computing, seconds.
  Result<double> ReadReplies();
  void Combine(const LayerOutput& output);
  DispatchShape ShapeFor(std::uint32_t layer, WorkerId worker) const;

  const Options options_;
  Transport& transport_;
  const std::uint64_t generation_;
  const ReplicaTable replicas_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  ExchangeObserver* const observer_;
  LayerInput input_;  // of the exchange under way
  TimePoint sent_;
  DispatchPlan plan_;
  std::unique_ptr<Exchange> exchange_;
  std::vector<std::size_t> request_bytes_;    // by worker
  std::vector<DispatchShape> shapes_;         // by worker
  std::vector<DispatchReplyReader> replies_;  // by worker
  AlignedBuffer<float> rows_;                 // (threads, 2, hidden): a reply's row, and the sum
  ExchangeTimes times_;
  std::vector<WorkerStep> workers_;
};

}  // namespace moe
