#include "transport/in_process.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "core/aligned_buffer.h"
#include "transport/doorbell.h"
#include "transport/exchange_checks.h"
#include "transport/frame.h"

namespace moe {
namespace {

enum class LaneState : std::uint8_t { kIdle, kRequested, kTaken, kReplied };

// What one exchange slot of one router shares with one worker. `state` says who may touch the rest: the worker from
// kRequested on, the router from kReplied on. Each sets it with release after writing; the other reads it with acquire.
struct alignas(64) Lane {
  AlignedBuffer<std::byte> request;  // header, then max_request_bytes
  AlignedBuffer<std::byte> reply;    // header, then max_reply_bytes
  std::size_t request_frame_bytes = 0;
  std::size_t reply_frame_bytes = 0;
  TimePoint replied_at;
  std::uint64_t last_sequence = 0;  // the worker's: the newest request it has seen here
  std::atomic<LaneState> state{LaneState::kIdle};
};

struct End {
  Doorbell bell;
  std::atomic<bool> open{true};
};

// Lives as long as any end does (hence shared): a reply may be written after its router is gone.
struct Fabric {
  explicit Fabric(const InProcessOptions& o)
      : options(o),
        routers(static_cast<std::size_t>(o.num_routers)),
        workers(static_cast<std::size_t>(o.num_workers)),
        lanes(routers.size() * static_cast<std::size_t>(o.limits.max_exchanges) * workers.size()) {
    for (Lane& lane : lanes) {
      lane.request = AlignedBuffer<std::byte>(kFrameHeaderBytes + o.limits.max_request_bytes);
      lane.reply = AlignedBuffer<std::byte>(kFrameHeaderBytes + o.limits.max_reply_bytes);
    }
  }

  Lane& lane(std::size_t router, std::size_t slot, std::size_t worker) {
    return lanes[(router * static_cast<std::size_t>(options.limits.max_exchanges) + slot) * workers.size() + worker];
  }

  const InProcessOptions options;
  std::vector<End> routers;
  std::vector<End> workers;
  std::vector<Lane> lanes;  // (num_routers, max_exchanges, num_workers)
};

// Both ends of one connection are made together and never reconnect, so there is one epoch.
constexpr std::uint64_t kEpoch = 1;

WorkerId Id(std::size_t worker) { return WorkerId(static_cast<int>(worker)); }

void SpinThenPark(Doorbell& bell, std::uint32_t seen, std::chrono::microseconds spin, Deadline deadline) {
  if (spin.count() > 0) {
    const TimePoint until = std::min(deadline, Clock::now() + spin);
    while (bell.count() == seen && Clock::now() < until) SpinHint();
  }
  bell.WaitPast(seen, deadline);
}

class InProcessTransport final : public Transport {
 public:
  InProcessTransport(std::shared_ptr<Fabric> shared, std::size_t router)
      : fabric_(std::move(shared)),
        router_(router),
        slot_used_(static_cast<std::size_t>(fabric_->options.limits.max_exchanges)) {}
  ~InProcessTransport() override {
    fabric_->routers[router_].open = false;
    for (End& worker : fabric_->workers) worker.bell.Ring();
  }

  std::string_view name() const override { return "inprocess"; }
  MemorySpace memory_space() const override { return MemorySpace::kHost; }
  int num_workers() const override { return fabric_->options.num_workers; }
  Rank rank(WorkerId worker) const override { return Rank(worker.value() + (fabric_->options.embedded ? 0 : 1)); }
  const TransportLimits& limits() const override { return fabric_->options.limits; }
  std::unique_ptr<Exchange> MakeExchange() override;

 private:
  friend class InProcessExchange;

  const Status& Fail(Status failure) {
    if (failure_.ok()) failure_ = std::move(failure);
    return failure_;
  }

  const std::shared_ptr<Fabric> fabric_;
  const std::size_t router_;
  std::vector<std::uint8_t> slot_used_;
  std::uint64_t last_sequence_ = 0;
  Status failure_;  // the first one, for good
};

class InProcessExchange final : public Exchange {
 public:
  InProcessExchange(InProcessTransport& transport, std::size_t slot)
      : transport_(transport),
        slot_(slot),
        pending_(static_cast<std::size_t>(transport.num_workers())),
        took_part_(pending_.size()) {}
  ~InProcessExchange() override {
    if (num_pending_ > 0) {
      transport_.Fail(GivenUp(transport_, pending_));
      return;  // the slot stays taken: a worker may still read and write its buffers
    }
    transport_.slot_used_[slot_] = 0;
  }

