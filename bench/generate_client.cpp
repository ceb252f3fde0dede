#include "bench/generate_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/check.h"
#include "moe/v1/inference.grpc.pb.h"

namespace moe {
namespace {

const char* CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {
      "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
      "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
      "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
      "DATA_LOSS", "UNAUTHENTICATED"};
  const auto index = static_cast<std::size_t>(code);
  return index < std::size(kNames) ? kNames[index] : "UNKNOWN";
}

ReplyFinish Kind(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP: return ReplyFinish::kStop;
    case v1::FINISH_REASON_LENGTH: return ReplyFinish::kLength;
    case v1::FINISH_REASON_CANCELLED: return ReplyFinish::kCancelled;
    case v1::FINISH_REASON_FAILED: return ReplyFinish::kFailed;
    default: return ReplyFinish::kUnknown;
  }
}

void Record(const v1::GenerateEvent& event, TimePoint now, std::uint32_t vocab_size, CallRecord& call) {
  if (event.sequence() >= call.sequences.size()) {
    ++call.stray_events;
    return;
  }
  SequenceRecord& sequence = call.sequences[event.sequence()];
  for (const std::uint32_t token : event.token_ids()) {
    sequence.token_times.push_back(now);
    sequence.token_hash = HashToken(sequence.token_hash, token);
    if (token >= vocab_size) ++sequence.invalid_tokens;
    if (sequence.finishes > 0) ++sequence.tokens_after_finish;
  }
  if (!event.has_finish() || sequence.finishes++ > 0) return;
  const v1::Finish& finish = event.finish();
  sequence.finish = Kind(finish.reason());
  sequence.finish_time = now;
  sequence.finish_message = finish.message();
  sequence.usage_prompt_tokens = finish.usage().prompt_tokens();
  sequence.usage_generated_tokens = finish.usage().generated_tokens();
}

v1::GenerateRequest MakeRequest(const PlannedCall& call, const SamplingOptions& options) {
  v1::GenerateRequest request;
  request.set_request_id(call.request_id);
  for (const std::vector<std::uint32_t>& prompt : call.prompts) {
    request.add_sequences()->mutable_token_ids()->Add(prompt.begin(), prompt.end());
  }
  request.set_max_new_tokens(call.max_new_tokens);
  request.set_ignore_eos(options.ignore_eos);
  v1::Sampling& sampling = *request.mutable_sampling();
  sampling.set_temperature(options.temperature);
  sampling.set_top_k(options.top_k);
  if (options.top_p) sampling.set_top_p(*options.top_p);
  sampling.set_seed(call.sampling_seed);
  return request;
}

ServedModel Describe(const v1::ModelDescription& model) {
  return {.name = model.name(),
          .weight_type = model.weight_type(),
          .routing = model.routing(),
          .vocab_size = model.vocab_size(),
          .context_length = model.context_length(),
          .max_sequences_per_request = model.limits().max_sequences_per_request()};
}

// In slices, so that an interrupt does not wait for the whole time.
Status WaitForConnection(grpc::Channel& channel, const GenerateClient::Options& options,
                         std::chrono::system_clock::time_point deadline) {
  for (;;) {
    const auto slice = std::chrono::system_clock::now() + std::chrono::milliseconds(100);
    if (channel.WaitForConnected(std::min(slice, deadline))) return Status::Ok();
    if (options.interrupted != nullptr && options.interrupted->load()) {
      return Cancelled("interrupted while waiting for server ", options.server, ".");
    }
    if (std::chrono::system_clock::now() >= deadline) {
      return Unavailable("server ", options.server, " could not be reached within ",
                         std::chrono::duration<double>(options.connect_timeout).count(), " s.");
    }
  }
}

// One open stream. Owns itself: gRPC calls OnDone last, once.
class OpenCall final : public grpc::ClientReadReactor<v1::GenerateEvent> {
 public:
  OpenCall(std::shared_ptr<grpc::ClientContext> context, CallRecord record, std::uint32_t vocab_size,
           GenerateClient::Done ended)
      : context_(std::move(context)), record_(std::move(record)), vocab_size_(vocab_size), ended_(std::move(ended)) {}

  void Begin(v1::Inference::Stub& stub, v1::GenerateRequest request) {
    request_ = std::move(request);
    record_.sent = Clock::now();
    stub.async()->Generate(context_.get(), &request_, this);
    StartRead(&event_);
    StartCall();  // this object may be gone when it returns
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;  // the stream has ended; OnDone says how
    Record(event_, Clock::now(), vocab_size_, record_);
    StartRead(&event_);
  }

