#include "transport/nccl/nccl_transport.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "transport/exchange_checks.h"
#include "transport/exchange_progress.h"
#include "transport/frame.h"
#include "transport/nccl/nccl_link.h"

namespace moe {
namespace {

WorkerId Id(std::size_t worker) { return WorkerId(static_cast<int>(worker)); }

// One exchange's buffers, by worker. Kept by the transport, so that they outlive an exchange that is given up.
struct Slot : ExchangeProgress {
  explicit Slot(std::size_t num_workers)
      : ExchangeProgress(num_workers), sent_bytes(num_workers), replies(num_workers) {}

  std::vector<PinnedBuffer> requests;   // a message each
  std::vector<std::size_t> sent_bytes;  // of the request; 0: left out, or taken away by the tap
  std::vector<std::optional<NcclArrival>> replies;
};

class NcclTransport final : public Transport {
 public:
  NcclTransport(std::unique_ptr<NcclLink> connected, std::vector<Slot> slots)
      : slots_(std::move(slots)), link_(std::move(connected)), awaited_(link_->num_peers()) {}

  std::string_view name() const override { return "nccl"; }
  MemorySpace memory_space() const override { return MemorySpace::kHost; }
  int num_workers() const override { return link_->options().num_ranks - 1; }
  Rank rank(WorkerId worker) const override { return Rank(worker.value() + 1); }
  const TransportLimits& limits() const override { return link_->options().limits; }
  std::unique_ptr<Exchange> MakeExchange() override;

  // For its exchanges.
  Status Fail(Status reason) {
    link_->AbortFailed();
    if (failure_.ok()) failure_ = std::move(reason);
    return failure_;
  }
  const Status& failure() const { return failure_; }
  Status Start(Slot& slot, std::span<const std::size_t> request_bytes);
  // Whether anything has moved, for whatever exchange.
  Result<bool> Progress();
  void ReleaseReplies(Slot& slot);

 private:
  Status SendRequests(Slot& slot, std::span<const std::size_t> request_bytes);
  Status SendSecondParts(const Slot& slot);
  Result<bool> PollWorker(std::size_t worker);
  Status TakeReply(std::size_t worker, const NcclArrival& arrival);
  Slot* PendingSlot(std::size_t worker, std::uint64_t sequence);

  std::vector<Slot> slots_;  // outlives the link, which waits until the device is done with their memory
  std::unique_ptr<NcclLink> link_;
  std::vector<std::size_t> awaited_;  // replies, by worker, over all exchanges
  std::uint64_t last_sequence_ = 0;
  Status failure_;  // the first one, for good
};

class NcclExchange final : public Exchange {
 public:
  NcclExchange(NcclTransport& transport, Slot& slot, const BackoffOptions& waiting)
      : transport_(transport), slot_(slot), backoff_(waiting) {
    slot_.used = true;
  }
  ~NcclExchange() override {
    if (slot_.num_pending > 0) {
      (void)transport_.Fail(GivenUp(transport_, slot_.pending));
      return;  // the slot stays used: transfers may still touch its buffers
    }
    transport_.ReleaseReplies(slot_);
    slot_.used = false;
  }

  std::span<std::byte> request(WorkerId worker) override {
    return slot_.requests[worker.index()].span().subspan(kNcclPayloadOffset);
  }
  Status Start(std::span<const std::size_t> request_bytes) override {
    backoff_.Progress();
    return transport_.Start(slot_, request_bytes);
  }
  Result<bool> Poll() override;
  Status Wait(Deadline deadline) override;
  std::span<const std::byte> reply(WorkerId worker) const override {
    const std::optional<NcclArrival>& arrival = slot_.replies[worker.index()];
    return arrival ? arrival->frame.subspan(kFrameHeaderBytes) : std::span<const std::byte>();
  }
  TimePoint completed_at(WorkerId worker) const override { return slot_.completed_at[worker.index()]; }