  std::span<std::byte> request(WorkerId worker) override {
    return lane(worker.index()).request.span().subspan(kFrameHeaderBytes);
  }

  Status Start(std::span<const std::size_t> request_bytes) override;
  Result<bool> Poll() override;
  Status Wait(Deadline deadline) override;

  std::span<const std::byte> reply(WorkerId worker) const override {
    if (took_part_[worker.index()] == 0) return {};
    const Lane& from = lane(worker.index());
    return from.reply.span().subspan(kFrameHeaderBytes, from.reply_frame_bytes - kFrameHeaderBytes);
  }
  TimePoint completed_at(WorkerId worker) const override {
    const std::size_t w = worker.index();
    return took_part_[w] == 0 || pending_[w] != 0 ? TimePoint() : lane(w).replied_at;
  }

 private:
  Lane& lane(std::size_t worker) const { return transport_.fabric_->lane(transport_.router_, slot_, worker); }
  void Send(std::size_t worker, std::size_t bytes);
  Status Check(std::size_t worker);

  InProcessTransport& transport_;
  const std::size_t slot_;
  std::uint64_t sequence_ = 0;
  std::vector<std::uint8_t> pending_;    // per worker: its reply is awaited
  std::vector<std::uint8_t> took_part_;  // per worker, in the exchange that was started last
  std::size_t num_pending_ = 0;
};

std::unique_ptr<Exchange> InProcessTransport::MakeExchange() {
  const auto free = std::find(slot_used_.begin(), slot_used_.end(), 0);
  MOE_CHECK(free != slot_used_.end(), "more exchanges than max_exchanges");
  *free = 1;
  return std::make_unique<InProcessExchange>(*this, static_cast<std::size_t>(free - slot_used_.begin()));
}

Status InProcessExchange::Start(std::span<const std::size_t> request_bytes) {
  if (!transport_.failure_.ok()) return transport_.failure_;
  MOE_CHECK(num_pending_ == 0, "Start before the exchange ended");
  MOE_RETURN_IF_ERROR(CheckRequestBytes(transport_, request_bytes));
  sequence_ = ++transport_.last_sequence_;
  for (std::size_t w = 0; w < request_bytes.size(); ++w) {
    took_part_[w] = pending_[w] = request_bytes[w] > 0 ? 1 : 0;
    num_pending_ += pending_[w];
    if (pending_[w] != 0) Send(w, request_bytes[w]);
  }
  return Status::Ok();
}

void InProcessExchange::Send(std::size_t worker, std::size_t bytes) {
  Fabric& fabric = *transport_.fabric_;
  Lane& to = lane(worker);
  FrameHeader header{.kind = FrameKind::kRequest, .epoch = kEpoch, .sequence = sequence_, .payload_bytes = bytes};
  const std::span<std::byte> payload = to.request.span().subspan(kFrameHeaderBytes, bytes);
  Seal(header, payload, fabric.options.limits.payload_checksums);
  FrameTap* const tap = fabric.options.tap;
  if (tap != nullptr && !tap->Pass(header, payload, Id(worker))) return;
  WriteFrameHeader(header, to.request.span());
  to.request_frame_bytes = kFrameHeaderBytes + bytes;
  to.state.store(LaneState::kRequested, std::memory_order_release);  // pairs with acquire in OldestRequest
  fabric.workers[worker].bell.Ring();
}

Status InProcessExchange::Check(std::size_t worker) {
  Lane& from = lane(worker);
  // Read before the state: a worker that replied and then closed has replied. Pairs with the store in its destructor.
  const bool open = transport_.fabric_->workers[worker].open.load();
  if (from.state.load(std::memory_order_acquire) == LaneState::kReplied) {  // pairs with release in Reply
    from.state.store(LaneState::kIdle, std::memory_order_relaxed);          // no pair: the lane is the router's again
    Result<FrameVerdict> verdict = JudgeReply(std::as_const(from.reply).span().first(from.reply_frame_bytes),
                                              {.peer = transport_.rank(Id(worker)),
                                               .epoch = kEpoch,
                                               .sequence = sequence_,
                                               .max_payload_bytes = transport_.limits().max_reply_bytes,
                                               .payload_checksum = transport_.limits().payload_checksums});
    if (!verdict.ok()) return verdict.status();
    if (*verdict == FrameVerdict::kDrop) return Status::Ok();
    pending_[worker] = 0;
    --num_pending_;
  } else if (!open) {
    return Unavailable("rank ", transport_.rank(Id(worker)), " has closed its end of the transport");
  }
  return Status::Ok();
}

Result<bool> InProcessExchange::Poll() {
  if (!transport_.failure_.ok()) return transport_.failure_;
  for (std::size_t w = 0; w < pending_.size() && num_pending_ > 0; ++w) {
    if (pending_[w] == 0) continue;
    if (Status status = Check(w); !status.ok()) return transport_.Fail(std::move(status));
  }
  return num_pending_ == 0;
}

Status InProcessExchange::Wait(Deadline deadline) {
  Doorbell& bell = transport_.fabric_->routers[transport_.router_].bell;
  while (true) {
    const std::uint32_t seen = bell.count();
    MOE_ASSIGN_OR_RETURN(const bool done, Poll());
    if (done) return Status::Ok();
    if (Clock::now() >= deadline) return transport_.Fail(NoReply(transport_, pending_));
    SpinThenPark(bell, seen, transport_.fabric_->options.spin, deadline);
  }
}

class InProcessEndpoint final : public WorkerEndpoint {
 public:
  InProcessEndpoint(std::shared_ptr<Fabric> shared, std::size_t worker)
      : fabric_(std::move(shared)),
        worker_(worker),
        num_slots_(static_cast<std::size_t>(fabric_->options.limits.max_exchanges)) {}
  ~InProcessEndpoint() override {
    fabric_->workers[worker_].open = false;
    for (End& router : fabric_->routers) router.bell.Ring();
  }

