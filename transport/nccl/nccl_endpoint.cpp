#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "transport/exchange_checks.h"
#include "transport/nccl/nccl_link.h"
#include "transport/nccl/nccl_transport.h"

namespace moe {
namespace {

// A request that is open: where it is, and where its reply is written. The ticket is its place.
struct OpenRequest {
  bool open = false;
  std::size_t buffer = 0;  // the receiver's
  std::uint64_t sequence = 0;
  PinnedBuffer reply;  // a message
  Event staged;        // the last reply has left that memory
};

class NcclEndpoint final : public WorkerEndpoint {
 public:
  NcclEndpoint(std::unique_ptr<NcclLink> link, std::vector<OpenRequest> requests)
      : requests_(std::move(requests)),
        link_(std::move(link)),
        receiver_(*link_->peer(0).receiver),
        backoff_(link_->options().waiting) {}

  Status Open() { return receiver_.PostAlone(link_->group(), NcclLink::LaunchDeadline()); }

  const TransportLimits& limits() const override { return link_->options().limits; }
  Result<std::optional<IncomingRequest>> Receive(Deadline deadline) override;
  std::span<std::byte> reply_buffer(const IncomingRequest& request) override {
    return requests_[request.ticket].reply.span().subspan(kNcclPayloadOffset);
  }
  Status Reply(const IncomingRequest& request, std::size_t bytes) override;

 private:
  Status Fail(Status reason);
  OpenRequest* FreePlace();
  Result<std::optional<IncomingRequest>> Take(const NcclArrival& arrival);
  Status Refuse(const NcclArrival& arrival, const std::string& why);
  Status SendReply(OpenRequest& request, FrameKind kind, std::size_t bytes);

