#include "transport/grpc/completions.h"

#include <grpc/byte_buffer_reader.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <array>
#include <optional>

namespace moe {
namespace {

gpr_timespec ToGrpc(Deadline deadline) {
  if (deadline == kNoDeadline) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  const TimePoint now = Clock::now();
  if (deadline <= now) return gpr_time_0(GPR_CLOCK_MONOTONIC);  // at once; later ones are after gRPC's clock began
  const std::chrono::nanoseconds left = deadline - now;
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(left.count(), GPR_TIMESPAN));
}

}  // namespace

Completion NextCompletion(grpc::CompletionQueue& queue, Deadline deadline) {
  Completion next;
  if (queue.AsyncNext(&next.tag, &next.ok, ToGrpc(deadline)) != grpc::CompletionQueue::GOT_EVENT) next.tag = nullptr;
  return next;
}

grpc::ByteBuffer MessageOf(const OutgoingFrame& frame) {
  const Envelope envelope(frame.bytes);
  frame.memory->Ref();
  const std::array<grpc::Slice, 2> slices = {
      grpc::Slice(envelope.bytes().data(), envelope.bytes().size()),  // so few bytes are held in the slice itself
      grpc::Slice(frame.memory->frame().data(), frame.bytes, &FrameMemory::Unref, frame.memory)};
  return {slices.data(), slices.size()};
}

struct ArrivedMessage::Reader {
  std::optional<grpc::ProtoBufferReader> pieces;
};

ArrivedMessage::ArrivedMessage() : reader_(std::make_unique<Reader>()) {}

ArrivedMessage::~ArrivedMessage() = default;

void ArrivedMessage::Open(grpc::ByteBuffer& message) {
  reader_->pieces.emplace(&message);
  Restart(message.Length());
}

std::span<const std::byte> ArrivedMessage::NextPiece() {
  const void* bytes = nullptr;
  int size = 0;
  while (reader_->pieces->Next(&bytes, &size)) {
    if (size > 0) return {static_cast<const std::byte*>(bytes), static_cast<std::size_t>(size)};
  }
  return {};
}

}  // namespace moe