  void OnDone(const grpc::Status& status) override {
    record_.ended = Clock::now();
    record_.status = CodeName(status.error_code());
    record_.message = status.error_message();
    const auto ended = std::move(ended_);
    CallRecord record = std::move(record_);
    // Before anyone hears of the end: the context holds the channel, and a channel must not go on a thread of gRPC,
    // which then would wait for itself.
    delete this;
    ended(std::move(record));
  }

 private:
  std::shared_ptr<grpc::ClientContext> context_;
  v1::GenerateRequest request_;
  v1::GenerateEvent event_;
  CallRecord record_;
  const std::uint32_t vocab_size_;
  GenerateClient::Done ended_;
};

}  // namespace

struct GenerateClient::State {
  std::unique_ptr<v1::Inference::Stub> stub;
  std::mutex mutex;
  // By a number that is never used twice: where a call lies in memory, the next one lies before its end is known here.
  // Shared with the calls, so that CancelAll can cancel outside of the lock: gRPC may run OnDone on the thread that
  // cancels.
  std::unordered_map<std::uint64_t, std::shared_ptr<grpc::ClientContext>> open;
  std::uint64_t last_number = 0;
  bool cancelled = false;
};

GenerateClient::GenerateClient(const Options& options) : options_(options), state_(std::make_unique<State>()) {}

GenerateClient::~GenerateClient() { MOE_CHECK(state_->open.empty(), "a client was destroyed under an open call"); }

Result<std::unique_ptr<GenerateClient>> GenerateClient::Connect(const Options& options) {
  std::unique_ptr<GenerateClient> client(new GenerateClient(options));
  grpc::ChannelArguments arguments;
  // A server that is still starting is tried again soon, not after gRPC's default of a second and more.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  const auto channel = grpc::CreateCustomChannel(options.server, grpc::InsecureChannelCredentials(), arguments);
  client->state_->stub = v1::Inference::NewStub(channel);
  const auto deadline = std::chrono::system_clock::now() + options.connect_timeout;
  MOE_RETURN_IF_ERROR(WaitForConnection(*channel, options, deadline));
  grpc::ClientContext context;
  context.set_deadline(deadline);
  v1::ModelDescription model;
  const grpc::Status status = client->state_->stub->GetModel(&context, {}, &model);
  if (!status.ok()) {
    return Unavailable("server ", options.server, " did not answer GetModel: ", CodeName(status.error_code()), " (",
                       status.error_message(), ").");
  }
  client->model_ = Describe(model);
  if (client->model_.vocab_size == 0) {
    return Internal("server ", options.server, " describes a model with a vocabulary of 0, at least 1 was expected.");
  }
  return client;
}

void GenerateClient::Start(const PlannedCall& call, const Ticket& ticket, Done done) {
  CallRecord record{.index = ticket.index, .scheduled = ticket.scheduled};
  for (const std::vector<std::uint32_t>& prompt : call.prompts) {
    SequenceRecord& sequence = record.sequences.emplace_back();
    sequence.prompt_tokens = static_cast<std::uint32_t>(prompt.size());
    sequence.max_new_tokens = call.max_new_tokens;
    sequence.token_hash = kHashStart;
    sequence.token_times.reserve(call.max_new_tokens);
  }
  auto context = std::make_shared<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + options_.call_timeout);
  State& state = *state_;
  std::uint64_t number = 0;
  {
    const std::lock_guard lock(state.mutex);
    number = ++state.last_number;
    state.open.emplace(number, context);
  }
  auto ended = [&state, number, done = std::move(done)](CallRecord ended_record) {
    std::shared_ptr<grpc::ClientContext> last;  // goes before `done`, and not under the lock
    {
      const std::lock_guard lock(state.mutex);
      const auto entry = state.open.find(number);
      last = std::move(entry->second);
      state.open.erase(entry);
      ended_record.cancelled_by_client = state.cancelled && ended_record.status == "CANCELLED";
    }
    last.reset();
    done(std::move(ended_record));
  };
  auto* open = new OpenCall(std::move(context), std::move(record), model_.vocab_size, std::move(ended));
  open->Begin(*state.stub, MakeRequest(call, options_.sampling));
}

void GenerateClient::CancelAll() {
  std::vector<std::shared_ptr<grpc::ClientContext>> contexts;
  {
    const std::lock_guard lock(state_->mutex);
    state_->cancelled = true;
    for (const auto& [call, context] : state_->open) contexts.push_back(context);
  }
  for (const auto& context : contexts) context->TryCancel();
}

}  // namespace moe
