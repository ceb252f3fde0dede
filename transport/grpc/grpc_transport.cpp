#include "transport/grpc/grpc_transport.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/aligned_buffer.h"
#include "transport/exchange_checks.h"
#include "transport/exchange_progress.h"
#include "transport/frame.h"
#include "transport/grpc/frame_memory.h"
#include "transport/grpc/router_memory.h"
#include "transport/grpc/router_streams.h"

namespace moe {
namespace {

WorkerId Id(std::size_t worker) { return WorkerId(static_cast<int>(worker)); }

// One exchange's buffers and what is awaited of it, by worker. Kept by the transport, so that an exchange that is given
// up leaves them where they are.
struct Slot : ExchangeProgress {
  Slot(std::size_t num_workers, const TransportLimits& limits)
      : ExchangeProgress(num_workers), unsent(num_workers), reply_bytes(num_workers) {
    for (std::size_t w = 0; w < num_workers; ++w) {
      requests.push_back(FrameMemory::Make(limits.max_request_bytes));
      replies.emplace_back(kFrameHeaderBytes + limits.max_reply_bytes);
    }
  }
  // A worker's part ends with its reply and, usually long before, with gRPC's word that it has taken the request.
  void EndIfComplete(std::size_t worker) {
    if (pending[worker] != 0 && unsent[worker] == 0 && replied(worker)) End(worker);
  }

  std::vector<FrameMemory::Owner> requests;
  std::vector<AlignedBuffer<std::byte>> replies;  // header, then max_reply_bytes
  std::vector<std::uint8_t> unsent;
  std::vector<std::size_t> reply_bytes;
};

class GrpcTransport final : public Transport {
 public:
  GrpcTransport(GrpcChannels& channels, const GrpcTransportOptions& options, std::vector<std::uint8_t> attached,
                bool offers_memory)
      : channels_(channels),
        name_(options.shared_memory ? "grpc" : "grpc_streams"),
        attached_(std::move(attached)),
        tap_(options.tap),
        epoch_(channels.NextEpoch()),
        memory_(offers_memory ? MakeMemory() : nullptr),
        stray_(kFrameHeaderBytes + limits().max_reply_bytes),
        lost_(attached_.size()),
        streams_(channels, static_cast<std::size_t>(limits().max_exchanges)) {
    for (int s = 0; s < limits().max_exchanges; ++s) slots_.emplace_back(attached_.size(), limits());
  }

  Status Open(Deadline deadline) {
    const std::vector<std::string> offers = memory_ == nullptr ? std::vector<std::string>() : memory_->Offers();
    return streams_.Open(epoch_, attached_, offers, deadline);
  }
  // After Open. False when some workers wait for frames in memory and others can't be reached by it.
  bool SettleMemory();

  std::string_view name() const override { return name_; }
  MemorySpace memory_space() const override { return MemorySpace::kHost; }
  int num_workers() const override { return channels_.num_workers(); }
  Rank rank(WorkerId worker) const override { return Rank(worker.value() + 1); }
  const TransportLimits& limits() const override { return channels_.limits(); }
  std::unique_ptr<Exchange> MakeExchange() override;

 private:
  friend class GrpcExchange;

  const Status& Fail(Status reason) {
    if (failure_.ok()) failure_ = std::move(reason);
    return failure_;
  }
  std::unique_ptr<RouterMemory> MakeMemory() const;
  Status CheckAttached(std::span<const std::size_t> request_bytes) const;
  void SendRequest(std::size_t slot, std::size_t worker, std::size_t bytes);
  void SeeOff();
  bool Progress(Deadline deadline);
  bool ProgressInMemory(Deadline deadline);
  bool Handle(const RouterStreams::Event& event);
  bool TakeLaneReplies();
  Status TakeReply(std::size_t worker, FrameMessage& message);
  Slot* SlotOf(std::size_t worker, std::uint64_t sequence);
  // The memory in which frames to this worker lie; none: they travel in its stream.
  RouterMemory* InMemory(std::size_t worker) const { return attached_[worker] != 0 ? memory_.get() : nullptr; }

