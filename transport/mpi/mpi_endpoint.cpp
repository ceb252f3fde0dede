#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "transport/exchange_checks.h"
#include "transport/frame.h"
#include "transport/mpi/mpi_link.h"
#include "transport/mpi/mpi_transport.h"

namespace moe {
namespace {

enum class SlotState : std::uint8_t { kPosted, kArrived, kTaken };

struct Slot {
  SlotState state = SlotState::kPosted;
  std::size_t arrived_bytes = 0;
  std::uint64_t last_sequence = 0;  // of the newest request accepted here
};

// What MPI may touch, with its messages: receives of requests by slot, then sends of replies by slot, then the receive
// of the router's farewell. Shared with the world when a transfer never ends.
struct Messages {
  Messages(int communicator, std::size_t num_slots, const TransportLimits& limits)
      : operations(communicator, 2 * num_slots + 1), close(kFrameHeaderBytes) {
    for (std::size_t s = 0; s < num_slots; ++s) {
      requests.emplace_back(kFrameHeaderBytes + limits.max_request_bytes);
      replies.emplace_back(kFrameHeaderBytes + limits.max_reply_bytes);
    }
  }
  MpiOperations operations;
  std::vector<FrameBuffer> requests;
  std::vector<FrameBuffer> replies;
  FrameBuffer close;
};

class MpiEndpoint final : public WorkerEndpoint {
 public:
  MpiEndpoint(const MpiLink& link, const TransportLimits& limits)
      : link_(link),
        limits_(limits),
        num_slots_(static_cast<std::size_t>(limits.max_exchanges)),
        backoff_(link.waiting(), link.own_bell()),
        messages_(std::make_shared<Messages>(link.communicator(), num_slots_, limits)),
        slots_(num_slots_) {}
  ~MpiEndpoint() override;

  // All receives, once.
  Status Open();

  const TransportLimits& limits() const override { return limits_; }
  Result<std::optional<IncomingRequest>> Receive(Deadline deadline) override;
  std::span<std::byte> reply_buffer(const IncomingRequest& request) override {
    return messages_->replies[request.ticket].span().subspan(kFrameHeaderBytes);
  }
  Status Reply(const IncomingRequest& request, std::size_t bytes) override;

 private:
  std::size_t send_place(std::size_t slot) const { return num_slots_ + slot; }
  std::size_t close_place() const { return 2 * num_slots_; }

  Status Post(std::size_t slot);
  Result<bool> Collect();
  std::optional<std::size_t> OldestArrival() const;
  Result<std::optional<IncomingRequest>> Take(std::size_t slot);
  Status SendReply(std::size_t slot, FrameKind kind, std::size_t bytes);

