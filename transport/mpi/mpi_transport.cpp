#include "transport/mpi/mpi_transport.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "transport/exchange_checks.h"
#include "transport/exchange_progress.h"
#include "transport/frame.h"
#include "transport/mpi/mpi_link.h"

namespace moe {
namespace {

WorkerId Id(std::size_t worker) { return WorkerId(static_cast<int>(worker)); }

// One exchange's buffers and messages, by worker: receives in the first places, sends in the second half. Kept by the
// transport, so that they outlive an exchange that is given up.
struct Slot : ExchangeProgress {
  Slot(int communicator, std::size_t num_workers, const TransportLimits& limits)
      : ExchangeProgress(num_workers), operations(communicator, 2 * num_workers), reply_bytes(num_workers) {
    for (std::size_t w = 0; w < num_workers; ++w) {
      requests.emplace_back(kFrameHeaderBytes + limits.max_request_bytes);
      replies.emplace_back(kFrameHeaderBytes + limits.max_reply_bytes);
    }
  }

  std::vector<FrameBuffer> requests;
  std::vector<FrameBuffer> replies;
  MpiOperations operations;
  std::vector<std::size_t> reply_bytes;
};

class MpiTransport final : public Transport {
 public:
  MpiTransport(const MpiLink& connected, const TransportLimits& limits)
      : link(connected), limits_(limits), slots_(std::make_shared<std::vector<Slot>>()) {
    const auto num = static_cast<std::size_t>(num_workers());
    for (int s = 0; s < limits_.max_exchanges; ++s) slots_->emplace_back(link.communicator(), num, limits_);
  }
  ~MpiTransport() override;

  std::string_view name() const override { return "mpi"; }
  MemorySpace memory_space() const override { return MemorySpace::kHost; }
  int num_workers() const override { return link.world().size() - 1; }
  Rank rank(WorkerId worker) const override { return Rank(worker.value() + 1); }
  const TransportLimits& limits() const override { return limits_; }
  std::unique_ptr<Exchange> MakeExchange() override;

  // For its exchanges.
  const Status& Fail(Status reason) {
    if (failure.ok()) failure = std::move(reason);
    return failure;
  }
  const MpiLink link;
  std::uint64_t last_sequence = 0;
  Status failure;  // the first one, for good

 private:
  const TransportLimits limits_;
  std::shared_ptr<std::vector<Slot>> slots_;  // shared with the world when a transfer never ends
};

// Tells the workers, then lets transfers end as long as a live peer would need.
MpiTransport::~MpiTransport() {
  link.world().CheckThread();
  const auto closing = std::make_shared<ClosingMessages>(link.communicator(), static_cast<std::size_t>(num_workers()));
  for (int w = 0; w < num_workers(); ++w) {
    // A peer that cannot be told is gone already.
    (void)link.Send(closing->operations, {.header = {.kind = FrameKind::kClose, .sequence = last_sequence},
                                          .frame = closing->frame(WorkerId(w).index()),
                                          .peer = rank(WorkerId(w)),
                                          .tag = kCloseTag,
                                          .worker = WorkerId(w),
                                          .place = WorkerId(w).index()});
  }
  const Deadline deadline = After(kFarewell);
  if (!closing->operations.Finish(deadline)) link.world().KeepUntilFinalized(closing);
  bool finished = true;
  for (Slot& slot : *slots_) finished = slot.operations.Finish(deadline) && finished;
  if (!finished) link.world().KeepUntilFinalized(slots_);
}

class MpiExchange final : public Exchange {
 public:
  MpiExchange(MpiTransport& transport, Slot& slot, std::size_t number)
      : transport_(transport),
        slot_(slot),
        number_(number),
        backoff_(transport.link.waiting(), transport.link.own_bell()) {
    slot_.used = true;
  }
  ~MpiExchange() override {
    if (slot_.num_pending > 0) {
      transport_.Fail(GivenUp(transport_, slot_.pending));
      return;  // the slot stays used: transfers may still touch its buffers
    }
    slot_.used = false;
  }

  std::span<std::byte> request(WorkerId worker) override {
    return slot_.requests[worker.index()].span().subspan(kFrameHeaderBytes);
  }
  Status Start(std::span<const std::size_t> request_bytes) override;
  Result<bool> Poll() override;
  Status Wait(Deadline deadline) override;
  std::span<const std::byte> reply(WorkerId worker) const override {
    const std::size_t bytes = slot_.reply_bytes[worker.index()];
    return std::as_const(slot_.replies[worker.index()]).span().subspan(kFrameHeaderBytes, bytes);
  }
  TimePoint completed_at(WorkerId worker) const override { return slot_.completed_at[worker.index()]; }

 private:
  std::size_t num_workers() const { return slot_.requests.size(); }
  std::size_t send_place(std::size_t worker) const { return num_workers() + worker; }

  Status PostReceive(std::size_t worker);
  Status SendRequest(std::size_t worker, std::size_t bytes);
  Status TakeReply(std::size_t worker, std::size_t arrived_bytes);
  void EndIfComplete(std::size_t worker);

