#include "tests/bench/fake_inference_server.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "core/check.h"
#include "core/text.h"
#include "moe/v1/inference.grpc.pb.h"

namespace moe {

class FakeInferenceServer::Service final : public v1::Inference::Service {
 public:
  explicit Service(FakeInferenceOptions options) : options_(std::move(options)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    MOE_CHECK(server_ != nullptr);
  }
  ~Service() override { server_->Shutdown(std::chrono::system_clock::now()); }

  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest*, v1::ModelDescription* model) override {
    model->set_name("toy");
    model->set_weight_type("f32");
    model->set_vocab_size(256);
    model->set_context_length(512);
    return grpc::Status::OK;
  }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateEvent>* writer) override {
    const Fault fault = Open(*request, *context);
    const grpc::Status status = Answer(*context, *request, fault, *writer);
    const std::lock_guard lock(mutex_);
    --open_;
    return status;
  }

  int port_ = 0;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Seen> seen_;
  int open_ = 0;
  int most_open_ = 0;
  int measured_ = 0;
  int hanging_ = 0;

 private:
  // Waits for `condition`, or for the client to go away.
  template <typename Condition>
  void Wait(std::unique_lock<std::mutex>& lock, grpc::ServerContext& context, Condition condition) {
    while (!condition() && !context.IsCancelled()) changed_.wait_for(lock, std::chrono::milliseconds(5));
  }

  Fault Open(const v1::GenerateRequest& request, grpc::ServerContext& context) {
    Seen seen{.request_id = request.request_id(),
              .prompts = {},
              .max_new_tokens = request.max_new_tokens(),
              .ignore_eos = request.ignore_eos(),
              .temperature = request.sampling().temperature(),
              .seed = request.sampling().seed()};
    for (const auto& sequence : request.sequences()) {
      seen.prompts.emplace_back(sequence.token_ids().begin(), sequence.token_ids().end());
    }
    std::unique_lock lock(mutex_);
    seen_[seen.request_id] = seen;
    most_open_ = std::max(most_open_, ++open_);
    if (!seen.request_id.starts_with("moe-bench-warmup-")) {
      ++measured_;
      changed_.notify_all();
      Wait(lock, context, [&] { return measured_ >= options_.open_together; });
    }
    const auto fault = options_.faults.find(seen.request_id);
    return fault == options_.faults.end() ? Fault::kNone : fault->second;
  }

  grpc::Status Answer(grpc::ServerContext& context, const v1::GenerateRequest& request, Fault fault,
                      grpc::ServerWriter<v1::GenerateEvent>& writer) {
    if (!options_.refuse_all_with.empty()) return {grpc::StatusCode::RESOURCE_EXHAUSTED, options_.refuse_all_with};
    if (fault == Fault::kRefuse) return {grpc::StatusCode::RESOURCE_EXHAUSTED, "queue is full"};
    if (fault == Fault::kCancelCall) return {grpc::StatusCode::CANCELLED, "by the server"};
    if (fault == Fault::kHang) {
      std::unique_lock lock(mutex_);
      ++hanging_;
      changed_.notify_all();
      Wait(lock, context, [] { return false; });
      return grpc::Status::CANCELLED;
    }
    const auto count = static_cast<std::uint32_t>(request.sequences_size());
    for (std::uint32_t i = 0; i < count; ++i) {
      const bool faulty = count == 1 || i > 0;
      if (fault == Fault::kBreakOff && faulty) {
        WriteTokens(request, i, request.max_new_tokens() / 2, writer);
        return {grpc::StatusCode::UNAVAILABLE, "draining"};
      }
      AnswerSequence(request, i, faulty ? fault : Fault::kNone, writer);
    }
    return grpc::Status::OK;
  }

  void WriteTokens(const v1::GenerateRequest& request, std::uint32_t sequence, std::uint32_t count,
                   grpc::ServerWriter<v1::GenerateEvent>& writer) {
    const auto& prompt = request.sequences(static_cast<int>(sequence)).token_ids();
    v1::GenerateEvent event;
    for (std::uint32_t i = 0; i < count; ++i) {
      event.set_sequence(sequence);
      event.add_token_ids((prompt[0] * 31 + prompt[prompt.size() - 1] * 7 + i) % 256);
      if (event.token_ids_size() < options_.tokens_per_event && i + 1 < count) continue;
      writer.Write(event);
      event.Clear();
    }
  }

  void AnswerSequence(const v1::GenerateRequest& request, std::uint32_t sequence, Fault fault,
                      grpc::ServerWriter<v1::GenerateEvent>& writer) {
    const bool one_less = fault == Fault::kDropToken || fault == Fault::kInvalidToken;
    WriteTokens(request, sequence, request.max_new_tokens() - (one_less ? 1 : 0), writer);
    v1::GenerateEvent token;
    token.set_sequence(fault == Fault::kStraySequence ? static_cast<std::uint32_t>(request.sequences_size())
                                                      : sequence);
    token.add_token_ids(fault == Fault::kInvalidToken ? 256 : 1);
    const bool extra = fault == Fault::kDoubleToken || fault == Fault::kStraySequence || fault == Fault::kInvalidToken;
    if (extra) writer.Write(token);
    v1::GenerateEvent last;
    last.set_sequence(sequence);
    v1::Finish& finish = *last.mutable_finish();
    finish.set_reason(fault == Fault::kFailSequence ? v1::FINISH_REASON_FAILED : v1::FINISH_REASON_LENGTH);
    if (fault == Fault::kFailSequence) finish.set_message("worker lost");
    finish.mutable_usage()->set_prompt_tokens(
        static_cast<std::uint32_t>(request.sequences(static_cast<int>(sequence)).token_ids_size()));
    finish.mutable_usage()->set_generated_tokens(request.max_new_tokens());
    if (fault != Fault::kDropFinish) writer.Write(last);
    if (fault == Fault::kDoubleFinish) writer.Write(last);
    if (fault == Fault::kTokenAfterFinish) writer.Write(token);
  }

  const FakeInferenceOptions options_;
  std::unique_ptr<grpc::Server> server_;
};

FakeInferenceServer::FakeInferenceServer(FakeInferenceOptions options)
    : service_(std::make_unique<Service>(std::move(options))), address_(Cat("127.0.0.1:", service_->port_)) {}

FakeInferenceServer::~FakeInferenceServer() = default;

std::map<std::string, FakeInferenceServer::Seen> FakeInferenceServer::seen() const {
  const std::lock_guard lock(service_->mutex_);
  return service_->seen_;
}

int FakeInferenceServer::most_open() const {
  const std::lock_guard lock(service_->mutex_);
  return service_->most_open_;
}

void FakeInferenceServer::WaitForHanging(int calls) {
  std::unique_lock lock(service_->mutex_);
  service_->changed_.wait(lock, [&] { return service_->hanging_ >= calls; });
}

}  // namespace moe
