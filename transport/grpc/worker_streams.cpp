#include "transport/grpc/worker_streams.h"

#include <grpcpp/alarm.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_context.h>
#include <moe/v1/worker.grpc.pb.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>
#include <vector>

#include "rpc/status_mapping.h"

namespace moe {
namespace {

enum class Step : std::uint8_t { kTaken, kAccept, kRead, kWrite, kEnd, kDone };
constexpr std::size_t kSteps = 6;

using Control = v1::ExpertWorker::CallbackService;

// moe.v1.ExpertWorker with Exchange as raw bytes on our queue; all other methods are UNIMPLEMENTED.
using DataMethods = v1::ExpertWorker::WithRawMethod_Exchange<v1::ExpertWorker::Service>;

// With both planes: the other methods are passed on to who implements them.
class AllMethods final : public v1::ExpertWorker::WithCallbackMethod_GetShard<
                             v1::ExpertWorker::WithCallbackMethod_GetStatistics<DataMethods>> {
 public:
  explicit AllMethods(Control& control) : control_(control) {}

  grpc::ServerUnaryReactor* GetShard(grpc::CallbackServerContext* context, const v1::GetShardRequest* request,
                                     v1::ShardDescription* response) override {
    return control_.GetShard(context, request, response);
  }
  grpc::ServerUnaryReactor* GetStatistics(grpc::CallbackServerContext* context, const v1::GetStatisticsRequest* request,
                                          v1::WorkerStatistics* response) override {
    return control_.GetStatistics(context, request, response);
  }

 private:
  Control& control_;
};

}  // namespace

// One router's. A tag of the completion queue is the address of one of `tags`.
struct WorkerStreams::Stream {
  struct Tag {
    Stream* stream = nullptr;
    Step step = Step::kTaken;
  };

  explicit Stream(std::uint64_t id) : number(id), call(&context) {
    for (std::size_t i = 0; i < tags.size(); ++i) tags[i] = {this, static_cast<Step>(i)};
  }
  void* tag(Step step) {
    ++outstanding;
    return &tags[static_cast<std::size_t>(step)];
  }
  void WriteFirst() { call.Write(MessageOf(unsent.front()), tag(Step::kWrite)); }
  // Tells the router how it ended, once, when everything before is sent.
  void EndIfSent() {
    if (!ending || ended || !unsent.empty()) return;
    ended = true;
    call.Finish(ToGrpc(why), tag(Step::kEnd));
  }
  Result<StreamHello> Hello() const {
    return ParseHello([this](std::string_view key) -> std::optional<std::string_view> {
      const auto& metadata = context.client_metadata();
      const auto found = metadata.find(grpc::string_ref(key.data(), key.size()));
      if (found == metadata.end()) return std::nullopt;
      return std::string_view(found->second.data(), found->second.size());
    });
  }

  const std::uint64_t number;
  grpc::ServerContext context;
  grpc::ServerAsyncReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer> call;
  grpc::ByteBuffer arrived;
  ArrivedMessage message;
  std::optional<Result<StreamHello>> hello;
  std::array<Tag, kSteps> tags;
  int outstanding = 0;  // tags that the queue still owes us
  SendQueue unsent{0};  // until it is accepted
  Status why;
  bool ending = false;  // why is known
  bool ended = false;   // and told
  bool done = false;    // gRPC has done with it
};

struct WorkerStreams::State {
  explicit State(Control* control)
      : methods(control != nullptr ? std::make_unique<AllMethods>(*control) : std::make_unique<DataMethods>()) {}

  const std::unique_ptr<DataMethods> methods;
  std::unique_ptr<grpc::ServerCompletionQueue> queue;
  std::unique_ptr<Stream> next;                  // which the next router's stream becomes
  std::vector<std::unique_ptr<Stream>> streams;  // all others that the queue owes us something of
  std::uint64_t last_number = 0;
  std::atomic<bool> stopped{false};
  grpc::Alarm stop;
  bool winding_up = false;

