#include "transport/grpc/router_streams.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <array>
#include <utility>

#include "rpc/status_mapping.h"
#include "transport/grpc/stream_hello.h"

namespace moe {
namespace {

enum class Step : std::uint8_t { kStart, kOpen, kRead, kWrite, kEnd };

}  // namespace

// One worker's. A tag of the completion queue is the address of one of `tags`.
struct RouterStreams::Stream {
  struct Tag {
    Stream* stream = nullptr;
    Step step = Step::kStart;
  };

  Stream(WorkerId id, std::size_t max_frames) : worker(id), unsent(max_frames) {
    for (std::size_t i = 0; i < tags.size(); ++i) tags[i] = {this, static_cast<Step>(i)};
  }
  void* tag(Step step) { return &tags[static_cast<std::size_t>(step)]; }
  void WriteFirst() { call->Write(MessageOf(unsent.front()), tag(Step::kWrite)); }

  const WorkerId worker;
  grpc::ClientContext context;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call;
  grpc::ByteBuffer arrived;
  ArrivedMessage message;
  grpc::Status ended;
  std::array<Tag, 5> tags;
  SendQueue unsent;
  bool started = false;
  bool accepted = false;
  // gRPC answers a new read with a window update, a packet of its own. Behind the next request the worker finds both in
  // one look; before it, the update would wake it up for nothing.
  bool unread = false;  // a message has been told, and nothing is being read since
  int awaited = 0;      // answers
  bool ending = false;  // nothing will be read any more; why is asked, or known
};

struct RouterStreams::State {
  State(GrpcChannels& to, std::size_t frames)
      : channels(to), max_frames(frames), streams(static_cast<std::size_t>(to.num_workers())) {}

  GrpcChannels& channels;
  const std::size_t max_frames;
  grpc::CompletionQueue queue;
  std::vector<std::unique_ptr<Stream>> streams;  // by worker; none where it is not attached

