#include "transport/nccl/nccl_lane.h"

#include <thread>

namespace moe {

Result<std::unique_ptr<NcclLane>> NcclLane::Open(NcclTools tools, const Options& options) {
  std::unique_ptr<NcclLane> lane(new NcclLane(tools, options));
  MOE_ASSIGN_OR_RETURN(lane->stream_, MakeStream(tools.device));
  MOE_ASSIGN_OR_RETURN(lane->event_, MakeEvent(tools.device));
  MOE_ASSIGN_OR_RETURN(lane->memory_, DeviceBuffer::Allocate(tools.device, options.message_bytes));
  // The part of a small message behind its frame travels too; it shall not be what other work left in that memory.
  MOE_RETURN_IF_ERROR(tools.device.Fill(lane->memory_.span(), 0, lane->stream_.get()));
  MOE_ASSIGN_OR_RETURN(lane->communicator_, tools.nccl.InitRank(options.id, 2, options.rank));
  return lane;
}

NcclLane::~NcclLane() {
  Abort();
  if (stream_) (void)tools_.device.SynchronizeStream(stream_.get());
}

Status NcclLane::Fail(const Status& status) {
  if (status.ok()) return status;
  if (failure_.ok()) failure_ = Unavailable("rank ", peer(), ": ", status.message());
  return failure_;
}

Result<bool> NcclLane::Settled() {
  if (!failure_.ok()) return failure_;
  if (!communicator_) return Unavailable("rank ", peer(), ": the connection is closed");
  const Result<bool> settled = tools_.nccl.Settled(*communicator_);
  if (!settled.ok()) return Fail(settled.status());
  return settled;
}

Status NcclLane::AwaitSettled(Deadline deadline) {
  while (true) {
    MOE_ASSIGN_OR_RETURN(const bool settled, Settled());
    if (settled) return Status::Ok();
    if (Clock::now() >= deadline) return Fail(DeadlineExceeded("NCCL did not start a transfer in time"));
    std::this_thread::yield();
  }
}

Status NcclLane::Stage(std::span<const std::byte> message) {
  return Fail(tools_.device.CopyToDevice(message, memory_.span().subspan(0, message.size()), stream_.get()));
}

Status NcclLane::Send(std::size_t offset, std::size_t bytes) {
  if (!usable()) return Settled().status();
  return Fail(
      tools_.nccl.Send(memory_.span().subspan(offset, bytes), 1 - options_.rank, *communicator_, stream_.get()));
}

Status NcclLane::Receive(std::size_t offset, std::size_t bytes) {
  if (!usable()) return Settled().status();
  return Fail(
      tools_.nccl.Receive(memory_.span().subspan(offset, bytes), 1 - options_.rank, *communicator_, stream_.get()));
}

Status NcclLane::Fetch(std::size_t offset, std::span<std::byte> into) {
  return Fail(tools_.device.CopyToHost(memory_.span().subspan(offset, into.size()), into, stream_.get()));
}

Status NcclLane::Mark() { return Mark(event_.get()); }

Status NcclLane::Mark(DeviceEvent event) { return Fail(tools_.device.RecordEvent(event, stream_.get())); }

Result<bool> NcclLane::Passed() {
  if (!failure_.ok()) return failure_;
  const Result<bool> passed = tools_.device.QueryEvent(event_.get());
  if (!passed.ok()) return Fail(passed.status());
  return passed;
}

Status NcclLane::BeginClose() {
  if (!usable()) return Settled().status();
  return Fail(tools_.nccl.Finalize(*communicator_));
}

void NcclLane::EndClose() {
  if (communicator_) (void)tools_.nccl.Destroy(*communicator_);
  communicator_.reset();
}

void NcclLane::Abort() {
  if (communicator_) (void)tools_.nccl.Abort(*communicator_);
  communicator_.reset();
}

void NcclGroup::Start() {
  lanes_.clear();
  failure_ = nccl_.GroupStart();
  started_ = failure_.ok();
}

void NcclGroup::Add(NcclLane& lane, const Status& status) {
  MOE_CHECK(lanes_.size() < lanes_.capacity(), "more lanes than the group was made for");
  lanes_.push_back(&lane);
  failure_ = status;
}

void NcclGroup::Send(NcclLane& lane, std::size_t offset, std::size_t bytes) {
  if (failure_.ok()) Add(lane, lane.Send(offset, bytes));
}

void NcclGroup::Receive(NcclLane& lane, std::size_t offset, std::size_t bytes) {
  if (failure_.ok()) Add(lane, lane.Receive(offset, bytes));
}

// All lanes are awaited, whatever has failed: only a settled one may be used, or closed, after this.
Status NcclGroup::Finish(Deadline deadline) {
  if (!started_) return failure_;
  const Status ended = nccl_.GroupEnd();
  if (failure_.ok()) failure_ = ended;
  for (NcclLane* const lane : lanes_) {
    const Status settled = lane->AwaitSettled(deadline);
    if (failure_.ok()) failure_ = settled;
  }
  return failure_;
}

}  // namespace moe