 private:
  NcclTransport& transport_;
  Slot& slot_;
  Backoff backoff_;
  bool moved_ = false;  // in the last Poll
};

std::unique_ptr<Exchange> NcclTransport::MakeExchange() {
  const auto free = std::ranges::find(slots_, false, &Slot::used);
  MOE_CHECK(free != slots_.end(), "more exchanges than max_exchanges");
  return std::make_unique<NcclExchange>(*this, *free, link_->options().waiting);
}

void NcclTransport::ReleaseReplies(Slot& slot) {
  for (std::size_t w = 0; w < slot.replies.size(); ++w) {
    if (slot.replies[w]) link_->peer(w).receiver->Release(slot.replies[w]->buffer);
    slot.replies[w].reset();
  }
}

Status NcclTransport::Start(Slot& slot, std::span<const std::size_t> request_bytes) {
  if (!failure_.ok()) return failure_;
  MOE_CHECK(slot.num_pending == 0, "Start before the exchange ended");
  MOE_RETURN_IF_ERROR(CheckRequestBytes(*this, request_bytes));
  if (Status status = link_->UseThisThread(); !status.ok()) return Fail(std::move(status));
  ReleaseReplies(slot);
  slot.Begin(++last_sequence_, request_bytes);
  for (std::size_t w = 0; w < request_bytes.size(); ++w) awaited_[w] += slot.pending[w];
  if (slot.num_pending == 0) return Status::Ok();
  Status status = SendRequests(slot, request_bytes);
  if (status.ok()) status = SendSecondParts(slot);
  return status.ok() ? status : Fail(std::move(status));
}

// One group: the receives of replies that nothing is posted for yet, and the first parts of all requests.
Status NcclTransport::SendRequests(Slot& slot, std::span<const std::size_t> request_bytes) {
  for (std::size_t w = 0; w < request_bytes.size(); ++w) {
    slot.sent_bytes[w] = 0;
    if (request_bytes[w] == 0) continue;
    MOE_ASSIGN_OR_RETURN(
        const bool goes,
        link_->Stage(w, {.kind = FrameKind::kRequest, .sequence = slot.sequence, .payload_bytes = request_bytes[w]},
                     slot.requests[w].span().first(kNcclPayloadOffset + request_bytes[w])));
    if (goes) slot.sent_bytes[w] = request_bytes[w];
  }
  NcclGroup& group = link_->group();
  group.Start();
  for (std::size_t w = 0; w < request_bytes.size(); ++w) {
    NcclReceiver& receiver = *link_->peer(w).receiver;
    if (slot.pending[w] != 0 && !receiver.posted()) receiver.Post(group, receiver.first_part_bytes());
  }
  for (std::size_t w = 0; w < request_bytes.size(); ++w) {
    if (slot.sent_bytes[w] > 0) link_->SendFirstPart(w);
  }
  MOE_RETURN_IF_ERROR(group.Finish(NcclLink::LaunchDeadline()));
  for (std::size_t w = 0; w < request_bytes.size(); ++w) MOE_RETURN_IF_ERROR(link_->peer(w).receiver->Confirm());
  return Status::Ok();
}

Status NcclTransport::SendSecondParts(const Slot& slot) {
  const auto has = [&](std::size_t bytes) { return link_->HasSecondPart(bytes); };
  if (std::ranges::none_of(slot.sent_bytes, has)) return Status::Ok();
  NcclGroup& group = link_->group();
  group.Start();
  for (std::size_t w = 0; w < slot.sent_bytes.size(); ++w) {
    if (has(slot.sent_bytes[w])) link_->SendSecondPart(w, slot.sent_bytes[w]);
  }
  return group.Finish(NcclLink::LaunchDeadline());
}

Result<bool> NcclTransport::Progress() {
  if (Status status = link_->UseThisThread(); !status.ok()) return Fail(std::move(status));
  bool moved = false;
  for (std::size_t w = 0; w < awaited_.size(); ++w) {
    if (awaited_[w] == 0) continue;
    const Result<bool> arrived = PollWorker(w);
    if (!arrived.ok()) return Fail(arrived.status());
    moved = *arrived || moved;
  }
  if (moved) return true;
  if (Status status = link_->Check(); !status.ok()) return Fail(std::move(status));
  return false;
}

Result<bool> NcclTransport::PollWorker(std::size_t worker) {
  NcclReceiver& receiver = *link_->peer(worker).receiver;
  MOE_ASSIGN_OR_RETURN(const std::optional<NcclArrival> arrival,
                       receiver.Poll(link_->group(), NcclLink::LaunchDeadline()));
  if (!arrival) return false;
  MOE_RETURN_IF_ERROR(TakeReply(worker, *arrival));
  if (awaited_[worker] > 0) {
    MOE_RETURN_IF_ERROR(receiver.PostAlone(link_->group(), NcclLink::LaunchDeadline()));
  }
  return true;
}

// Replies of one worker come in the order in which it gave them; their sequence says whose they are.
Status NcclTransport::TakeReply(std::size_t worker, const NcclArrival& arrival) {
  const std::uint64_t sequence = arrival.frame.size() < kFrameHeaderBytes ? 0 : ReadFrameHeader(arrival.frame).sequence;
  Slot* const slot = PendingSlot(worker, sequence);
  const Result<FrameVerdict> verdict =
      JudgeReply(arrival.frame, {.peer = rank(Id(worker)),
                                 .epoch = kNcclEpoch,
                                 .sequence = slot != nullptr ? slot->sequence : last_sequence_,
                                 .max_payload_bytes = limits().max_reply_bytes,
                                 .payload_checksum = limits().payload_checksums});
  if (!verdict.ok()) {
    if (IsCloseFrame(arrival.frame)) link_->PeerHasClosed(worker);
    return verdict.status();
  }
  if (*verdict == FrameVerdict::kDrop || slot == nullptr) {
    link_->peer(worker).receiver->Release(arrival.buffer);
    return Status::Ok();
  }
  slot->replies[worker] = arrival;
  slot->Replied(worker);
  slot->End(worker);
  --awaited_[worker];
  return Status::Ok();
}

Slot* NcclTransport::PendingSlot(std::size_t worker, std::uint64_t sequence) {
  const auto found = std::ranges::find_if(
      slots_, [&](const Slot& slot) { return slot.pending[worker] != 0 && slot.sequence == sequence; });
  return found == slots_.end() ? nullptr : &*found;
}

Result<bool> NcclExchange::Poll() {
  if (!transport_.failure().ok()) return transport_.failure();
  if (slot_.num_pending == 0) return true;
  MOE_ASSIGN_OR_RETURN(moved_, transport_.Progress());
  if (moved_) backoff_.Progress();
  return slot_.num_pending == 0;
}

Status NcclExchange::Wait(Deadline deadline) {
  while (true) {
    const bool late = Clock::now() >= deadline;  // before the look: this thread may have slept while replies came
    MOE_ASSIGN_OR_RETURN(const bool done, Poll());
    if (done) return Status::Ok();
    if (late) return transport_.Fail(NoReply(transport_, slot_.pending));
    if (!moved_) backoff_.Pause(deadline);  // else more may be there already
  }
}

Result<Slot> MakeSlot(DeviceApi& device, const NcclTransportOptions& options) {
  const auto num_workers = static_cast<std::size_t>(options.num_ranks - 1);
  Slot slot(num_workers);
  for (std::size_t w = 0; w < num_workers; ++w) {
    MOE_ASSIGN_OR_RETURN(PinnedBuffer request,
                         PinnedBuffer::Allocate(device, kNcclPayloadOffset + options.limits.max_request_bytes));
    slot.requests.push_back(std::move(request));
  }
  return slot;
}

}  // namespace

Result<std::unique_ptr<Transport>> MakeNcclTransport(NcclApi& nccl, DeviceApi& device,
                                                     const NcclTransportOptions& options) {
  MOE_CHECK(options.rank == kNcclRouter.value(), "the router's end is rank 0's");
  MOE_ASSIGN_OR_RETURN(std::unique_ptr<NcclLink> link, NcclLink::Connect(nccl, device, options));
  std::vector<Slot> slots;
  for (int i = 0; i < options.limits.max_exchanges; ++i) {
    MOE_ASSIGN_OR_RETURN(Slot slot, MakeSlot(device, options));
    slots.push_back(std::move(slot));
  }
  return std::unique_ptr<Transport>(std::make_unique<NcclTransport>(std::move(link), std::move(slots)));
}

}  // namespace moe
