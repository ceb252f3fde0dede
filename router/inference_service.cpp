#include "router/inference_service.h"

#include <grpcpp/grpcpp.h>
#include <moe/v1/inference.grpc.pb.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <random>

#include "router/delivery.h"
#include "router/generate_events.h"
#include "router/inference_messages.h"
#include "rpc/status_mapping.h"

namespace moe {
namespace {

// What all open calls together may hold.
class CallBudget {
 public:
  explicit CallBudget(const RequestLimits& limits) : limits_(limits) {}

  Status EnterCall() {
    if (calls_.fetch_add(1) < limits_.max_streams) return Status::Ok();
    calls_.fetch_sub(1);
    return ResourceExhausted("at most ", limits_.max_streams, " calls may be open");
  }
  void LeaveCall() { calls_.fetch_sub(1); }

  Status Take(std::uint64_t bytes) {
    if (bytes_.fetch_add(bytes) + bytes <= limits_.max_output_bytes) return Status::Ok();
    bytes_.fetch_sub(bytes);
    return ResourceExhausted("the outputs of the open calls and the ", bytes, " bytes of this one exceed ",
                             limits_.max_output_bytes, " bytes");
  }
  void Return(std::uint64_t bytes) { bytes_.fetch_sub(bytes); }

 private:
  const RequestLimits limits_;
  std::atomic<std::uint32_t> calls_{0};
  std::atomic<std::uint64_t> bytes_{0};
};

// What a call needs of the service.
struct CallContext {
  const InferenceSetup& setup;
  const ModelConfig& config;
  Router& router;
  RouterMetrics& metrics;
  Delivery& delivery;
  CallBudget& budget;
};

// The outputs of a call's sequences, which outlive the sequences.
using Outputs = std::vector<std::shared_ptr<SequenceOutput>>;

// A call's share of the budget; given back not before the engine has let go of the call's sequences.
class CallShare {
 public:
  explicit CallShare(CallBudget& budget) : budget_(budget) {}
  ~CallShare() {
    budget_.Return(bytes_);
    if (entered_) budget_.LeaveCall();
  }
  CallShare(const CallShare&) = delete;
  CallShare& operator=(const CallShare&) = delete;

  Status EnterCall() {
    MOE_RETURN_IF_ERROR(budget_.EnterCall());
    entered_ = true;
    return Status::Ok();
  }
  Status Take(std::uint64_t bytes) {
    MOE_RETURN_IF_ERROR(budget_.Take(bytes));
    bytes_ += bytes;
    return Status::Ok();
  }

 private:
  CallBudget& budget_;
  bool entered_ = false;
  std::uint64_t bytes_ = 0;
};

// Makes outputs and sequences of `requests` and submits them.
Status SubmitAll(const CallContext& context, std::vector<SequenceRequest> requests,
                 const std::shared_ptr<OutputListener>& listener, Outputs& outputs) {
  std::vector<std::unique_ptr<Sequence>> batch;
  for (SequenceRequest& request : requests) {
    outputs.push_back(std::make_shared<SequenceOutput>(request, context.config));
    batch.push_back(std::make_unique<Sequence>(std::move(request), outputs.back(), listener, context.config));
  }
  return context.router.Submit(std::move(batch));
}

std::uint64_t OutputBytes(const std::vector<SequenceRequest>& requests, const ModelConfig& config) {
  std::uint64_t bytes = 0;
  for (const SequenceRequest& request : requests) bytes += SequenceOutput::Bytes(request, config);
  return bytes;
}

bool AllFinished(const Outputs& outputs) {
  return std::ranges::all_of(outputs, [](const auto& output) { return output->finished(); });
}

// The failure that every sequence ended with, if they all ended with the same one.
Status CommonFailure(const Outputs& outputs) {
  const Status& first = outputs.front()->result.status;
  for (const auto& output : outputs) {
    const Status& status = output->result.status;
    if (status.ok() || status.code() != first.code() || status.message() != first.message()) return Status::Ok();
  }
  return first;
}

// One Generate call. It is its own reactor; the reference that gRPC needs is held until OnDone, those that the engine
// needs by its sequences' listener.
class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateEvent>,
                           public Deliverable,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  GenerateCall(const CallContext& context, const v1::GenerateRequest& request)
      : context_(context),
        share_(context.budget),
        events_({.setup = context.setup,
                 .config = context.config,
                 .num_logprobs = request.logprobs(),
                 .routing = request.return_routing()}) {}

