// The sparse half of a layer, seen from the router: plan, send the rows out, wait, combine what comes back. A layer's
// tokens may go out in several micro-batches, each with an exchange of its own, all in flight at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/clock.h"
#include "core/matrix.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "core/worker_mask.h"
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

/// Whom a failed exchange was about.
struct ExchangeBlame {
  WorkerMask workers;
  /// They let a deadline pass or answered wrongly. Otherwise a connection broke, and these are all that had not
  /// answered by then.
  bool certain = false;
};

class ExpertExchange {
 public:
  struct Options {
    std::size_t max_tokens = 0;  // of a step
    std::size_t max_micro_batches = 1;
    std::size_t hidden = 0;
    std::size_t num_experts = 0;
    std::size_t experts_per_token = 0;
    ExchangeType type = ExchangeType::kF32;
    std::chrono::milliseconds timeout{0};  // of one exchange
  };

  /// The limits that a transport needs for exchanges of this shape.
  static TransportLimits Limits(const Options& options);

  /// Everything given by reference outlives this, but the transport only until the next Rebind.
  ExpertExchange(Options options, Transport& transport, Placement placement, const Kernels& kernels, ThreadPool& pool,
                 ExchangeObserver* observer);
  /// Waits for what has been asked beside the steps, so that the workers can still be spoken to.
  ~ExpertExchange();
  ExpertExchange(const ExpertExchange&) = delete;
  ExpertExchange& operator=(const ExpertExchange&) = delete;

  /// How a sentence names the workers; "rank R" until this is called.
  void NameWorkers(std::vector<std::string> names) { names_ = std::move(names); }
  const std::vector<std::string>& names() const { return names_; }
  /// Between two steps: the workers on this machine, which replicas' rows go to as far as balance allows.
  void SetLocal(WorkerMask local) { plan_.SetLocal(std::move(local)); }
  /// Goes on over another transport, which must not know more workers, with rows for `workers` alone. Null when there
  /// is none. Whatever was in flight is given up: the transport before is not touched any more.
  void Rebind(Transport* transport, const WorkerMask& workers);
  /// Gives up what is in flight, so that the transport may be destroyed; a Rebind follows.
  void Unbind();
  /// How often it was bound to a transport: whoever asks beside the steps learns that its questions are gone.
  std::uint64_t bindings() const { return bindings_; }
  /// Those that rows may go to.
  const WorkerMask& attached() const { return attached_; }

  const Placement& placement() const { return placement_; }
  /// Between two steps: rows go where `placement` says, which the workers have by now.
  void SwitchTo(Placement placement);

  // Beside the steps, one question at a time, to all of the workers or some.

  /// Where the request to a worker is written, and its reply.
  std::span<std::byte> AsideRequest(WorkerId worker) { return aside_->request(worker); }
  std::span<const std::byte> AsideReply(WorkerId worker) const { return aside_->reply(worker); }
  /// UNAVAILABLE without a transport. A failure is the transport's end, as that of a step is.
  Status StartAside(std::span<const std::size_t> request_bytes);
  bool aside_under_way() const { return aside_under_way_; }
  /// Without waiting: whether all replies are there. DEADLINE_EXCEEDED when they take longer than a step's would.
  Result<bool> PollAside();

  /// A micro-batch of one layer and where its rows go. `layer` is absolute, `sparse_index` counts the sparse layers.
  /// The micro-batches of a layer are started in their order, each after its own exchange of the layer before.
  struct LayerInput {
    std::size_t micro_batch = 0;
    std::size_t first_token = 0;  // tokens of the layer in the micro-batches before
    std::uint32_t layer = 0;
    std::size_t sparse_index = 0;
    bool scales_input = false;                    // weights have done their work on the experts' inputs
    MatrixView<const float> in;                   // (tokens, hidden)
    MatrixView<const std::int32_t> ids;           // (tokens, k)
    MatrixView<const float> weights;              // (tokens, k)
    std::span<const std::uint8_t> left_out = {};  // (tokens): 1 for those that nobody waits for; empty: none
  };
  /// Sends the rows out. What the views of `input` show must stay until Finish.
  Status Start(const LayerInput& input);
  /// The tokens of that input which no worker can serve; nothing was sent for them, and nothing will be added to them.
  std::span<const DispatchPlan::Unserved> unserved() const { return plan_.unserved(); }
  /// Why: UNAVAILABLE naming the ranks that have the expert.
  Status WhyUnserved(std::size_t sparse_index, std::size_t expert) const;
  /// What joins the experts' sum on its way into the residual stream.
  struct LayerOutput {
    std::size_t micro_batch = 0;
    MatrixView<const float> shared;  // (tokens, hidden) of the shared experts, or empty
    float scale = 1;                 // of the sum
    MatrixView<float> residual;      // (tokens, hidden)
  };
  /// Waits for the micro-batch's rows and combines them: residual += scale * (sum over a token's experts of weight *
  /// expert(in row), in the order of its top-k list, plus shared), in fp32. After a failure this is done for until
  /// Rebind, the other micro-batches too: a late worker may still read the buffers, so it must not run again. What was
  /// in flight has ended where the workers answer, so that they can be spoken to.
  Status Finish(const LayerOutput& output);
  /// Of the last failure of Start, Finish or what was asked beside.
  const ExchangeBlame& blame() const { return blame_; }

  /// Resets the sums below.
  void BeginStep();
  const ExchangeTimes& times() const { return times_; }
  std::span<const WorkerStep> workers() const { return workers_; }
  /// Tokens of each expert in the layer started last, over its micro-batches.
  std::span<const std::uint32_t> expert_tokens() const { return plan_.expert_tokens(); }
  std::uint64_t placement_generation() const { return placement_.generation; }

 private:
  /// One exchange, of a micro-batch.
  struct Flight {
    LayerInput input;
    TimePoint sent;
    bool under_way = false;
    bool asked = false;  // any worker
    std::unique_ptr<Exchange> exchange;
    std::vector<std::size_t> request_bytes;    // by worker
    std::vector<DispatchShape> shapes;         // by worker
    std::vector<DispatchReplyReader> replies;  // by worker
  };

  void Send(Flight& flight);
  Status Receive(Flight& flight, const LayerOutput& output);
  /// The longest worker's own computing, seconds.
  Result<double> ReadReplies(Flight& flight);
  void Combine(const Flight& flight, const LayerOutput& output);
  void EndOthers();
  void Blame(const Exchange& exchange, std::span<const std::size_t> request_bytes, const Status& failure);
  DispatchShape ShapeFor(std::uint32_t layer, WorkerId worker) const;

  const Options options_;
  Transport* transport_;  // null while no worker is there
  WorkerMask attached_;
  std::uint64_t bindings_ = 0;
  Placement placement_;
  std::vector<std::string> names_;  // by worker
  ReplicaTable replicas_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  ExchangeObserver* const observer_;
  DispatchPlan plan_;
  std::vector<Flight> flights_;  // by micro-batch
  std::unique_ptr<Exchange> aside_;
  std::vector<std::size_t> aside_bytes_;  // by worker
  TimePoint aside_sent_;
  bool aside_under_way_ = false;
  TimePoint received_;         // when the last exchange ended
  AlignedBuffer<float> rows_;  // (threads, 2, hidden): a reply's row, and the sum
  ExchangeTimes times_;
  std::vector<WorkerStep> workers_;
  ExchangeBlame blame_;
};

}  // namespace moe
