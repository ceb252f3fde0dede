#include "transport/grpc/grpc_endpoint.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/aligned_buffer.h"
#include "transport/frame.h"
#include "transport/grpc/ring.h"

namespace moe {
namespace {

// Every router is rank 0 of its own job.
constexpr Rank kRouterRank{0};
// A ticket is the stream's number and the slot in it: one of its own or, after these, a lane. Limits allow 1,000
// exchanges.
constexpr std::uint64_t kMostSlots = 2048;

enum class SlotState : std::uint8_t { kFree, kArrived, kTaken, kReplying };

struct Slot {
  AlignedBuffer<std::byte> request;  // header, then max_request_bytes
  FrameMemory::Owner reply;
  SlotState state = SlotState::kFree;
  std::uint64_t sequence = 0;
  std::size_t frame_bytes = 0;  // of the request
};

}  // namespace

struct GrpcEndpoint::Router {
  Router(std::uint64_t number, const StreamHello& said)
      : stream(number), hello(said), free(num_slots()), arrived(num_slots()) {
    for (std::size_t s = 0; s < num_slots(); ++s) {
      slots.push_back({.request = AlignedBuffer<std::byte>(kFrameHeaderBytes + limits().max_request_bytes),
                       .reply = FrameMemory::Make(limits().max_reply_bytes)});
      free.Push(s);
    }
  }
  const TransportLimits& limits() const { return hello.limits; }
  std::size_t num_slots() const { return static_cast<std::size_t>(hello.limits.max_exchanges); }
  // How many requests have arrived and are not replied to.
  std::size_t open() const {
    return static_cast<std::size_t>(std::count_if(slots.begin(), slots.end(), [](const Slot& slot) {
      return slot.state == SlotState::kArrived || slot.state == SlotState::kTaken;
    }));
  }
  bool idle() const { return open() == 0 && (memory == nullptr || memory->lanes().open() == 0); }