  void Begin(WorkerId worker, std::uint64_t epoch, const std::string& memory);
  Event Handle(Stream& stream, Step step, bool ok);
  static void ReadNext(Stream& stream) {
    stream.unread = false;
    stream.call->Read(&stream.arrived, stream.tag(Step::kRead));
  }
  // Of the worker's answer to our metadata; empty when the key is not there.
  static std::string Answer(const Stream& stream, std::string_view key);
  // Asks why the stream has ended, once.
  static void AskWhy(Stream& stream) {
    if (std::exchange(stream.ending, true)) return;
    stream.call->Finish(&stream.ended, stream.tag(Step::kEnd));
  }
  Status WhyEnded(const Stream& stream) const;
};

RouterStreams::RouterStreams(GrpcChannels& channels, std::size_t max_frames)
    : state_(std::make_unique<State>(channels, max_frames)) {}

RouterStreams::~RouterStreams() {
  for (const auto& stream : state_->streams) {
    if (stream != nullptr) stream->context.TryCancel();
  }
  state_->queue.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (state_->queue.Next(&tag, &ok)) {
  }
}

void RouterStreams::State::Begin(WorkerId worker, std::uint64_t epoch, const std::string& memory) {
  streams[worker.index()] = std::make_unique<Stream>(worker, max_frames);
  Stream& stream = *streams[worker.index()];
  const StreamHello hello{
      .router = channels.router_id(), .epoch = epoch, .limits = channels.limits(), .memory = memory};
  for (const auto& [key, value] : ToMetadata(hello)) stream.context.AddMetadata(key, value);
  grpc::GenericStub stub(channels.channel(worker));
  stream.call = stub.PrepareCall(&stream.context, std::string(kExchangeMethod), &queue);
  stream.call->StartCall(stream.tag(Step::kStart));
  stream.call->ReadInitialMetadata(stream.tag(Step::kOpen));
}

Status RouterStreams::Open(std::uint64_t epoch, const std::vector<std::uint8_t>& attached,
                           const std::vector<std::string>& memory, Deadline deadline) {
  // Who has failed at once tells so at once: others that fail too are put down beside it, so that whoever tries again
  // without the first need not find them out one by one.
  constexpr std::chrono::milliseconds kOthersToo{100};
  std::vector<std::uint8_t> awaited = attached;
  std::size_t num_awaited = 0;
  for (std::size_t w = 0; w < attached.size(); ++w) {
    if (attached[w] == 0) continue;
    state_->Begin(WorkerId(static_cast<int>(w)), epoch, memory.empty() ? "" : memory[w]);
    ++num_awaited;
  }
  Status failure;
  while (num_awaited > 0) {
    const Event event = Next(deadline);
    if (event.kind == EventKind::kNone) break;
    num_awaited -= std::exchange(awaited[event.worker.index()], 0);
    if (event.kind == EventKind::kOpened) state_->channels.SetFailure(event.worker, Status::Ok());
    if (event.kind == EventKind::kLost && failure.ok()) {
      failure = event.failure;
      deadline = std::min(deadline, After(kOthersToo));
    }
  }
  for (std::size_t w = 0; w < awaited.size() && failure.ok(); ++w) {
    if (awaited[w] == 0) continue;
    const WorkerId worker(static_cast<int>(w));
    failure = DeadlineExceeded(state_->channels.Peer(worker), " did not accept the stream before the deadline");
    state_->channels.SetFailure(worker, failure);
  }
  return failure;
}

std::string RouterStreams::memory(WorkerId worker) const {
  return State::Answer(*state_->streams[worker.index()], kMemoryKey);
}

void RouterStreams::Send(WorkerId worker, const OutgoingFrame& frame) {
  Stream& stream = *state_->streams[worker.index()];
  stream.unsent.Push(frame);
  if (stream.unsent.size() == 1) stream.WriteFirst();
  ++stream.awaited;
  if (stream.unread) State::ReadNext(stream);
}

bool RouterStreams::Unsent() const {
  return std::ranges::any_of(state_->streams,
                             [](const auto& stream) { return stream != nullptr && !stream->unsent.empty(); });
}

void RouterStreams::Answered(WorkerId worker) { --state_->streams[worker.index()]->awaited; }

RouterStreams::Event RouterStreams::Next(Deadline deadline) {
  for (const auto& stream : state_->streams) {
    if (stream != nullptr && stream->unread && stream->awaited > 0) State::ReadNext(*stream);
  }
  while (true) {
    const Completion next = NextCompletion(state_->queue, deadline);
    if (next.tag == nullptr) return {};
    const auto* const tag = static_cast<Stream::Tag*>(next.tag);
    Event event = state_->Handle(*tag->stream, tag->step, next.ok);
    event.worker = tag->stream->worker;
    if (event.kind != EventKind::kNone) return event;
  }
}

// kNone for a step that nobody needs to know of.
RouterStreams::Event RouterStreams::State::Handle(Stream& stream, Step step, bool ok) {
  switch (step) {
    case Step::kStart:
    case Step::kOpen:
      // In either order. Until gRPC has taken our metadata nothing may be written, even if they have been answered.
      if (step == Step::kStart) stream.started = true;
      if (step == Step::kOpen && ok && Answer(stream, kProtocolKey) == std::to_string(kFrameVersion))
        stream.accepted = true;
      if (step == Step::kOpen && !stream.accepted) AskWhy(stream);
      if (!stream.started || !stream.accepted) return {};
      ReadNext(stream);
      return {.kind = EventKind::kOpened};
    case Step::kRead:
      if (!ok) {
        AskWhy(stream);
        return {};
      }
      stream.unread = true;
      stream.message.Open(stream.arrived);
      return {.kind = EventKind::kFrame, .message = &stream.message};
    case Step::kWrite: {
      const std::size_t slot = stream.unsent.Pop().slot;
      if (!ok) {
        AskWhy(stream);
        return {};
      }
      if (!stream.unsent.empty()) stream.WriteFirst();
      return {.kind = EventKind::kSent, .slot = slot};
    }
    case Step::kEnd: {
      const Status failure = WhyEnded(stream);
      channels.SetFailure(stream.worker, failure);
      return {.kind = EventKind::kLost, .failure = failure};
    }
  }
  return {};
}

std::string RouterStreams::State::Answer(const Stream& stream, std::string_view key) {
  const auto& metadata = stream.context.GetServerInitialMetadata();
  const auto found = metadata.find(grpc::string_ref(key.data(), key.size()));
  return found == metadata.end() ? "" : std::string(found->second.data(), found->second.size());
}

Status RouterStreams::State::WhyEnded(const Stream& stream) const {
  const std::string peer = channels.Peer(stream.worker);
  const Status ended = FromGrpc(stream.ended);
  if (stream.accepted) {
    return Unavailable(peer, " has closed its end of the transport",
                       ended.ok() ? "" : Cat(": ", ended.message().empty() ? Name(ended.code()) : ended.message()));
  }
  switch (ended.code()) {
    case StatusCode::kOk: return Unavailable(peer, " ended the stream without accepting it");
    case StatusCode::kInvalidArgument:
    case StatusCode::kResourceExhausted:
    case StatusCode::kUnimplemented: return {ended.code(), Cat(peer, " refused the stream: ", ended.message())};
    default: return Unavailable(peer, " cannot be reached: ", ended.message());
  }
}

}  // namespace moe