  void Begin(const v1::GenerateRequest& request, std::uint64_t drawn_seed) {
    self_ = shared_from_this();
    // What the router refuses it counts itself.
    const auto reject = [&](const Status& status) {
      context_.metrics.OnRejected(static_cast<std::size_t>(std::max(1, request.sequences_size())));
      Refuse(status);
    };
    if (const Status status = share_.EnterCall(); !status.ok()) return reject(status);
    Result<std::vector<SequenceRequest>> parsed =
        ParseGenerate(request, context_.config, context_.setup.limits, drawn_seed);
    if (!parsed.ok()) return reject(parsed.status());
    if (const Status status = share_.Take(OutputBytes(*parsed, context_.config)); !status.ok()) return reject(status);
    std::vector<std::size_t> prompt_tokens;
    for (const SequenceRequest& sequence : *parsed) prompt_tokens.push_back(sequence.sent_tokens());
    Outputs outputs;
    const Status status =
        SubmitAll(context_, *std::move(parsed), context_.delivery.Listener(shared_from_this()), outputs);
    if (!status.ok()) {
      Refuse(status);
      return;
    }
    const std::lock_guard lock(mutex_);
    outputs_ = std::move(outputs);
    for (std::size_t i = 0; i < outputs_.size(); ++i) events_.Add(outputs_[i], prompt_tokens[i]);
    if (gone_) CancelAll();
    Pump();
  }

  void Deliver() override {
    const std::lock_guard lock(mutex_);
    Pump();
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) {
      gone_ = true;
      CancelAll();
    }
    Pump();
  }

  void OnCancel() override {
    const std::lock_guard lock(mutex_);
    gone_ = true;
    CancelAll();
  }

  void OnDone() override { const std::shared_ptr<GenerateCall> last = std::move(self_); }

 private:
  void Refuse(const Status& status) {
    finished_ = true;
    Finish(ToGrpc(status));
  }

  void CancelAll() {
    for (const auto& output : outputs_) output->Cancel();
  }

  // Writes the next event if none is being written, or ends the call. With mutex_ held.
  void Pump() {
    if (writing_ || finished_ || outputs_.empty()) return;
    if (!gone_ && events_.Next(event_)) {
      context_.metrics.OnTokensSent(static_cast<std::size_t>(event_.token_ids_size()));
      writing_ = true;
      StartWrite(&event_);
      return;
    }
    if (gone_ ? !AllFinished(outputs_) : !events_.complete()) return;
    finished_ = true;
    Finish(ToGrpc(CommonFailure(outputs_)));
  }

  const CallContext context_;
  CallShare share_;
  std::shared_ptr<GenerateCall> self_;

  std::mutex mutex_;
  Outputs outputs_;
  GenerateEvents events_;
  v1::GenerateEvent event_;
  bool writing_ = false;
  bool finished_ = false;
  bool gone_ = false;  // nobody reads any more
};

