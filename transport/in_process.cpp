#include "transport/in_process.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "core/aligned_buffer.h"
#include "transport/doorbell.h"
#include "transport/exchange_checks.h"
#include "transport/frame.h"
#include "transport/lanes.h"

namespace moe {
namespace {

// What one exchange slot of one router shares with one worker.
struct OwnLane {
  explicit OwnLane(const TransportLimits& limits)
      : request(kFrameHeaderBytes + limits.max_request_bytes), reply(kFrameHeaderBytes + limits.max_reply_bytes) {}

  LaneControl control;
  AlignedBuffer<std::byte> request;
  AlignedBuffer<std::byte> reply;
};

struct End {
  Doorbell bell;
  std::atomic<bool> open{true};
};

// Lives as long as any end does (hence shared): a reply may be written after its router is gone.
struct Fabric {
  explicit Fabric(const InProcessOptions& o)
      : options(o), routers(static_cast<std::size_t>(o.num_routers)), workers(static_cast<std::size_t>(o.num_workers)) {
    const std::size_t lanes = routers.size() * workers.size() * static_cast<std::size_t>(o.limits.max_exchanges);
    for (std::size_t i = 0; i < lanes; ++i) memory.push_back(std::make_unique<OwnLane>(o.limits));
  }

  Rank rank(std::size_t worker) const { return Rank(static_cast<int>(worker) + (options.embedded ? 0 : 1)); }
  // Both ends of one connection are made together and never reconnect, so there is one epoch.
  LaneTerms terms(std::size_t worker) const {
    return {.limits = options.limits, .tap = options.tap, .worker = WorkerId(static_cast<int>(worker))};
  }
  // By slot.
  std::vector<Lane> lanes(std::size_t router, std::size_t worker) {
    const auto slots = static_cast<std::size_t>(options.limits.max_exchanges);
    std::vector<Lane> lanes;
    for (std::size_t slot = 0; slot < slots; ++slot) {
      OwnLane& lane = *memory[(router * workers.size() + worker) * slots + slot];
      lanes.push_back({.control = &lane.control, .request = lane.request.span(), .reply = lane.reply.span()});
    }
    return lanes;
  }

  const InProcessOptions options;
  std::vector<End> routers;
  std::vector<End> workers;
  std::vector<std::unique_ptr<OwnLane>> memory;  // (num_routers, num_workers, max_exchanges)
};

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
        slot_used_(static_cast<std::size_t>(fabric_->options.limits.max_exchanges)) {
    for (std::size_t w = 0; w < fabric_->workers.size(); ++w)
      lanes_.emplace_back(fabric_->lanes(router, w), fabric_->terms(w), fabric_->rank(w), fabric_->workers[w].bell);
  }
  ~InProcessTransport() override {
    fabric_->routers[router_].open = false;
    for (End& worker : fabric_->workers) worker.bell.Ring();
  }

  std::string_view name() const override { return "inprocess"; }
  MemorySpace memory_space() const override { return MemorySpace::kHost; }
  int num_workers() const override { return fabric_->options.num_workers; }
  Rank rank(WorkerId worker) const override { return fabric_->rank(worker.index()); }
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
  std::vector<RouterLanes> lanes_;  // by worker
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

  std::span<std::byte> request(WorkerId worker) override { return transport_.lanes_[worker.index()].request(slot_); }

  Status Start(std::span<const std::size_t> request_bytes) override;
  Result<bool> Poll() override;
  Status Wait(Deadline deadline) override;

  std::span<const std::byte> reply(WorkerId worker) const override {
    if (took_part_[worker.index()] == 0) return {};
    return transport_.lanes_[worker.index()].reply(slot_);
  }
  TimePoint completed_at(WorkerId worker) const override {
    const std::size_t w = worker.index();
    return took_part_[w] == 0 || pending_[w] != 0 ? TimePoint() : transport_.lanes_[w].replied_at(slot_);
  }

 private:
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
    if (pending_[w] != 0) transport_.lanes_[w].Send(slot_, sequence_, request_bytes[w]);
  }
  return Status::Ok();
}

Status InProcessExchange::Check(std::size_t worker) {
  // Read before the lane: a worker that replied and then closed has replied. Pairs with the store in its destructor.
  const bool open = transport_.fabric_->workers[worker].open.load();
  MOE_ASSIGN_OR_RETURN(const bool replied, transport_.lanes_[worker].TakeReply(slot_, sequence_));
  if (replied) {
    pending_[worker] = 0;
    --num_pending_;
  } else if (!open) {
    return Unavailable("rank ", transport_.fabric_->rank(worker), " has closed its end of the transport");
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
    const bool late = Clock::now() >= deadline;  // before the look: this thread may have slept while replies came
    MOE_ASSIGN_OR_RETURN(const bool done, Poll());
    if (done) return Status::Ok();
    if (late) return transport_.Fail(NoReply(transport_, pending_));
    SpinThenPark(bell, seen, transport_.fabric_->options.spin, deadline);
  }
}

class InProcessEndpoint final : public WorkerEndpoint {
 public:
  InProcessEndpoint(std::shared_ptr<Fabric> shared, std::size_t worker)
      : fabric_(std::move(shared)),
        worker_(worker),
        num_slots_(static_cast<std::size_t>(fabric_->options.limits.max_exchanges)) {
    // In the embedded form and with several routers, all routers are rank 0 of their own job.
    for (std::size_t r = 0; r < fabric_->routers.size(); ++r)
      lanes_.emplace_back(fabric_->lanes(r, worker), fabric_->terms(worker), Rank(0), fabric_->routers[r].bell);
  }
  ~InProcessEndpoint() override {
    fabric_->workers[worker_].open = false;
    for (End& router : fabric_->routers) router.bell.Ring();
  }

  const TransportLimits& limits() const override { return fabric_->options.limits; }
  bool attached(int router) const override { return fabric_->routers[static_cast<std::size_t>(router)].open.load(); }
  Result<std::optional<IncomingRequest>> Receive(Deadline deadline) override;
  std::span<std::byte> reply_buffer(const IncomingRequest& request) override {
    return lanes_[request.ticket / num_slots_].reply_buffer(request.ticket % num_slots_);
  }
  Status Reply(const IncomingRequest& request, std::size_t bytes) override {
    return lanes_[request.ticket / num_slots_].Reply(request.ticket % num_slots_, bytes);
  }

 private:
  Result<std::optional<IncomingRequest>> Next();
  bool AnyRouterOpen() const;

  const std::shared_ptr<Fabric> fabric_;
  const std::size_t worker_;
  const std::size_t num_slots_;     // a ticket is (router, slot) as one number
  std::vector<WorkerLanes> lanes_;  // by router
  std::size_t next_router_ = 0;     // where the next search starts: routers take turns
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
    MOE_ASSIGN_OR_RETURN(const std::optional<WorkerLanes::Request> taken, lanes_[router].Take());
    if (!taken) continue;
    next_router_ = (router + 1) % num_routers;
    return std::optional<IncomingRequest>(
        {.router = static_cast<int>(router), .payload = taken->payload, .ticket = router * num_slots_ + taken->slot});
  }
  return std::optional<IncomingRequest>();
}

bool InProcessEndpoint::AnyRouterOpen() const {
  return std::any_of(fabric_->routers.begin(), fabric_->routers.end(), [](const End& end) { return end.open.load(); });
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