  const std::uint64_t stream;
  const StreamHello hello;
  std::vector<Slot> slots;
  Ring<std::size_t> free;     // slots, in the order in which they became so
  Ring<std::size_t> arrived;  // likewise
  std::uint64_t last_sequence = 0;
  FrameMemory::Owner refusal;              // an error frame
  std::unique_ptr<AttachedMemory> memory;  // where its frames lie; none: they travel in its stream
  // gRPC answers a new read with a window update, a packet of its own. Behind the reply the router finds both in one
  // look; before it, the update would wake it up for nothing.
  bool unread = false;           // a message has been taken, and nothing is being read since
  FrameMessage* held = nullptr;  // a request that waits for a slot, whose last reply gRPC has not taken yet
  bool refused = false;          // told of a wrong frame: nothing more is sent to it
  bool closing = false;          // it sends nothing more
  bool gone = false;             // kept for the requests that are still open
};

GrpcEndpoint::GrpcEndpoint(WorkerStreams& streams, const Options& options)
    : options_(options),
      streams_(streams),
      routers_(static_cast<std::size_t>(options.max_routers)),
      bell_(options.shared_memory) {}

GrpcEndpoint::~GrpcEndpoint() = default;

bool GrpcEndpoint::attached(int router) const {
  const std::unique_ptr<Router>& place = routers_[static_cast<std::size_t>(router)];
  return place != nullptr && !place->gone && !place->closing;
}

Result<std::optional<IncomingRequest>> GrpcEndpoint::Receive(Deadline deadline) {
  while (true) {
    if (stopped_) return Unavailable("this worker has been told to stop");
    if (!wrong_frame_.ok()) return std::exchange(wrong_frame_, Status::Ok());
    const Ringing who = WhoRings();
    if (bell_.LookIsDue(who)) {
      MOE_ASSIGN_OR_RETURN(const bool moved, HandleNext(TimePoint::min()));
      if (moved) bell_.Progress();  // more of it may be there: the next looks come soon
    }
    MOE_ASSIGN_OR_RETURN(const std::optional<IncomingRequest> request, TakeNext());
    if (request) {
      bell_.Progress();
      return request;
    }
    if (who == Ringing::kNone) {
      MOE_ASSIGN_OR_RETURN(const bool moved, HandleNext(deadline));
      if (moved) continue;
    }
    if (Clock::now() >= deadline) return std::optional<IncomingRequest>();
    if (who != Ringing::kNone) bell_.Pause(who, deadline);
  }
}

Ringing GrpcEndpoint::WhoRings() const {
  bool any = false;
  bool all = true;
  for (const auto& router : routers_) {
    if (router == nullptr || router->gone) continue;
    any = any || router->memory != nullptr;
    all = all && router->memory != nullptr;
  }
  if (!any) return Ringing::kNone;
  return all ? Ringing::kAll : Ringing::kSome;
}

// The oldest request of the router whose turn it is, or of the next one that has any.
Result<std::optional<IncomingRequest>> GrpcEndpoint::TakeNext() {
  for (std::size_t i = 0; i < routers_.size(); ++i) {
    const std::size_t place = (next_place_ + i) % routers_.size();
    if (routers_[place] == nullptr || routers_[place]->gone) continue;
    MOE_ASSIGN_OR_RETURN(const std::optional<IncomingRequest> request, TakeNextOf(place));
    if (!request) continue;
    next_place_ = (place + 1) % routers_.size();
    return request;
  }
  return std::optional<IncomingRequest>();
}

Result<std::optional<IncomingRequest>> GrpcEndpoint::TakeNextOf(std::size_t place) {
  Router& router = *routers_[place];
  IncomingRequest request{.router = static_cast<int>(place), .ticket = router.stream * kMostSlots};
  if (!router.arrived.empty()) {
    const std::size_t number = router.arrived.Pop();
    Slot& slot = router.slots[number];
    slot.state = SlotState::kTaken;
    request.payload = std::as_const(slot.request).span().first(slot.frame_bytes).subspan(kFrameHeaderBytes);
    request.ticket += number;
    return std::optional(request);
  }
  if (router.memory == nullptr || router.refused) return std::optional<IncomingRequest>();
  const Result<std::optional<WorkerLanes::Request>> taken = router.memory->lanes().Take();
  if (!taken.ok()) return Refuse(router, taken.status());
  if (!taken->has_value()) return std::optional<IncomingRequest>();
  request.payload = (*taken)->payload;
  request.ticket += router.num_slots() + (*taken)->slot;
  return std::optional(request);
}

// Handles what the streams have to tell next; false when that is nothing before the deadline, which gRPC may round.
Result<bool> GrpcEndpoint::HandleNext(Deadline deadline) {
  for (const auto& router : routers_) {
    if (router != nullptr) ReadOn(*router);
  }
  const WorkerStreams::Event event = streams_.Next(deadline);
  if (event.kind == WorkerStreams::EventKind::kNone) return false;
  MOE_RETURN_IF_ERROR(Handle(event));
  return true;
}

// INTERNAL for a wrong frame, which its router has been told of.
Status GrpcEndpoint::Handle(const WorkerStreams::Event& event) {
  if (event.kind == WorkerStreams::EventKind::kStopped) stopped_ = true;
  if (event.kind == WorkerStreams::EventKind::kOpening) Open(event.stream, *event.hello);
  Router* const router = Find(event.stream);
  if (router == nullptr) return Status::Ok();  // what is left of a stream that nobody cares for any more
  switch (event.kind) {
    case WorkerStreams::EventKind::kFrame: return TakeRequest(*router, *event.message);
    case WorkerStreams::EventKind::kSent:
      if (event.slot >= router->slots.size()) break;  // a refusal
      router->slots[event.slot].state = SlotState::kFree;
      router->free.Push(event.slot);
      if (router->held != nullptr) return TakeRequest(*router, *std::exchange(router->held, nullptr));
      break;
    case WorkerStreams::EventKind::kClosing:
      router->closing = true;
      EndIfServed(*router);
      break;
    case WorkerStreams::EventKind::kEnded: Detach(*router); break;
    default: break;
  }
  return Status::Ok();
}

void GrpcEndpoint::Open(std::uint64_t stream, const Result<StreamHello>& hello) {
  const Status admitted = Admit(stream, hello);
  if (admitted.ok()) {
    // One frame more than exchanges: a refusal.
    streams_.Accept(stream, static_cast<std::size_t>(hello->limits.max_exchanges) + 1,
                    Find(stream)->memory == nullptr ? "" : bell_.name());
  } else {
    streams_.Refuse(stream, admitted);
  }
}

Status GrpcEndpoint::Admit(std::uint64_t stream, const Result<StreamHello>& hello) {
  if (!hello.ok()) return hello.status();
  MOE_RETURN_IF_ERROR(CheckHello(*hello, options_.limits));
  // A router that has lost us and comes again is here before gRPC may have noticed that it went.
  for (const auto& other : routers_) {
    if (other == nullptr || other->gone || other->hello.router != hello->router) continue;
    if (hello->epoch <= other->hello.epoch) {
      return InvalidArgument("the router's epoch ", hello->epoch, " is not after ", other->hello.epoch,
                             ", with which it is attached");
    }
    streams_.Cancel(other->stream);
    Detach(*other);
    break;
  }
  const auto free = std::find(routers_.begin(), routers_.end(), nullptr);
  if (free == routers_.end())
    return ResourceExhausted("all places for routers are taken (", routers_.size(), " at a time)");
  *free = std::make_unique<Router>(stream, *hello);
  if (!hello->memory.empty() && !bell_.name().empty()) {
    const LaneTerms terms{
        .limits = hello->limits, .epoch = hello->epoch, .tap = options_.tap, .worker = options_.worker};
    (*free)->memory = AttachedMemory::Take(hello->memory, terms, kRouterRank);
  }
  return Status::Ok();
}

Status GrpcEndpoint::TakeRequest(Router& router, FrameMessage& message) {
  if (router.memory != nullptr)
    return RefuseFrame(router, Internal("rank ", kRouterRank, " sent a frame in its stream, but shares memory"));
  if (router.open() == router.num_slots()) {
    return RefuseFrame(router, Internal("rank ", kRouterRank, " has more than ", router.num_slots(),
                                        " requests in flight, the exchanges that it asked for"));
  }
  if (router.free.empty()) {
    router.held = &message;
    return Status::Ok();
  }
  const Result<bool> taken = ReadRequest(router, message);
  if (!taken.ok()) return RefuseFrame(router, taken.status());
  if (*taken) {
    const std::size_t slot = router.free.Pop();
    router.slots[slot].state = SlotState::kArrived;
    router.arrived.Push(slot);
  }
  router.unread = true;
  return Status::Ok();
}

void GrpcEndpoint::ReadOn(Router& router) {
  if (!router.gone && std::exchange(router.unread, false)) streams_.ReadNext(router.stream);
}

// Copies the frame into the first free slot, once, and judges it there; false for a stale one.
Result<bool> GrpcEndpoint::ReadRequest(Router& router, FrameMessage& message) {
  Slot& slot = router.slots[router.free.front()];
  const Result<std::size_t> bytes = message.ReadEnvelope();
  if (!bytes.ok()) return Internal("rank ", kRouterRank, " ", bytes.status().message());
  if (*bytes > slot.request.size()) {
    return Internal("rank ", kRouterRank, " sent a frame of ", *bytes, " bytes, over the limit of ",
                    slot.request.size());
  }
  const bool whole = message.Read(slot.request.span().first(*bytes));
  MOE_CHECK(whole, "the envelope has counted these bytes");
  const auto frame = std::as_const(slot.request).span().first(*bytes);
  MOE_ASSIGN_OR_RETURN(const FrameVerdict verdict,
                       JudgeRequest(frame, {.peer = kRouterRank,
                                            .epoch = router.hello.epoch,
                                            .last_sequence = router.last_sequence,
                                            .max_payload_bytes = router.limits().max_request_bytes,
                                            .payload_checksum = router.limits().payload_checksums}));
  if (verdict == FrameVerdict::kDrop) return false;
  slot.frame_bytes = *bytes;
  slot.sequence = router.last_sequence = ReadFrameHeader(frame).sequence;
  return true;
}

// The router's transport ends with this; so does the stream.
Status GrpcEndpoint::RefuseFrame(Router& router, const Status& why) {
  const std::string& text = why.message();
  const std::size_t bytes = std::min(text.size(), router.limits().max_reply_bytes);
  router.refusal = FrameMemory::Make(bytes);
  if (bytes > 0) std::memcpy(router.refusal->payload().data(), text.data(), bytes);
  SendFrame(router, FrameKind::kError, router.slots.size(), bytes);
  return Refuse(router, why);
}

// It has been told why.
Status GrpcEndpoint::Refuse(Router& router, const Status& why) {
  router.refused = true;
  streams_.End(router.stream, why);
  return why;
}

// False when the tap takes it away.
bool GrpcEndpoint::SendFrame(Router& router, FrameKind kind, std::size_t slot, std::size_t bytes) {
  const bool refusal = slot == router.slots.size();
  FrameMemory& memory = refusal ? *router.refusal : *router.slots[slot].reply;
  const FrameHeader header{.kind = kind,
                           .epoch = router.hello.epoch,
                           .sequence = refusal ? router.last_sequence : router.slots[slot].sequence,
                           .payload_bytes = bytes};
  const std::span<std::byte> frame = memory.frame().first(kFrameHeaderBytes + bytes);
  if (!CompleteFrame(header, frame, router.limits().payload_checksums, options_.tap, options_.worker)) return false;
  streams_.Send(router.stream, {.slot = slot, .memory = &memory, .bytes = frame.size()});
  return true;
}

std::span<std::byte> GrpcEndpoint::reply_buffer(const IncomingRequest& request) {
  Router& router = RouterOf(request);
  const std::size_t number = request.ticket % kMostSlots;
  if (number >= router.num_slots()) return router.memory->lanes().reply_buffer(number - router.num_slots());
  return router.slots[number].reply->payload();
}

Status GrpcEndpoint::Reply(const IncomingRequest& request, std::size_t bytes) {
  Router& router = RouterOf(request);
  const std::uint64_t stream = router.stream;
  const std::size_t number = request.ticket % kMostSlots;
  if (number >= router.num_slots()) {
    MOE_RETURN_IF_ERROR(router.memory->lanes().Reply(number - router.num_slots(), bytes));
  } else {
    MOE_RETURN_IF_ERROR(ReplyInStream(router, number, bytes));
  }
  if (router.gone) {
    Detach(router);
  } else {
    EndIfServed(router);
  }
  SeeOff(stream);
  return Status::Ok();
}

Status GrpcEndpoint::ReplyInStream(Router& router, std::size_t number, std::size_t bytes) {
  Slot& slot = router.slots[number];
  MOE_CHECK(slot.state == SlotState::kTaken, "a reply to a request that is not open");
  MOE_RETURN_IF_ERROR(CheckReplyBytes(router.limits(), bytes));
  if (!router.gone && !router.refused && SendFrame(router, FrameKind::kReply, number, bytes)) {
    slot.state = SlotState::kReplying;
  } else {
    slot.state = SlotState::kFree;
    router.free.Push(number);
  }
  ReadOn(router);
  return Status::Ok();
}

// gRPC sends when somebody waits on its queue, and takes one frame of a stream at a time. So a reply is seen off here:
// its sender need not come back to Receive soon. Asleep, because a thread of gRPC's may be at the sending, which needs
// the processor. Not for ever: a router that reads nothing must not stop the others.
void GrpcEndpoint::SeeOff(std::uint64_t stream) {
  // Far above what a frame takes on a machine that is short of processors: one left here waits for the next Receive.
  constexpr std::chrono::milliseconds kPatience{50};
  const Deadline deadline = After(kPatience);
  while (Find(stream) != nullptr && streams_.Unsent(stream) && Clock::now() < deadline) {
    const WorkerStreams::Event event = streams_.Next(deadline);
    if (event.kind == WorkerStreams::EventKind::kNone) continue;
    const Status status = Handle(event);
    if (wrong_frame_.ok()) wrong_frame_ = status;
  }
}

// A router that says nothing more and has all its replies is told goodbye. Ours do not: they cancel. Of one that does,
// requests that lie in memory and were not taken yet are not waited for.
void GrpcEndpoint::EndIfServed(Router& router) {
  if (router.closing && router.held == nullptr && router.idle()) streams_.End(router.stream, Status::Ok());
}

// Frees its place, unless requests of it are still open: their buffers stay until they are replied to.
void GrpcEndpoint::Detach(Router& router) {
  router.gone = true;
  while (!router.arrived.empty()) router.slots[router.arrived.Pop()].state = SlotState::kFree;
  if (!router.idle()) return;
  std::find_if(routers_.begin(), routers_.end(), [&](const auto& other) { return other.get() == &router; })->reset();
}

GrpcEndpoint::Router* GrpcEndpoint::Find(std::uint64_t stream) {
  for (const auto& router : routers_) {
    if (router != nullptr && !router->gone && router->stream == stream) return router.get();
  }
  return nullptr;
}

GrpcEndpoint::Router& GrpcEndpoint::RouterOf(const IncomingRequest& request) {
  Router* const router = routers_[static_cast<std::size_t>(request.router)].get();
  MOE_CHECK(router != nullptr && router->stream == request.ticket / kMostSlots, "a request that is not open");
  return *router;
}

}  // namespace moe