// One Score call; the answer is sent when all sequences are scored.
class ScoreCall final : public grpc::ServerUnaryReactor,
                        public Deliverable,
                        public std::enable_shared_from_this<ScoreCall> {
 public:
  ScoreCall(const CallContext& context, v1::ScoreResponse* response)
      : context_(context), share_(context.budget), response_(response) {}

  void Begin(const v1::ScoreRequest& request) {
    self_ = shared_from_this();
    routing_ = request.return_routing();
    Outputs outputs;
    if (const Status status = Submit(request, outputs); !status.ok()) {
      finished_ = true;
      Finish(ToGrpc(status));
      return;
    }
    const std::lock_guard lock(mutex_);
    outputs_ = std::move(outputs);
    if (gone_) CancelAll();
    FinishWhenDone();
  }

  void Deliver() override {
    const std::lock_guard lock(mutex_);
    FinishWhenDone();
  }

  void OnCancel() override {
    const std::lock_guard lock(mutex_);
    gone_ = true;
    CancelAll();
  }

  void OnDone() override { const std::shared_ptr<ScoreCall> last = std::move(self_); }

 private:
  Status Submit(const v1::ScoreRequest& request, Outputs& outputs) {
    MOE_RETURN_IF_ERROR(share_.EnterCall());
    MOE_ASSIGN_OR_RETURN(std::vector<SequenceRequest> parsed,
                         ParseScore(request, context_.config, context_.setup.limits));
    MOE_RETURN_IF_ERROR(share_.Take(OutputBytes(parsed, context_.config)));
    return SubmitAll(context_, std::move(parsed), context_.delivery.Listener(shared_from_this()), outputs);
  }

  void CancelAll() {
    for (const auto& output : outputs_) output->Cancel();
  }

  void FinishWhenDone() {
    if (finished_ || outputs_.empty()) return;
    if (!AllFinished(outputs_)) return;
    finished_ = true;
    for (const auto& output : outputs_) {
      if (output->result.finish == FinishKind::kCancelled) return Finish(ToGrpc(Cancelled("the client cancelled")));
      if (!output->result.status.ok()) return Finish(ToGrpc(output->result.status));
    }
    for (const auto& output : outputs_) {
      v1::SequenceScore& score = *response_->add_scores();
      WriteScore(*output, score);
      if (routing_)
        WriteRouting(*output, context_.config, {.begin = 0, .end = output->routed()}, *score.mutable_routing());
    }
    Finish(grpc::Status::OK);
  }

  const CallContext context_;
  CallShare share_;
  v1::ScoreResponse* const response_;
  bool routing_ = false;
  std::shared_ptr<ScoreCall> self_;

  std::mutex mutex_;
  Outputs outputs_;
  bool finished_ = false;
  bool gone_ = false;
};

}  // namespace

class InferenceService::Impl final : public v1::Inference::CallbackService {
 public:
  Impl(InferenceSetup setup, const ModelConfig& config, Router& router, RouterMetrics& metrics)
      : setup_(std::move(setup)),
        config_(config),
        router_(router),
        metrics_(metrics),
        budget_(setup_.limits),
        delivery_(setup_.limits.max_streams) {}

  grpc::ServerWriteReactor<v1::GenerateEvent>* Generate(grpc::CallbackServerContext*,
                                                        const v1::GenerateRequest* request) override {
    std::uint64_t seed = 0;
    if (!request->sampling().has_seed() && request->sampling().temperature() > 0) {
      std::random_device device;
      seed = std::uint64_t{device()} << 32 | device();
      spdlog::info("request \"{}\" has no seed; {} was drawn", request->request_id(), seed);
    }
    const auto call = std::make_shared<GenerateCall>(context(), *request);
    call->Begin(*request, seed);
    return call.get();  // owns itself until OnDone
  }

  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext*, const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override {
    const auto call = std::make_shared<ScoreCall>(context(), response);
    call->Begin(*request);
    return call.get();  // owns itself until OnDone
  }

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* server, const v1::GetModelRequest*,
                                     v1::ModelDescription* response) override {
    WriteModel(setup_, config_, *response);
    grpc::ServerUnaryReactor* reactor = server->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  CallContext context() {
    return {.setup = setup_,
            .config = config_,
            .router = router_,
            .metrics = metrics_,
            .delivery = delivery_,
            .budget = budget_};
  }

  const InferenceSetup setup_;
  const ModelConfig& config_;
  Router& router_;
  RouterMetrics& metrics_;
  CallBudget budget_;
  Delivery delivery_;
};

InferenceService::InferenceService(InferenceSetup setup, const ModelConfig& config, Router& router,
                                   RouterMetrics& metrics)
    : impl_(std::make_unique<Impl>(std::move(setup), config, router, metrics)) {}

InferenceService::~InferenceService() = default;

grpc::Service* InferenceService::service() { return impl_.get(); }

}  // namespace moe