  GrpcChannels& channels_;
  const std::string_view name_;
  const std::vector<std::uint8_t> attached_;
  FrameTap* const tap_;
  const std::uint64_t epoch_;
  std::unique_ptr<RouterMemory> memory_;  // none: frames travel in the streams
  TimePoint looked_at_;                   // the streams last; with memory
  std::vector<Slot> slots_;
  AlignedBuffer<std::byte> stray_;  // a frame that answers no exchange under way
  std::uint64_t last_sequence_ = 0;
  Status failure_;            // the first one, for good
  std::vector<Status> lost_;  // by worker: why its stream has ended
  RouterStreams streams_;     // last: it goes before the memory that its messages refer to
};

class GrpcExchange final : public Exchange {
 public:
  GrpcExchange(GrpcTransport& transport, std::size_t number)
      : transport_(transport), number_(number), slot_(transport.slots_[number]) {
    slot_.used = true;
  }
  ~GrpcExchange() override {
    if (slot_.num_pending > 0) {
      transport_.Fail(GivenUp(transport_, slot_.pending));
      return;  // the slot stays used: replies may still arrive
    }
    slot_.used = false;
  }

  std::span<std::byte> request(WorkerId worker) override {
    RouterMemory* const memory = transport_.InMemory(worker.index());
    return memory != nullptr ? memory->lanes(worker).request(number_) : slot_.requests[worker.index()]->payload();
  }
  Status Start(std::span<const std::size_t> request_bytes) override;
  Result<bool> Poll() override;
  Status Wait(Deadline deadline) override;
  std::span<const std::byte> reply(WorkerId worker) const override {
    const std::size_t bytes = slot_.reply_bytes[worker.index()];
    if (bytes == 0) return {};
    if (transport_.memory_ != nullptr) return transport_.memory_->lanes(worker).reply(number_);
    return std::as_const(slot_.replies[worker.index()]).span().subspan(kFrameHeaderBytes, bytes);
  }
  TimePoint completed_at(WorkerId worker) const override { return slot_.completed_at[worker.index()]; }

 private:
  Status GiveUp();

  GrpcTransport& transport_;
  const std::size_t number_;
  Slot& slot_;
};

// None where the machine gives none: then everything travels in the streams.
std::unique_ptr<RouterMemory> GrpcTransport::MakeMemory() const {
  Result<std::unique_ptr<RouterMemory>> memory = RouterMemory::Create(limits(), attached_);
  return memory.ok() ? *std::move(memory) : nullptr;
}

bool GrpcTransport::SettleMemory() {
  channels_.SetSharesMemory(false);
  if (memory_ == nullptr) return true;
  std::size_t num_attached = 0;
  std::size_t taken = 0;
  std::size_t joined = 0;
  for (std::size_t w = 0; w < attached_.size(); ++w) {
    if (attached_[w] == 0) continue;
    ++num_attached;
    const std::string bell = streams_.memory(Id(w));
    if (bell.empty()) continue;
    ++taken;
    const LaneTerms terms{.limits = limits(), .epoch = epoch_, .tap = tap_, .worker = Id(w)};
    if (memory_->Join(terms, rank(Id(w)), bell).ok()) ++joined;
  }
  if (joined == num_attached && joined > 0) {
    channels_.SetSharesMemory(true);
    return true;
  }
  memory_.reset();
  return taken == 0;
}

std::unique_ptr<Exchange> GrpcTransport::MakeExchange() {
  const auto free = std::find_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return !slot.used; });
  MOE_CHECK(free != slots_.end(), "more exchanges than max_exchanges");
  return std::make_unique<GrpcExchange>(*this, static_cast<std::size_t>(free - slots_.begin()));
}

Status GrpcTransport::CheckAttached(std::span<const std::size_t> request_bytes) const {
  for (std::size_t w = 0; w < request_bytes.size(); ++w) {
    if (request_bytes[w] == 0 || attached_[w] != 0) continue;
    const Status& why = channels_.failure(Id(w));
    return Unavailable(channels_.Peer(Id(w)), " is not attached", why.ok() ? "" : Cat(": ", why.message()));
  }
  return Status::Ok();
}

Status GrpcExchange::Start(std::span<const std::size_t> request_bytes) {
  if (!transport_.failure_.ok()) return transport_.failure_;
  MOE_CHECK(slot_.num_pending == 0, "Start before the exchange ended");
  MOE_RETURN_IF_ERROR(CheckRequestBytes(transport_, request_bytes));
  MOE_RETURN_IF_ERROR(transport_.CheckAttached(request_bytes));
  for (std::size_t w = 0; w < request_bytes.size(); ++w)
    if (request_bytes[w] > 0 && !transport_.lost_[w].ok()) return transport_.Fail(transport_.lost_[w]);
  slot_.Begin(++transport_.last_sequence_, request_bytes);
  std::ranges::fill(slot_.reply_bytes, std::size_t{0});
  for (std::size_t w = 0; w < request_bytes.size(); ++w) {
    if (slot_.pending[w] != 0) transport_.SendRequest(number_, w, request_bytes[w]);
  }
  transport_.SeeOff();
  return transport_.failure_;
}

