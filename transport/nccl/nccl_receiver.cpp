#include "transport/nccl/nccl_receiver.h"

namespace moe {

Result<std::unique_ptr<NcclReceiver>> NcclReceiver::Make(NcclLane& lane, DeviceApi& device, const Options& options) {
  std::unique_ptr<NcclReceiver> receiver(new NcclReceiver(lane, options));
  for (std::size_t i = 0; i < options.num_buffers; ++i) {
    MOE_ASSIGN_OR_RETURN(PinnedBuffer buffer,
                         PinnedBuffer::Allocate(device, kNcclPayloadOffset + options.max_payload_bytes));
    receiver->buffers_.push_back(std::move(buffer));
    receiver->free_.push_back(i);
  }
  return receiver;
}

void NcclReceiver::Post(NcclGroup& group, std::size_t bytes) {
  MOE_CHECK(state_ == State::kIdle && !free_.empty(), "a receive without a place for its message");
  buffer_ = free_.back();
  free_.pop_back();
  first_bytes_ = bytes;
  state_ = State::kAsked;
  group.Receive(lane_, 0, bytes);
}

Status NcclReceiver::Confirm() {
  if (state_ != State::kAsked) return Status::Ok();
  state_ = State::kFirstPart;
  MOE_RETURN_IF_ERROR(lane_.Fetch(0, buffers_[buffer_].span().first(first_bytes_)));
  return lane_.Mark();
}

Status NcclReceiver::PostAlone(NcclGroup& group, Deadline deadline) {
  group.Start();
  Post(group, first_part_bytes());
  MOE_RETURN_IF_ERROR(group.Finish(deadline));
  return Confirm();
}

Result<std::optional<NcclArrival>> NcclReceiver::Poll(NcclGroup& group, Deadline launch_deadline) {
  if (state_ == State::kIdle) return std::optional<NcclArrival>();
  MOE_ASSIGN_OR_RETURN(const bool passed, lane_.Passed());
  if (!passed) return std::optional<NcclArrival>();
  const std::span<const std::byte> message = buffers_[buffer_].span();
  if (state_ == State::kFirstPart) {
    MOE_ASSIGN_OR_RETURN(frame_bytes_,
                         ReadNcclPreamble(message, kFrameHeaderBytes + options_.max_payload_bytes, lane_.peer()));
    if (kNcclPreambleBytes + frame_bytes_ > first_bytes_) {
      MOE_RETURN_IF_ERROR(PostSecondPart(group, launch_deadline));
      return std::optional<NcclArrival>();
    }
  }
  state_ = State::kIdle;
  return std::optional<NcclArrival>({.frame = message.subspan(kNcclPreambleBytes, frame_bytes_), .buffer = buffer_});
}

Status NcclReceiver::PostSecondPart(NcclGroup& group, Deadline launch_deadline) {
  const std::size_t bytes = kNcclPreambleBytes + frame_bytes_ - first_bytes_;
  state_ = State::kSecondPart;
  group.Start();
  group.Receive(lane_, first_bytes_, bytes);
  MOE_RETURN_IF_ERROR(group.Finish(launch_deadline));
  MOE_RETURN_IF_ERROR(lane_.Fetch(first_bytes_, buffers_[buffer_].span().subspan(first_bytes_, bytes)));
  return lane_.Mark();
}

}  // namespace moe