  std::vector<OpenRequest> requests_;  // outlives the link, which waits until the device is done with their memory
  std::unique_ptr<NcclLink> link_;
  NcclReceiver& receiver_;
  Backoff backoff_;
  std::uint64_t last_sequence_ = 0;
  Status failure_;  // the first one, for good; UNAVAILABLE too once the router has closed
};

Status NcclEndpoint::Fail(Status reason) {
  link_->AbortFailed();
  failure_ = std::move(reason);
  return failure_;
}

Result<std::optional<IncomingRequest>> NcclEndpoint::Receive(Deadline deadline) {
  if (!failure_.ok()) return failure_;
  if (Status status = link_->UseThisThread(); !status.ok()) return Fail(std::move(status));
  while (true) {
    const Result<std::optional<NcclArrival>> arrival = receiver_.Poll(link_->group(), NcclLink::LaunchDeadline());
    if (!arrival.ok()) return Fail(Unavailable(arrival.status().message()));
    if (arrival->has_value()) {
      backoff_.Progress();
      Result<std::optional<IncomingRequest>> taken = Take(**arrival);
      if (!taken.ok() || taken->has_value()) return taken;
      continue;
    }
    if (Status status = link_->Check(); !status.ok()) return Fail(std::move(status));
    if (Clock::now() >= deadline) return std::optional<IncomingRequest>();
    backoff_.Pause(deadline);
  }
}

// Not open, and its last reply has left it. There is one whenever the router keeps to its limit: of as many exchanges
// as there are places one has ended, and the router has its reply.
OpenRequest* NcclEndpoint::FreePlace() {
  for (OpenRequest& request : requests_) {
    if (request.open) continue;
    const Result<bool> left = link_->device().QueryEvent(request.staged.get());
    if (left.ok() && *left) return &request;
  }
  return nullptr;
}

// Nothing for a stale frame, which ends here. Asks for the next message before this one is worked on.
Result<std::optional<IncomingRequest>> NcclEndpoint::Take(const NcclArrival& arrival) {
  if (IsCloseFrame(arrival.frame)) {
    link_->PeerHasClosed(0);
    return Fail(Unavailable("rank ", kNcclRouter, " has closed its end of the transport"));
  }
  if (Status status = receiver_.PostAlone(link_->group(), NcclLink::LaunchDeadline()); !status.ok()) {
    return Fail(std::move(status));
  }
  const Result<FrameVerdict> verdict = JudgeRequest(arrival.frame, {.peer = kNcclRouter,
                                                                    .epoch = kNcclEpoch,
                                                                    .last_sequence = last_sequence_,
                                                                    .max_payload_bytes = limits().max_request_bytes,
                                                                    .payload_checksum = limits().payload_checksums});
  if (!verdict.ok()) {
    if (Status status = Refuse(arrival, verdict.status().message()); !status.ok()) return Fail(std::move(status));
    return verdict.status();
  }
  if (*verdict == FrameVerdict::kDrop) {
    receiver_.Release(arrival.buffer);
    return std::optional<IncomingRequest>();
  }
  OpenRequest* const place = FreePlace();
  if (place == nullptr) {
    return Fail(Unavailable("rank ", kNcclRouter, " has more than ", limits().max_exchanges, " exchanges in flight"));
  }
  last_sequence_ = ReadFrameHeader(arrival.frame).sequence;
  place->open = true;
  place->buffer = arrival.buffer;
  place->sequence = last_sequence_;
  return std::optional<IncomingRequest>({.router = 0,
                                         .payload = arrival.frame.subspan(kFrameHeaderBytes),
                                         .ticket = static_cast<std::uint64_t>(place - requests_.data())});
}

// Tells the router what is wrong with a frame of it.
Status NcclEndpoint::Refuse(const NcclArrival& arrival, const std::string& why) {
  receiver_.Release(arrival.buffer);
  OpenRequest* const place = FreePlace();
  if (place == nullptr) return Unavailable(why);
  const std::size_t bytes = std::min(why.size(), limits().max_reply_bytes);
  std::memcpy(place->reply.span().data() + kNcclPayloadOffset, why.data(), bytes);
  return SendReply(*place, FrameKind::kError, bytes);
}

// A router that is gone does not miss its reply: the next Receive says that it is.
Status NcclEndpoint::Reply(const IncomingRequest& request, std::size_t bytes) {
  MOE_RETURN_IF_ERROR(CheckReplyBytes(limits(), bytes));
  OpenRequest& from = requests_[request.ticket];
  MOE_CHECK(from.open, "a reply to a request that is not open");
  receiver_.Release(from.buffer);
  from.open = false;
  if (!failure_.ok()) return Status::Ok();
  Status status = link_->UseThisThread();
  if (status.ok()) status = SendReply(from, FrameKind::kReply, bytes);
  if (!status.ok()) (void)Fail(std::move(status));
  return Status::Ok();
}

Status NcclEndpoint::SendReply(OpenRequest& request, FrameKind kind, std::size_t bytes) {
  return link_->Send(0, {.kind = kind, .sequence = request.sequence, .payload_bytes = bytes},
                     request.reply.span().first(kNcclPayloadOffset + bytes), request.staged.get());
}

}  // namespace

Result<std::unique_ptr<WorkerEndpoint>> MakeNcclEndpoint(NcclApi& nccl, DeviceApi& device,
                                                         const NcclTransportOptions& options) {
  MOE_CHECK(options.rank != kNcclRouter.value(), "a worker's end is not rank 0's");
  MOE_ASSIGN_OR_RETURN(std::unique_ptr<NcclLink> link, NcclLink::Connect(nccl, device, options));
  std::vector<OpenRequest> requests(static_cast<std::size_t>(options.limits.max_exchanges));
  for (OpenRequest& request : requests) {
    MOE_ASSIGN_OR_RETURN(request.reply,
                         PinnedBuffer::Allocate(device, kNcclPayloadOffset + options.limits.max_reply_bytes));
    MOE_ASSIGN_OR_RETURN(request.staged, MakeEvent(device));
  }
  auto endpoint = std::make_unique<NcclEndpoint>(std::move(link), std::move(requests));
  MOE_RETURN_IF_ERROR(endpoint->Open());
  return std::unique_ptr<WorkerEndpoint>(std::move(endpoint));
}

}  // namespace moe