// gRPC sends when somebody waits on its queue, and takes one frame of a stream at a time. So requests are seen off
// here: the router may compute for long before it waits. Asleep, because a thread of gRPC's may be at the sending,
// which needs the processor. Not for long: a worker that reads nothing must not hold up the others.
void GrpcTransport::SeeOff() {
  if (memory_ != nullptr) return memory_->backoff().Progress();  // nothing is to be sent; a wait begins
  constexpr std::chrono::milliseconds kPatience{1};              // the least that gRPC sleeps for
  const Deadline deadline = After(kPatience);
  while (failure_.ok() && streams_.Unsent() && Clock::now() < deadline) Progress(deadline);
}

void GrpcTransport::SendRequest(std::size_t slot, std::size_t worker, std::size_t bytes) {
  if (memory_ != nullptr) return memory_->lanes(Id(worker)).Send(slot, slots_[slot].sequence, bytes);
  FrameMemory& memory = *slots_[slot].requests[worker];
  const FrameHeader header{
      .kind = FrameKind::kRequest, .epoch = epoch_, .sequence = slots_[slot].sequence, .payload_bytes = bytes};
  const std::span<std::byte> frame = memory.frame().first(kFrameHeaderBytes + bytes);
  if (!CompleteFrame(header, frame, limits().payload_checksums, tap_, Id(worker))) return;
  slots_[slot].unsent[worker] = 1;
  streams_.Send(Id(worker), {.slot = slot, .memory = &memory, .bytes = frame.size()});
}

// Handles what has happened, to whatever exchange; false when there was nothing before the deadline, which may not have
// come yet. A failure is for good, and for whoever waits for something that is still to come.
bool GrpcTransport::Progress(Deadline deadline) {
  return memory_ != nullptr ? ProgressInMemory(deadline) : Handle(streams_.Next(deadline));
}

bool GrpcTransport::ProgressInMemory(Deadline deadline) {
  const TimePoint now = Clock::now();
  if (now - looked_at_ >= kLookInterval) {
    looked_at_ = now;
    if (Handle(streams_.Next(TimePoint::min()))) return true;
  }
  if (TakeLaneReplies()) {
    memory_->backoff().Progress();
    return true;
  }
  if (now >= deadline) return false;
  memory_->backoff().Pause(deadline);
  return false;  // to be looked at again
}

bool GrpcTransport::TakeLaneReplies() {
  bool moved = false;
  for (std::size_t s = 0; s < slots_.size(); ++s) {
    Slot& slot = slots_[s];
    for (std::size_t w = 0; w < attached_.size() && slot.num_pending > 0; ++w) {
      if (slot.pending[w] == 0) continue;
      RouterLanes& lanes = memory_->lanes(Id(w));
      const Result<bool> taken = lanes.TakeReply(s, slot.sequence);
      if (!taken.ok()) {
        channels_.SetFailure(Id(w), taken.status());
        Fail(taken.status());
        return true;
      }
      if (!*taken) continue;
      moved = true;
      slot.reply_bytes[w] = lanes.reply(s).size();
      slot.completed_at[w] = lanes.replied_at(s);
      slot.End(w);
    }
  }
  return moved;
}

bool GrpcTransport::Handle(const RouterStreams::Event& event) {
  const std::size_t worker = event.worker.index();
  switch (event.kind) {
    case RouterStreams::EventKind::kNone: return false;
    case RouterStreams::EventKind::kOpened: return true;
    case RouterStreams::EventKind::kSent:
      slots_[event.slot].unsent[worker] = 0;
      slots_[event.slot].EndIfComplete(worker);
      return true;
    case RouterStreams::EventKind::kFrame: {
      Status taken = TakeReply(worker, *event.message);
      if (taken.ok()) return true;
      channels_.SetFailure(event.worker, taken);
      Fail(std::move(taken));
      return true;
    }
    case RouterStreams::EventKind::kLost:
      // What it has replied before it went is there. Nobody else is harmed by the end of one that owes nothing.
      if (memory_ != nullptr) TakeLaneReplies();
      lost_[worker] = event.failure;
      if (std::ranges::any_of(slots_, [worker](const Slot& slot) { return slot.pending[worker] != 0; }))
        Fail(event.failure);
      return true;
  }
  return false;
}

Slot* GrpcTransport::SlotOf(std::size_t worker, std::uint64_t sequence) {
  for (Slot& slot : slots_) {
    if (slot.pending[worker] != 0 && !slot.replied(worker) && slot.sequence == sequence) return &slot;
  }
  return nullptr;
}

