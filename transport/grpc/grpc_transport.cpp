#include "transport/grpc/grpc_transport.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/aligned_buffer.h"
#include "transport/exchange_checks.h"
#include "transport/exchange_progress.h"
#include "transport/frame.h"
#include "transport/grpc/frame_memory.h"
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
  GrpcTransport(GrpcChannels& channels, const GrpcTransportOptions& options, std::vector<std::uint8_t> attached)
      : channels_(channels),
        attached_(std::move(attached)),
        tap_(options.tap),
        epoch_(channels.NextEpoch()),
        stray_(kFrameHeaderBytes + limits().max_reply_bytes),
        streams_(channels, static_cast<std::size_t>(limits().max_exchanges)) {
    for (int s = 0; s < limits().max_exchanges; ++s) slots_.emplace_back(attached_.size(), limits());
  }

  Status Open(Deadline deadline) { return streams_.Open(epoch_, attached_, deadline); }

  std::string_view name() const override { return "grpc"; }
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
  Status CheckAttached(std::span<const std::size_t> request_bytes) const;
  void SendRequest(std::size_t slot, std::size_t worker, std::size_t bytes);
  Status SeeOff();
  Result<bool> Progress(Deadline deadline);
  Status TakeReply(std::size_t worker, FrameMessage& message);
  Slot* SlotOf(std::size_t worker, std::uint64_t sequence);

  GrpcChannels& channels_;
  const std::vector<std::uint8_t> attached_;
  FrameTap* const tap_;
  const std::uint64_t epoch_;
  std::vector<Slot> slots_;
  AlignedBuffer<std::byte> stray_;  // a frame that answers no exchange under way
  std::uint64_t last_sequence_ = 0;
  Status failure_;         // the first one, for good
  RouterStreams streams_;  // last: it goes before the memory that its messages refer to
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

  std::span<std::byte> request(WorkerId worker) override { return slot_.requests[worker.index()]->payload(); }
  Status Start(std::span<const std::size_t> request_bytes) override;
  Result<bool> Poll() override;
  Status Wait(Deadline deadline) override;
  std::span<const std::byte> reply(WorkerId worker) const override {
    const std::size_t bytes = slot_.reply_bytes[worker.index()];
    return std::as_const(slot_.replies[worker.index()]).span().subspan(kFrameHeaderBytes, bytes);
  }
  TimePoint completed_at(WorkerId worker) const override { return slot_.completed_at[worker.index()]; }

 private:
  Status GiveUp();

  GrpcTransport& transport_;
  const std::size_t number_;
  Slot& slot_;
};

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
  slot_.Begin(++transport_.last_sequence_, request_bytes);
  std::ranges::fill(slot_.reply_bytes, std::size_t{0});
  for (std::size_t w = 0; w < request_bytes.size(); ++w) {
    if (slot_.pending[w] != 0) transport_.SendRequest(number_, w, request_bytes[w]);
  }
  return transport_.SeeOff();
}

// gRPC sends when somebody waits on its queue, and takes one frame of a stream at a time. So requests are seen off
// here: the router may compute for long before it waits. Asleep, because a thread of gRPC's may be at the sending,
// which needs the processor. Not for long: a worker that reads nothing must not hold up the others.
Status GrpcTransport::SeeOff() {
  constexpr std::chrono::milliseconds kPatience{1};  // the least that gRPC sleeps for
  const Deadline deadline = After(kPatience);
  while (streams_.Unsent() && Clock::now() < deadline) MOE_RETURN_IF_ERROR(Progress(deadline).status());
  return Status::Ok();
}

void GrpcTransport::SendRequest(std::size_t slot, std::size_t worker, std::size_t bytes) {
  FrameMemory& memory = *slots_[slot].requests[worker];
  FrameHeader header{
      .kind = FrameKind::kRequest, .epoch = epoch_, .sequence = slots_[slot].sequence, .payload_bytes = bytes};
  const std::span<std::byte> payload = memory.payload().first(bytes);
  Seal(header, payload, limits().payload_checksums);
  if (tap_ != nullptr && !tap_->Pass(header, payload, Id(worker))) return;
  WriteFrameHeader(header, memory.frame());
  slots_[slot].unsent[worker] = 1;
  streams_.Send(Id(worker), {.slot = slot, .memory = &memory, .bytes = kFrameHeaderBytes + bytes});
}

// Handles the next event, of whatever exchange; false when there is none before the deadline.
Result<bool> GrpcTransport::Progress(Deadline deadline) {
  const RouterStreams::Event event = streams_.Next(deadline);
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
      return Fail(std::move(taken));
    }
    case RouterStreams::EventKind::kLost: return Fail(event.failure);
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
    MOE_ASSIGN_OR_RETURN(const bool moved, transport_.Progress(TimePoint::min()));
    if (!moved) return false;
  }
  return true;
}

Status GrpcExchange::Wait(Deadline deadline) {
  if (!transport_.failure_.ok()) return transport_.failure_;
  while (slot_.num_pending > 0) {
    MOE_ASSIGN_OR_RETURN(const bool moved, transport_.Progress(deadline));
    if (!moved && Clock::now() >= deadline) return GiveUp();
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
  auto transport = std::make_unique<GrpcTransport>(channels, options, std::move(attached));
  MOE_RETURN_IF_ERROR(transport->Open(After(options.connect_timeout)));
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace moe