  const TransportLimits& limits() const override { return fabric_->options.limits; }
  bool attached(int router) const override { return fabric_->routers[static_cast<std::size_t>(router)].open.load(); }
  Result<std::optional<IncomingRequest>> Receive(Deadline deadline) override;
  std::span<std::byte> reply_buffer(const IncomingRequest& request) override {
    return lane(request.ticket).reply.span().subspan(kFrameHeaderBytes);
  }
  Status Reply(const IncomingRequest& request, std::size_t bytes) override;

 private:
  // A ticket is (router, slot) as one number.
  Lane& lane(std::uint64_t ticket) { return fabric_->lane(ticket / num_slots_, ticket % num_slots_, worker_); }
  Result<std::optional<IncomingRequest>> Next();
  std::optional<std::uint64_t> OldestRequest(std::size_t router);
  Result<std::optional<IncomingRequest>> Take(std::uint64_t ticket);
  void HandOver(std::uint64_t ticket, FrameKind kind, std::size_t bytes);
  bool AnyRouterOpen() const;

  const std::shared_ptr<Fabric> fabric_;
  const std::size_t worker_;
  const std::size_t num_slots_;
  std::size_t next_router_ = 0;  // where the next search starts: routers take turns
};

Result<std::optional<IncomingRequest>> InProcessEndpoint::Receive(Deadline deadline) {
  Doorbell& bell = fabric_->workers[worker_].bell;
  while (true) {
    const std::uint32_t seen = bell.count();
    const bool any_open = AnyRouterOpen();  // before the search, so that the last router's last request is still found
    Result<std::optional<IncomingRequest>> found = Next();
    if (!found.ok() || found->has_value()) return found;
    if (!any_open) return Unavailable("every router has closed its end of the transport");
    if (Clock::now() >= deadline) return found;
    SpinThenPark(bell, seen, fabric_->options.spin, deadline);
  }
}

// The oldest request of the router whose turn it is, or of the next one that has any.
Result<std::optional<IncomingRequest>> InProcessEndpoint::Next() {
  const std::size_t num_routers = fabric_->routers.size();
  for (std::size_t i = 0; i < num_routers; ++i) {
    const std::size_t router = (next_router_ + i) % num_routers;
    // The first look may pass a slot just before a request appears in it and then find a later one in the next slot. A
    // router publishes in the order of Start, so the second look, after having seen that one, sees all before it.
    while (OldestRequest(router)) {
      const std::optional<std::uint64_t> ticket = OldestRequest(router);
      Result<std::optional<IncomingRequest>> taken = Take(*ticket);
      if (taken.ok() && !taken->has_value()) continue;
      next_router_ = (router + 1) % num_routers;
      return taken;
    }
  }
  return std::optional<IncomingRequest>();
}

bool InProcessEndpoint::AnyRouterOpen() const {
  return std::any_of(fabric_->routers.begin(), fabric_->routers.end(), [](const End& end) { return end.open.load(); });
}

std::optional<std::uint64_t> InProcessEndpoint::OldestRequest(std::size_t router) {
  std::optional<std::uint64_t> oldest;
  std::uint64_t oldest_sequence = 0;
  for (std::size_t slot = 0; slot < num_slots_; ++slot) {
    Lane& candidate = fabric_->lane(router, slot, worker_);
    if (candidate.state.load(std::memory_order_acquire) != LaneState::kRequested)
      continue;  // pairs with Send's release
    const std::uint64_t sequence = ReadFrameHeader(std::as_const(candidate.request).span()).sequence;
    if (oldest && sequence >= oldest_sequence) continue;
    oldest = router * num_slots_ + slot;
    oldest_sequence = sequence;
  }
  return oldest;
}

// Nothing for a stale frame, which ends here.
Result<std::optional<IncomingRequest>> InProcessEndpoint::Take(std::uint64_t ticket) {
  Lane& from = lane(ticket);
  from.state.store(LaneState::kTaken, std::memory_order_relaxed);  // no pair: the lane is the worker's until it replies
  const std::span<const std::byte> frame = std::as_const(from.request).span().first(from.request_frame_bytes);
  // In the embedded form and with several routers, all routers are rank 0 of their own job.
  const Result<FrameVerdict> verdict = JudgeRequest(frame, {.peer = Rank(0),
                                                            .epoch = kEpoch,
                                                            .last_sequence = from.last_sequence,
                                                            .max_payload_bytes = limits().max_request_bytes,
                                                            .payload_checksum = limits().payload_checksums});
  if (!verdict.ok()) {
    const std::string& why = verdict.status().message();
    const std::size_t bytes = std::min(why.size(), limits().max_reply_bytes);
    if (bytes > 0) std::memcpy(from.reply.data() + kFrameHeaderBytes, why.data(), bytes);
    HandOver(ticket, FrameKind::kError, bytes);
    return verdict.status();
  }
  if (*verdict == FrameVerdict::kDrop) return std::optional<IncomingRequest>();
  from.last_sequence = ReadFrameHeader(frame).sequence;
  return std::optional<IncomingRequest>(
      {.router = static_cast<int>(ticket / num_slots_), .payload = frame.subspan(kFrameHeaderBytes), .ticket = ticket});
}

Status InProcessEndpoint::Reply(const IncomingRequest& request, std::size_t bytes) {
  MOE_RETURN_IF_ERROR(CheckReplyBytes(limits(), bytes));
  HandOver(request.ticket, FrameKind::kReply, bytes);
  return Status::Ok();
}

void InProcessEndpoint::HandOver(std::uint64_t ticket, FrameKind kind, std::size_t bytes) {
  Lane& to = lane(ticket);
  MOE_CHECK(to.state.load(std::memory_order_relaxed) == LaneState::kTaken,  // no pair: the worker's own store
            "a reply to a request that is not open");
  FrameHeader header{.kind = kind, .epoch = kEpoch, .sequence = to.last_sequence, .payload_bytes = bytes};
  const std::span<std::byte> payload = to.reply.span().subspan(kFrameHeaderBytes, bytes);
  Seal(header, payload, limits().payload_checksums);
  FrameTap* const tap = fabric_->options.tap;
  if (tap != nullptr && !tap->Pass(header, payload, Id(worker_))) return;
  WriteFrameHeader(header, to.reply.span());
  to.reply_frame_bytes = kFrameHeaderBytes + bytes;
  to.replied_at = Clock::now();
  to.state.store(LaneState::kReplied, std::memory_order_release);  // pairs with acquire in Check
  fabric_->routers[ticket / num_slots_].bell.Ring();
}

}  // namespace

Result<InProcessEnds> MakeInProcess(const InProcessOptions& options) {
  MOE_RETURN_IF_ERROR(CheckLimits(options.limits));
  if (options.num_routers < 1) return InvalidArgument("num_routers is ", options.num_routers, " (at least 1)");
  if (options.num_workers < 1) return InvalidArgument("num_workers is ", options.num_workers, " (at least 1)");
  const auto fabric = std::make_shared<Fabric>(options);
  InProcessEnds ends;
  for (std::size_t r = 0; r < fabric->routers.size(); ++r) {
    ends.routers.push_back(std::make_unique<InProcessTransport>(fabric, r));
  }
  for (std::size_t w = 0; w < fabric->workers.size(); ++w) {
    ends.workers.push_back(std::make_unique<InProcessEndpoint>(fabric, w));
  }
  return ends;
}

}  // namespace moe