// Copies the frame to where it belongs, once, and judges it there. Until then its header is not believed: it can do no
// worse than to be written over a reply that is awaited anyway.
Status GrpcTransport::TakeReply(std::size_t worker, FrameMessage& message) {
  if (memory_ != nullptr)
    return Unavailable(channels_.Peer(Id(worker)), " sent a frame in its stream, but shares memory");
  const Result<std::size_t> bytes = message.ReadEnvelope();
  if (!bytes.ok()) return Unavailable(channels_.Peer(Id(worker)), " ", bytes.status().message());
  if (*bytes > stray_.size()) {
    return Unavailable(channels_.Peer(Id(worker)), " sent a frame of ", *bytes, " bytes, over the limit of ",
                       stray_.size());
  }
  const std::size_t head = std::min(*bytes, kFrameHeaderBytes);
  MOE_CHECK(message.Read(stray_.span().first(head)), "the envelope has counted these bytes");
  Slot* const slot =
      *bytes < kFrameHeaderBytes ? nullptr : SlotOf(worker, ReadFrameHeader(std::as_const(stray_).span()).sequence);
  AlignedBuffer<std::byte>& into = slot == nullptr ? stray_ : slot->replies[worker];
  if (slot != nullptr) std::memcpy(into.data(), stray_.data(), kFrameHeaderBytes);
  const bool whole = message.Read(into.span().subspan(head, *bytes - head));
  MOE_CHECK(whole, "the envelope has counted these bytes");
  MOE_ASSIGN_OR_RETURN(const FrameVerdict verdict,
                       JudgeReply(std::as_const(into).span().first(*bytes),
                                  {.peer = rank(Id(worker)),
                                   .epoch = epoch_,
                                   .sequence = slot == nullptr ? last_sequence_ : slot->sequence,
                                   .max_payload_bytes = limits().max_reply_bytes,
                                   .payload_checksum = limits().payload_checksums}));
  if (verdict == FrameVerdict::kDrop || slot == nullptr) return Status::Ok();
  slot->reply_bytes[worker] = *bytes - kFrameHeaderBytes;
  slot->Replied(worker);
  slot->EndIfComplete(worker);
  streams_.Answered(Id(worker));
  return Status::Ok();
}

Result<bool> GrpcExchange::Poll() {
  if (!transport_.failure_.ok()) return transport_.failure_;
  while (slot_.num_pending > 0) {
    if (!transport_.failure_.ok()) return transport_.failure_;
    if (!transport_.Progress(TimePoint::min())) return slot_.num_pending == 0;
  }
  return true;
}

Status GrpcExchange::Wait(Deadline deadline) {
  if (!transport_.failure_.ok()) return transport_.failure_;
  while (slot_.num_pending > 0) {
    if (!transport_.failure_.ok()) return transport_.failure_;
    const bool late = Clock::now() >= deadline;  // before the look: this thread may have slept while replies came
    if (!transport_.Progress(deadline) && late) return GiveUp();
  }
  return Status::Ok();
}

Status GrpcExchange::GiveUp() {
  for (std::size_t w = 0; w < slot_.pending.size(); ++w) {
    if (slot_.pending[w] == 0) continue;
    transport_.channels_.SetFailure(
        Id(w), DeadlineExceeded(transport_.channels_.Peer(Id(w)), " did not reply before the deadline of an exchange"));
  }
  return transport_.Fail(NoReply(transport_, slot_.pending));
}

}  // namespace

Result<std::unique_ptr<Transport>> MakeGrpcTransport(GrpcChannels& channels, const GrpcTransportOptions& options) {
  const auto num_workers = static_cast<std::size_t>(channels.num_workers());
  std::vector<std::uint8_t> attached = options.attached;
  if (attached.empty()) attached.assign(num_workers, 1);
  if (attached.size() != num_workers)
    return InvalidArgument("attached has ", attached.size(), " entries for ", num_workers, " workers");
  const Deadline deadline = After(options.connect_timeout);
  auto transport = std::make_unique<GrpcTransport>(channels, options, attached, options.shared_memory);
  MOE_RETURN_IF_ERROR(transport->Open(deadline));
  if (!transport->SettleMemory()) {
    // Some workers are here and some elsewhere: an exchange waits for the latter anyway, so all travel in streams.
    transport.reset();
    transport = std::make_unique<GrpcTransport>(channels, options, attached, /*offers_memory=*/false);
    MOE_RETURN_IF_ERROR(transport->Open(deadline));
  }
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace moe