  const MpiLink link_;
  const TransportLimits limits_;
  const std::size_t num_slots_;
  Backoff backoff_;
  std::shared_ptr<Messages> messages_;
  std::vector<Slot> slots_;
  bool closed_ = false;  // by the router
  Status failure_;       // of MPI itself: the first one, for good
};

MpiEndpoint::~MpiEndpoint() {
  link_.world().CheckThread();
  const Deadline deadline = After(kFarewell);
  if (!closed_) {
    // Behind the last reply of each slot, so that the exchange that waits there, or the next one, hears of it.
    const auto closing = std::make_shared<ClosingMessages>(link_.communicator(), num_slots_);
    for (std::size_t s = 0; s < num_slots_; ++s) {
      // A router that cannot be told is gone already.
      (void)link_.Send(closing->operations, {.header = {.kind = FrameKind::kClose},
                                             .frame = closing->frame(s),
                                             .peer = kMpiRouter,
                                             .tag = ReplyTag(s),
                                             .worker = WorkerId(link_.world().rank().value() - 1),
                                             .place = s});
    }
    if (!closing->operations.Finish(deadline)) link_.world().KeepUntilFinalized(closing);
  }
  if (!messages_->operations.Finish(deadline)) link_.world().KeepUntilFinalized(messages_);
}

Status MpiEndpoint::Open() {
  for (std::size_t s = 0; s < num_slots_; ++s) MOE_RETURN_IF_ERROR(Post(s));
  return messages_->operations.Receive(close_place(), messages_->close.span(), kMpiRouter, kCloseTag);
}

Status MpiEndpoint::Post(std::size_t slot) {
  slots_[slot].state = SlotState::kPosted;
  return messages_->operations.Receive(slot, messages_->requests[slot].span(), kMpiRouter, RequestTag(slot));
}

Result<std::optional<IncomingRequest>> MpiEndpoint::Receive(Deadline deadline) {
  link_.world().CheckThread();
  while (true) {
    if (!failure_.ok()) return failure_;
    const Result<bool> moved = Collect();
    if (!moved.ok()) failure_ = moved.status();
    while (const std::optional<std::size_t> slot = OldestArrival()) {
      Result<std::optional<IncomingRequest>> taken = Take(*slot);
      if (!taken.ok() || taken->has_value()) return taken;
    }
    if (closed_) return Unavailable("rank ", kMpiRouter, " has closed its end of the transport");
    if (!failure_.ok()) return failure_;
    if (Clock::now() >= deadline) return std::optional<IncomingRequest>();
    if (moved.ok() && *moved) continue;  // more may be there already: sleep only after a look that finds nothing
    backoff_.Pause(deadline);
  }
}

// Whether anything has completed.
Result<bool> MpiEndpoint::Collect() {
  MOE_ASSIGN_OR_RETURN(const auto completions, messages_->operations.Test());
  for (const MpiOperations::Completion& completion : completions) {
    if (completion.place == close_place()) closed_ = true;
    if (completion.place >= num_slots_) continue;  // a reply has left
    slots_[completion.place].arrived_bytes = completion.bytes;
    slots_[completion.place].state = SlotState::kArrived;
    backoff_.Progress();
  }
  return !completions.empty();
}

// By sequence, which counts the router's Starts. A slot whose last reply MPI still reads is not ready.
std::optional<std::size_t> MpiEndpoint::OldestArrival() const {
  std::optional<std::size_t> oldest;
  std::uint64_t oldest_sequence = 0;
  for (std::size_t s = 0; s < num_slots_; ++s) {
    if (slots_[s].state != SlotState::kArrived || messages_->operations.active(send_place(s))) continue;
    // Of a frame too short to have one this is some older sequence: it is refused soon, whichever comes first.
    const std::uint64_t sequence = ReadFrameHeader(std::as_const(messages_->requests[s]).span()).sequence;
    if (oldest && sequence >= oldest_sequence) continue;
    oldest = s;
    oldest_sequence = sequence;
  }
  return oldest;
}

// Nothing for a stale frame, which ends here.
Result<std::optional<IncomingRequest>> MpiEndpoint::Take(std::size_t slot) {
  Slot& from = slots_[slot];
  from.state = SlotState::kTaken;
  const auto frame = std::as_const(messages_->requests[slot]).span().first(from.arrived_bytes);
  const Result<FrameVerdict> verdict = JudgeRequest(frame, {.peer = kMpiRouter,
                                                            .epoch = link_.epoch(),
                                                            .last_sequence = from.last_sequence,
                                                            .max_payload_bytes = limits_.max_request_bytes,
                                                            .payload_checksum = limits_.payload_checksums});
  if (!verdict.ok()) {
    const std::string& why = verdict.status().message();
    const std::size_t bytes = std::min(why.size(), limits_.max_reply_bytes);
    if (bytes > 0) std::memcpy(messages_->replies[slot].data() + kFrameHeaderBytes, why.data(), bytes);
    failure_ = SendReply(slot, FrameKind::kError, bytes);
    return verdict.status();
  }
  if (*verdict == FrameVerdict::kDrop) {
    MOE_RETURN_IF_ERROR(failure_ = Post(slot));
    return std::optional<IncomingRequest>();
  }
  from.last_sequence = ReadFrameHeader(frame).sequence;
  return std::optional<IncomingRequest>({.router = 0, .payload = frame.subspan(kFrameHeaderBytes), .ticket = slot});
}

Status MpiEndpoint::Reply(const IncomingRequest& request, std::size_t bytes) {
  link_.world().CheckThread();
  if (!failure_.ok()) return failure_;
  MOE_RETURN_IF_ERROR(CheckReplyBytes(limits_, bytes));
  MOE_CHECK(slots_[request.ticket].state == SlotState::kTaken, "a reply to a request that is not open");
  failure_ = SendReply(request.ticket, FrameKind::kReply, bytes);
  return failure_;
}

Status MpiEndpoint::SendReply(std::size_t slot, FrameKind kind, std::size_t bytes) {
  MOE_RETURN_IF_ERROR(Post(slot));  // before the reply, to which the router's answer is the next request
  return link_.Send(messages_->operations,
                    {.header = {.kind = kind, .sequence = slots_[slot].last_sequence, .payload_bytes = bytes},
                     .frame = messages_->replies[slot].span().first(kFrameHeaderBytes + bytes),
                     .peer = kMpiRouter,
                     .tag = ReplyTag(slot),
                     .worker = WorkerId(link_.world().rank().value() - 1),
                     .place = send_place(slot)});
}

}  // namespace

Result<std::unique_ptr<WorkerEndpoint>> MakeMpiEndpoint(MpiWorld& world, const MpiTransportOptions& options) {
  MOE_CHECK(world.rank() != kMpiRouter, "a worker's end is not rank 0's");
  MOE_ASSIGN_OR_RETURN(const MpiLink link, MpiLink::Connect(world, options));
  auto endpoint = std::make_unique<MpiEndpoint>(link, options.limits);
  MOE_RETURN_IF_ERROR(endpoint->Open());
  return std::unique_ptr<WorkerEndpoint>(std::move(endpoint));
}

}  // namespace moe