  MpiTransport& transport_;
  Slot& slot_;
  const std::size_t number_;
  Backoff backoff_;
  bool moved_ = false;  // the last Poll saw something complete
};

std::unique_ptr<Exchange> MpiTransport::MakeExchange() {
  link.world().CheckThread();
  const auto free = std::find_if(slots_->begin(), slots_->end(), [](const Slot& slot) { return !slot.used; });
  MOE_CHECK(free != slots_->end(), "more exchanges than max_exchanges");
  return std::make_unique<MpiExchange>(*this, *free, static_cast<std::size_t>(free - slots_->begin()));
}

Status MpiExchange::Start(std::span<const std::size_t> request_bytes) {
  transport_.link.world().CheckThread();
  if (!transport_.failure.ok()) return transport_.failure;
  MOE_CHECK(slot_.num_pending == 0, "Start before the exchange ended");
  MOE_RETURN_IF_ERROR(CheckRequestBytes(transport_, request_bytes));
  slot_.Begin(++transport_.last_sequence, request_bytes);
  std::ranges::fill(slot_.reply_bytes, std::size_t{0});
  for (std::size_t w = 0; w < num_workers(); ++w) {
    if (slot_.pending[w] == 0) continue;
    if (Status status = PostReceive(w); !status.ok()) return transport_.Fail(std::move(status));
  }
  for (std::size_t w = 0; w < num_workers(); ++w) {
    if (slot_.pending[w] == 0) continue;
    if (Status status = SendRequest(w, request_bytes[w]); !status.ok()) return transport_.Fail(std::move(status));
  }
  backoff_.Progress();
  return Status::Ok();
}

Status MpiExchange::PostReceive(std::size_t worker) {
  return slot_.operations.Receive(worker, slot_.replies[worker].span(), transport_.rank(Id(worker)), ReplyTag(number_));
}

Status MpiExchange::SendRequest(std::size_t worker, std::size_t bytes) {
  return transport_.link.Send(
      slot_.operations, {.header = {.kind = FrameKind::kRequest, .sequence = slot_.sequence, .payload_bytes = bytes},
                         .frame = slot_.requests[worker].span().first(kFrameHeaderBytes + bytes),
                         .peer = transport_.rank(Id(worker)),
                         .tag = RequestTag(number_),
                         .worker = Id(worker),
                         .place = send_place(worker)});
}

Result<bool> MpiExchange::Poll() {
  transport_.link.world().CheckThread();
  if (!transport_.failure.ok()) return transport_.failure;
  if (slot_.num_pending == 0) return true;
  const Result<std::span<const MpiOperations::Completion>> completions = slot_.operations.Test();
  if (!completions.ok()) return transport_.Fail(completions.status());
  for (const MpiOperations::Completion& completion : *completions) {
    const bool is_reply = completion.place < num_workers();
    const std::size_t worker = is_reply ? completion.place : completion.place - num_workers();
    if (is_reply) {
      Status status = TakeReply(worker, completion.bytes);
      if (!status.ok()) return transport_.Fail(std::move(status));
    }
    EndIfComplete(worker);
  }
  moved_ = !completions->empty();
  if (moved_) backoff_.Progress();
  return slot_.num_pending == 0;
}

Status MpiExchange::TakeReply(std::size_t worker, std::size_t arrived_bytes) {
  MOE_ASSIGN_OR_RETURN(const FrameVerdict verdict,
                       JudgeReply(std::as_const(slot_.replies[worker]).span().first(arrived_bytes),
                                  {.peer = transport_.rank(Id(worker)),
                                   .epoch = transport_.link.epoch(),
                                   .sequence = slot_.sequence,
                                   .max_payload_bytes = transport_.limits().max_reply_bytes,
                                   .payload_checksum = transport_.limits().payload_checksums}));
  if (verdict == FrameVerdict::kDrop) return PostReceive(worker);
  slot_.reply_bytes[worker] = arrived_bytes - kFrameHeaderBytes;
  slot_.Replied(worker);
  return Status::Ok();
}

// A worker's part ends with its reply and, usually before, with MPI's release of the request it answers.
void MpiExchange::EndIfComplete(std::size_t worker) {
  const bool ended = slot_.replied(worker) && !slot_.operations.active(send_place(worker));
  if (slot_.pending[worker] != 0 && ended) slot_.End(worker);
}

Status MpiExchange::Wait(Deadline deadline) {
  while (true) {
    const bool late = Clock::now() >= deadline;  // before the look: this thread may have slept while replies came
    MOE_ASSIGN_OR_RETURN(const bool done, Poll());
    if (done) return Status::Ok();
    if (late) return transport_.Fail(NoReply(transport_, slot_.pending));
    if (!moved_) backoff_.Pause(deadline);  // else more may be there already
  }
}

}  // namespace

Result<std::unique_ptr<Transport>> MakeMpiTransport(MpiWorld& world, const MpiTransportOptions& options) {
  MOE_CHECK(world.rank() == kMpiRouter, "the router's end is rank 0's");
  MOE_ASSIGN_OR_RETURN(const MpiLink link, MpiLink::Connect(world, options));
  return std::unique_ptr<Transport>(std::make_unique<MpiTransport>(link, options.limits));
}

}  // namespace moe
