#include "transport/nccl/nccl_link.h"

#include <algorithm>
#include <cstring>

#include "transport/exchange_checks.h"

namespace moe {
namespace {

constexpr std::size_t kIdBytes = sizeof(NcclUniqueId::bytes);
constexpr std::size_t kLanesPerWorker = 2;

// Polls `done` until it says so, fails, or the deadline passes: then false.
template <typename Done>
Result<bool> PollUntil(const BackoffOptions& waiting, Deadline deadline, Done done) {
  Backoff backoff(waiting);
  while (true) {
    MOE_ASSIGN_OR_RETURN(const bool is_done, done());
    if (is_done) return true;
    if (Clock::now() >= deadline) return false;
    backoff.Pause(deadline);
  }
}

// What rank 0 shared: '+' and an id for each lane, or '-' and what kept it from making them.
Result<std::string> IdsOf(const std::string& shared, std::size_t num_lanes) {
  if (shared.empty()) return Unavailable("rank 0 shared no NCCL ids");
  if (shared[0] != '+') return Unavailable("rank 0: ", shared.substr(1));
  if (shared.size() != 1 + num_lanes * kIdBytes) {
    return Internal("rank 0 shared ", shared.size(), " bytes of NCCL ids instead of ", 1 + num_lanes * kIdBytes);
  }
  return shared.substr(1);
}

}  // namespace

NcclLink::NcclLink(NcclApi& nccl, DeviceApi& device, const NcclTransportOptions& options)
    : nccl_(nccl),
      device_(device),
      options_(options),
      out_small_bytes_(std::min(options.small_bytes, max_payload(is_router()))),
      in_small_bytes_(std::min(options.small_bytes, max_payload(!is_router()))),
      group_(nccl, 2 * static_cast<std::size_t>(options.num_ranks)) {}

Result<std::unique_ptr<NcclLink>> NcclLink::Connect(NcclApi& nccl, DeviceApi& device,
                                                    const NcclTransportOptions& options) {
  if (options.num_ranks < 2) {
    return InvalidArgument("the nccl transport needs at least 2 ranks, this job has ", options.num_ranks);
  }
  std::unique_ptr<NcclLink> link(new NcclLink(nccl, device, options));
  // Before any failure of this rank's own: a rank that does not take part would leave the others waiting.
  MOE_ASSIGN_OR_RETURN(const std::string ids, link->ShareIds());
  MOE_RETURN_IF_ERROR(CheckLimits(options.limits));
  MOE_RETURN_IF_ERROR(link->UseThisThread());
  MOE_RETURN_IF_ERROR(link->OpenLanes(ids));
  const Deadline deadline = After(options.connect_timeout);
  MOE_RETURN_IF_ERROR(link->AwaitLanes(deadline));
  MOE_RETURN_IF_ERROR(link->ExchangeHellos(deadline));
  link->connected_ = true;
  return link;
}

Result<std::string> NcclLink::ShareIds() {
  std::string own;
  if (is_router()) {
    own = "+";
    for (std::size_t i = 0; i < kLanesPerWorker * static_cast<std::size_t>(options_.num_ranks - 1); ++i) {
      const Result<NcclUniqueId> id = nccl_.GetUniqueId();
      if (!id.ok()) {
        own = "-" + id.status().message();
        break;
      }
      own.append(reinterpret_cast<const char*>(id->bytes.data()), kIdBytes);
    }
  }
  const Result<std::string> shared = options_.share(own);
  if (!shared.ok()) return shared.status();
  return IdsOf(*shared, kLanesPerWorker * static_cast<std::size_t>(options_.num_ranks - 1));
}

Status NcclLink::OpenLanes(const std::string& ids) {
  const auto open = [&](std::size_t number, Rank peer, bool to_worker) {
    NcclUniqueId id;
    std::memcpy(id.bytes.data(), ids.data() + number * kIdBytes, kIdBytes);
    return NcclLane::Open({nccl_, device_}, {.id = id,
                                             .rank = is_router() ? 0 : 1,
                                             .peer = peer,
                                             .message_bytes = kNcclPayloadOffset + max_payload(to_worker)});
  };
  const int first = is_router() ? 1 : options_.rank;
  const int last = is_router() ? options_.num_ranks - 1 : options_.rank;
  for (int worker_rank = first; worker_rank <= last; ++worker_rank) {
    const Rank peer = is_router() ? Rank(worker_rank) : kNcclRouter;
    const std::size_t request_lane = kLanesPerWorker * static_cast<std::size_t>(worker_rank - 1);
    NcclPeer pair;
    MOE_ASSIGN_OR_RETURN(pair.out, open(request_lane + (is_router() ? 0 : 1), peer, is_router()));
    MOE_ASSIGN_OR_RETURN(pair.in, open(request_lane + (is_router() ? 1 : 0), peer, !is_router()));
    // As many as there can be open exchanges, and one for what comes after them: the peer's farewell.
    MOE_ASSIGN_OR_RETURN(
        pair.receiver,
        NcclReceiver::Make(*pair.in, device_,
                           {.small_bytes = in_small_bytes_,
                            .max_payload_bytes = max_payload(!is_router()),
                            .num_buffers = static_cast<std::size_t>(options_.limits.max_exchanges) + 1}));
    MOE_ASSIGN_OR_RETURN(pair.farewell, PinnedBuffer::Allocate(device_, kNcclPayloadOffset));
    peers_.push_back(std::move(pair));
  }
  closed_.resize(peers_.size());
  return Status::Ok();
}

Status NcclLink::AwaitLanes(Deadline deadline) {
  std::vector<bool> missing(peers_.size(), true);
  MOE_ASSIGN_OR_RETURN(const bool all, PollUntil(options_.waiting, deadline, [&]() -> Result<bool> {
                         for (std::size_t i = 0; i < peers_.size(); ++i) {
                           MOE_ASSIGN_OR_RETURN(const bool out, peers_[i].out->Settled());
                           MOE_ASSIGN_OR_RETURN(const bool in, peers_[i].in->Settled());
                           missing[i] = !out || !in;
                         }
                         return std::ranges::find(missing, true) == missing.end();
                       }));
  if (all) return Status::Ok();
  return DeadlineExceeded("no NCCL connection with ", Ranks(missing), " within ", options_.connect_timeout.count(),
                          " ms");
}

// Also makes NCCL set up the way between the two devices, which it does at the first transfer and which takes long.
Status NcclLink::ExchangeHellos(Deadline deadline) {
  const NcclHello own = Hello();
  for (NcclPeer& peer : peers_) {
    const std::span<std::byte> message = peer.farewell.span().first(kNcclHelloBytes);
    WriteNcclPreamble(sizeof(own), message);
    std::memcpy(message.data() + kNcclPreambleBytes, &own, sizeof(own));
    MOE_RETURN_IF_ERROR(peer.out->Stage(message));
  }
  group_.Start();
  for (NcclPeer& peer : peers_) {
    peer.receiver->Post(group_, kNcclHelloBytes);
    group_.Send(*peer.out, 0, kNcclHelloBytes);
  }
  MOE_RETURN_IF_ERROR(group_.Finish(deadline));
  for (NcclPeer& peer : peers_) {
    MOE_RETURN_IF_ERROR(peer.receiver->Confirm());
    MOE_RETURN_IF_ERROR(peer.out->Mark());
  }
  std::vector<bool> missing(peers_.size(), true);
  Status mismatch;
  MOE_ASSIGN_OR_RETURN(const bool all, PollUntil(options_.waiting, deadline, [&]() -> Result<bool> {
                         for (std::size_t i = 0; i < peers_.size(); ++i) {
                           if (peers_[i].receiver->posted()) {
                             MOE_ASSIGN_OR_RETURN(const std::optional<NcclArrival> arrival,
                                                  peers_[i].receiver->Poll(group_, deadline));
                             if (!arrival) continue;
                             NcclHello hello;
                             std::memcpy(&hello, arrival->frame.data(), std::min(arrival->frame.size(), sizeof(hello)));
                             peers_[i].receiver->Release(arrival->buffer);
                             if (mismatch.ok()) mismatch = CheckHello(hello, peers_[i].in->peer());
                           }
                           MOE_ASSIGN_OR_RETURN(const bool sent, peers_[i].out->Passed());
                           missing[i] = !sent;
                         }
                         return std::ranges::find(missing, true) == missing.end();
                       }));
  if (!all) {
    return DeadlineExceeded("no word over NCCL from ", Ranks(missing), " within ", options_.connect_timeout.count(),
                            " ms");
  }
  return mismatch;
}

NcclHello NcclLink::Hello() const {
  return {.max_request_bytes = options_.limits.max_request_bytes,
          .max_reply_bytes = options_.limits.max_reply_bytes,
          .small_bytes = options_.small_bytes,
          .max_exchanges = static_cast<std::uint32_t>(options_.limits.max_exchanges),
          .payload_checksums = options_.limits.payload_checksums ? 1U : 0U};
}

Status NcclLink::CheckHello(const NcclHello& hello, Rank peer) const {
  const NcclHello own = Hello();
  if (hello.magic != own.magic || hello.version != own.version) {
    return InvalidArgument("rank ", peer, " speaks version ", hello.version, " of the protocol over NCCL, this rank ",
                           own.version);
  }
  const auto list = [](const NcclHello& h) {
    return Cat(h.max_request_bytes, ", ", h.max_reply_bytes, ", ", h.small_bytes, ", ", h.max_exchanges, ", ",
               h.payload_checksums);
  };
  if (list(hello) == list(own)) return Status::Ok();
  return InvalidArgument(
      "the transport's limits (request bytes, reply bytes, bytes of a small message, exchanges, "
      "whether payloads carry checksums) are ",
      list(hello), " at rank ", peer, " and ", list(own), " at rank ", options_.rank);
}

std::string NcclLink::Ranks(const std::vector<bool>& missing) const {
  std::string names;
  int count = 0;
  for (std::size_t i = 0; i < missing.size(); ++i) {
    if (missing[i]) names += Cat(count++ == 0 ? "" : ", ", peers_[i].in->peer());
  }
  return Cat(count == 1 ? "rank " : "ranks ", names);
}

Status NcclLink::UseThisThread() {
  if (thread_ == std::this_thread::get_id()) return Status::Ok();
  MOE_RETURN_IF_ERROR(device_.SetDevice(options_.device));
  thread_ = std::this_thread::get_id();
  return Status::Ok();
}

Result<bool> NcclLink::Stage(std::size_t peer, FrameHeader header, std::span<std::byte> message) {
  header.epoch = kNcclEpoch;
  const std::span<std::byte> frame = message.subspan(kNcclPreambleBytes);
  const Rank worker = is_router() ? peers_[peer].out->peer() : Rank(options_.rank);
  if (!CompleteFrame(header, frame, options_.limits.payload_checksums, options_.tap, WorkerId(worker.value() - 1)))
    return false;
  WriteNcclPreamble(frame.size(), message);
  MOE_RETURN_IF_ERROR(peers_[peer].out->Stage(message));
  return true;
}

void NcclLink::SendFirstPart(std::size_t peer) {
  group_.Send(*peers_[peer].out, 0, kNcclPayloadOffset + out_small_bytes_);
}

void NcclLink::SendSecondPart(std::size_t peer, std::size_t payload_bytes) {
  group_.Send(*peers_[peer].out, kNcclPayloadOffset + out_small_bytes_, payload_bytes - out_small_bytes_);
}

Status NcclLink::Send(std::size_t peer, FrameHeader header, std::span<std::byte> message, DeviceEvent staged) {
  MOE_ASSIGN_OR_RETURN(const bool goes, Stage(peer, header, message));
  if (!goes) return Status::Ok();
  if (staged != DeviceEvent()) MOE_RETURN_IF_ERROR(peers_[peer].out->Mark(staged));
  group_.Start();
  SendFirstPart(peer);
  MOE_RETURN_IF_ERROR(group_.Finish(LaunchDeadline()));
  const std::size_t payload_bytes = message.size() - kNcclPayloadOffset;
  if (!HasSecondPart(payload_bytes)) return Status::Ok();
  group_.Start();
  SendSecondPart(peer, payload_bytes);
  return group_.Finish(LaunchDeadline());
}

Status NcclLink::Check() {
  for (NcclPeer& peer : peers_) {
    for (NcclLane* const lane : {peer.out.get(), peer.in.get()}) MOE_RETURN_IF_ERROR(lane->Settled().status());
  }
  return Status::Ok();
}

void NcclLink::AbortFailed() {
  for (NcclPeer& peer : peers_) {
    for (NcclLane* const lane : {peer.out.get(), peer.in.get()}) {
      if (!lane->usable()) lane->Abort();
    }
  }
}

NcclLink::~NcclLink() {
  if (!UseThisThread().ok() || !connected_) return;  // the lanes abort
  const Deadline deadline = After(kNcclFarewell);
  SayFarewell(deadline);
  CloseLanes(deadline);
}

// A close frame behind all that was sent, to every peer that has not closed by itself; then waits for them to go, as
// they do where the peer has a receive posted.
void NcclLink::SayFarewell(Deadline deadline) {
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    if (!peers_[i].out->usable()) continue;
    if (!closed_[i]) (void)Send(i, {.kind = FrameKind::kClose}, peers_[i].farewell.span());
    (void)peers_[i].out->Mark();
  }
  (void)PollUntil(options_.waiting, deadline, [&]() -> Result<bool> {
    for (NcclPeer& peer : peers_) {
      if (!peer.out->usable()) continue;
      const Result<bool> passed = peer.out->Passed();
      if (passed.ok() && !*passed) return false;
    }
    return true;
  });
}

// Lanes with nothing in flight end together with the peer's; the others, and those whose peer does not come, abort.
void NcclLink::CloseLanes(Deadline deadline) {
  std::vector<NcclLane*> closing;
  for (NcclPeer& peer : peers_) {
    const Result<bool> sent = peer.out->usable() ? peer.out->Passed() : Result<bool>(false);
    if (sent.ok() && *sent && peer.out->BeginClose().ok()) {
      closing.push_back(peer.out.get());
    } else {
      peer.out->Abort();
    }
    if (peer.in->usable() && !peer.receiver->posted() && peer.in->BeginClose().ok()) {
      closing.push_back(peer.in.get());
    } else {
      peer.in->Abort();
    }
  }
  (void)PollUntil(options_.waiting, deadline, [&]() -> Result<bool> {
    std::erase_if(closing, [](NcclLane* lane) {
      const Result<bool> settled = lane->Settled();
      if (settled.ok() && !*settled) return false;
      settled.ok() ? lane->EndClose() : lane->Abort();
      return true;
    });
    return closing.empty();
  });
  for (NcclLane* const lane : closing) lane->Abort();
}

}  // namespace moe