  void TakeNext();
  Stream& Find(std::uint64_t number);
  Event Handle(Stream& stream, Step step, bool ok);
  Event HandleTaken(bool ok);
  Event HandleWrite(Stream& stream, bool ok);
};

WorkerStreams::WorkerStreams(grpc::Service* control)
    : state_(std::make_unique<State>(dynamic_cast<Control*>(control))) {}

WorkerStreams::~WorkerStreams() = default;

bool WorkerStreams::IsControl(grpc::Service* service) { return dynamic_cast<Control*>(service) != nullptr; }

grpc::Service* WorkerStreams::service() { return state_->methods.get(); }

void WorkerStreams::Prepare(grpc::ServerBuilder& builder) { state_->queue = builder.AddCompletionQueue(); }

void WorkerStreams::Begin() { state_->TakeNext(); }

void WorkerStreams::State::TakeNext() {
  next = std::make_unique<Stream>(++last_number);
  next->context.AsyncNotifyWhenDone(&next->tags[static_cast<std::size_t>(Step::kDone)]);
  methods->RequestExchange(&next->context, &next->call, queue.get(), queue.get(), next->tag(Step::kTaken));
}

WorkerStreams::Stream& WorkerStreams::State::Find(std::uint64_t number) {
  for (const auto& stream : streams) {
    if (stream->number == number) return *stream;
  }
  CheckFailed(__FILE__, __LINE__, "a stream that has ended", {});
}

WorkerStreams::Event WorkerStreams::Next(Deadline deadline) {
  while (true) {
    const Completion completion = NextCompletion(*state_->queue, deadline);
    if (completion.tag == nullptr) return {};
    if (completion.tag == &state_->stop) return {.kind = EventKind::kStopped};
    const auto* const tag = static_cast<Stream::Tag*>(completion.tag);
    const std::uint64_t number = tag->stream->number;
    Event event = state_->Handle(*tag->stream, tag->step, completion.ok);
    event.stream = number;
    if (event.kind != EventKind::kNone) return event;
  }
}

// kNone for a step that nobody needs to know of.
WorkerStreams::Event WorkerStreams::State::Handle(Stream& stream, Step step, bool ok) {
  --stream.outstanding;
  Event event;
  switch (step) {
    case Step::kTaken: return HandleTaken(ok);
    case Step::kAccept: break;
    case Step::kRead:
      if (ok) {
        stream.message.Open(stream.arrived);
        event = {.kind = EventKind::kFrame, .message = &stream.message};
      } else {
        event = {.kind = EventKind::kClosing};
      }
      break;
    case Step::kWrite: event = HandleWrite(stream, ok); break;
    case Step::kEnd: break;
    case Step::kDone: stream.done = true; break;
  }
  if (!stream.done || stream.outstanding > 0) return event;
  // The last of its tags: that of gRPC's end, of a read or write that failed with it, or of ours. Whatever else there
  // was to tell, this tells more.
  std::erase_if(streams, [&stream](const auto& other) { return other.get() == &stream; });
  return {.kind = EventKind::kEnded};
}

WorkerStreams::Event WorkerStreams::State::HandleTaken(bool ok) {
  // Not ok: the server shuts down, nobody came, and gRPC will not tell that it has done with it.
  if (!ok) {
    next.reset();
    return {};
  }
  ++next->outstanding;  // gRPC's word that it has done
  Stream& stream = *streams.emplace_back(std::move(next));
  if (winding_up) {
    stream.context.TryCancel();
    return {};
  }
  TakeNext();
  stream.hello.emplace(stream.Hello());
  return {.kind = EventKind::kOpening, .hello = &*stream.hello};
}

WorkerStreams::Event WorkerStreams::State::HandleWrite(Stream& stream, bool ok) {
  const std::size_t slot = stream.unsent.Pop().slot;
  // Not ok: the router is gone, and so is every other frame for it.
  if (!ok) stream.unsent.Truncate(0);
  if (!stream.unsent.empty()) stream.WriteFirst();
  stream.EndIfSent();
  return {.kind = EventKind::kSent, .slot = slot};
}

void WorkerStreams::Accept(std::uint64_t number, std::size_t max_frames, const std::string& memory) {
  Stream& stream = state_->Find(number);
  stream.unsent = SendQueue(max_frames);
  stream.context.AddInitialMetadata(std::string(kProtocolKey), std::to_string(kFrameVersion));
  if (!memory.empty()) stream.context.AddInitialMetadata(std::string(kMemoryKey), memory);
  stream.call.SendInitialMetadata(stream.tag(Step::kAccept));
  stream.call.Read(&stream.arrived, stream.tag(Step::kRead));
}

void WorkerStreams::Refuse(std::uint64_t number, const Status& why) { End(number, why); }

void WorkerStreams::ReadNext(std::uint64_t number) {
  Stream& stream = state_->Find(number);
  stream.call.Read(&stream.arrived, stream.tag(Step::kRead));
}

void WorkerStreams::Send(std::uint64_t number, const OutgoingFrame& frame) {
  Stream& stream = state_->Find(number);
  stream.unsent.Push(frame);
  if (stream.unsent.size() == 1) stream.WriteFirst();
}

bool WorkerStreams::Unsent(std::uint64_t number) const { return !state_->Find(number).unsent.empty(); }

void WorkerStreams::End(std::uint64_t number, const Status& why) {
  Stream& stream = state_->Find(number);
  if (std::exchange(stream.ending, true)) return;
  stream.why = why;
  stream.EndIfSent();
}

void WorkerStreams::Cancel(std::uint64_t number) {
  Stream& stream = state_->Find(number);
  // What is being written keeps its memory; what waits behind it does not, and its owner may go now.
  stream.unsent.Truncate(1);
  stream.context.TryCancel();
}

void WorkerStreams::Stop() {
  if (state_->stopped.exchange(true)) return;
  state_->stop.Set(state_->queue.get(), gpr_time_0(GPR_CLOCK_MONOTONIC), &state_->stop);
}

void WorkerStreams::WindUp(const Status& why, Deadline deadline) {
  if (!std::exchange(state_->winding_up, true)) {
    for (const auto& stream : state_->streams) {
      if (!std::exchange(stream->ending, true)) stream->why = why;
      stream->EndIfSent();
    }
  }
  while (Next(deadline).kind != EventKind::kNone) {
  }
}

void WorkerStreams::CloseQueue() {
  if (state_->queue == nullptr) return;
  state_->queue->Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (state_->queue->Next(&tag, &ok)) {
  }
}

}  // namespace moe
