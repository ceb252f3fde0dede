#include "transport/lanes.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "transport/exchange_checks.h"
#include "transport/frame.h"

namespace moe {
namespace {

// The frame that `memory` is to become; its length, or nothing when the tap takes it away.
std::optional<std::size_t> Complete(FrameHeader header, std::span<std::byte> memory, const LaneTerms& terms) {
  header.epoch = terms.epoch;
  const std::span<std::byte> frame = memory.first(kFrameHeaderBytes + header.payload_bytes);
  if (!CompleteFrame(header, frame, terms.limits.payload_checksums, terms.tap, terms.worker)) return std::nullopt;
  return frame.size();
}

// As long as the other end says it is, and not longer than the memory: a frame that says otherwise is refused then.
std::span<const std::byte> Arrived(std::span<std::byte> memory, const std::atomic<std::uint64_t>& frame_bytes) {
  const std::uint64_t bytes = frame_bytes.load(std::memory_order_relaxed);  // once; the state has paired
  return memory.first(std::min<std::uint64_t>(bytes, memory.size()));
}

}  // namespace

RouterLanes::RouterLanes(std::vector<Lane> lanes, const LaneTerms& terms, Rank peer, Doorbell& bell)
    : lanes_(std::move(lanes)), terms_(terms), peer_(peer), bell_(bell), replies_(lanes_.size()) {}

void RouterLanes::Send(std::size_t slot, std::uint64_t sequence, std::size_t bytes) {
  const Lane& to = lanes_[slot];
  const std::optional<std::size_t> frame_bytes =
      Complete({.kind = FrameKind::kRequest, .sequence = sequence, .payload_bytes = bytes}, to.request, terms_);
  if (!frame_bytes) return;
  to.control->request_frame_bytes.store(*frame_bytes, std::memory_order_relaxed);  // the state pairs
  to.control->state.store(LaneState::kRequested, std::memory_order_release);       // pairs with acquire in Oldest
  bell_.Ring();
}

Result<bool> RouterLanes::TakeReply(std::size_t slot, std::uint64_t sequence) {
  const Lane& from = lanes_[slot];
  if (from.control->state.load(std::memory_order_acquire) != LaneState::kReplied) return false;  // pairs with HandOver
  from.control->state.store(LaneState::kIdle, std::memory_order_relaxed);  // no pair: the lane is the router's again
  const std::span<const std::byte> frame = Arrived(from.reply, from.control->reply_frame_bytes);
  MOE_ASSIGN_OR_RETURN(const FrameVerdict verdict,
                       JudgeReply(frame, {.peer = peer_,
                                          .epoch = terms_.epoch,
                                          .sequence = sequence,
                                          .max_payload_bytes = terms_.limits.max_reply_bytes,
                                          .payload_checksum = terms_.limits.payload_checksums}));
  if (verdict == FrameVerdict::kDrop) return false;
  replies_[slot] = frame.subspan(kFrameHeaderBytes);
  return true;
}

WorkerLanes::WorkerLanes(std::vector<Lane> lanes, const LaneTerms& terms, Rank peer, Doorbell& bell)
    : lanes_(std::move(lanes)),
      terms_(terms),
      peer_(peer),
      bell_(bell),
      last_sequences_(lanes_.size()),
      taken_(lanes_.size()) {}

Result<std::optional<WorkerLanes::Request>> WorkerLanes::Take() {
  // The first look may pass a slot just before a request appears in it and then find a later one in the next slot. A
  // router publishes in the order of Start, so the second look, after having seen that one, sees all before it.
  while (Oldest()) {
    const std::optional<std::size_t> slot = Oldest();
    if (!slot) break;  // a router has taken its request back, which no router of ours does
    Result<std::optional<Request>> taken = TakeFrom(*slot);
    if (!taken.ok() || taken->has_value()) return taken;
  }
  return std::optional<Request>();
}

std::optional<std::size_t> WorkerLanes::Oldest() const {
  std::optional<std::size_t> oldest;
  std::uint64_t oldest_sequence = 0;
  for (std::size_t slot = 0; slot < lanes_.size(); ++slot) {
    const Lane& lane = lanes_[slot];
    if (taken_[slot] != 0) continue;
    if (lane.control->state.load(std::memory_order_acquire) != LaneState::kRequested) continue;  // pairs with Send
    const std::uint64_t sequence = ReadFrameHeader(lane.request).sequence;
    if (oldest && sequence >= oldest_sequence) continue;
    oldest = slot;
    oldest_sequence = sequence;
  }
  return oldest;
}

// Nothing for a stale frame, which ends here.
Result<std::optional<WorkerLanes::Request>> WorkerLanes::TakeFrom(std::size_t slot) {
  const Lane& from = lanes_[slot];
  from.control->state.store(LaneState::kTaken, std::memory_order_relaxed);  // no pair: the worker's until it replies
  const std::span<const std::byte> frame = Arrived(from.request, from.control->request_frame_bytes);
  const Result<FrameVerdict> verdict = JudgeRequest(frame, {.peer = peer_,
                                                            .epoch = terms_.epoch,
                                                            .last_sequence = last_sequences_[slot],
                                                            .max_payload_bytes = terms_.limits.max_request_bytes,
                                                            .payload_checksum = terms_.limits.payload_checksums});
  if (!verdict.ok()) {
    const std::string& why = verdict.status().message();
    const std::size_t bytes = std::min(why.size(), terms_.limits.max_reply_bytes);
    if (bytes > 0) std::memcpy(reply_buffer(slot).data(), why.data(), bytes);
    HandOver(slot, FrameKind::kError, bytes);
    return verdict.status();
  }
  if (*verdict == FrameVerdict::kDrop) return std::optional<Request>();
  last_sequences_[slot] = ReadFrameHeader(frame).sequence;
  taken_[slot] = 1;
  return std::optional<Request>({.slot = slot, .payload = frame.subspan(kFrameHeaderBytes)});
}

Status WorkerLanes::Reply(std::size_t slot, std::size_t bytes) {
  MOE_RETURN_IF_ERROR(CheckReplyBytes(terms_.limits, bytes));
  MOE_CHECK(taken_[slot] != 0, "a reply to a request that is not open");
  taken_[slot] = 0;
  HandOver(slot, FrameKind::kReply, bytes);
  return Status::Ok();
}

void WorkerLanes::HandOver(std::size_t slot, FrameKind kind, std::size_t bytes) {
  const Lane& to = lanes_[slot];
  const std::optional<std::size_t> frame_bytes =
      Complete({.kind = kind, .sequence = last_sequences_[slot], .payload_bytes = bytes}, to.reply, terms_);
  if (!frame_bytes) return;
  to.control->reply_frame_bytes.store(*frame_bytes, std::memory_order_relaxed);  // the state pairs
  to.control->replied_at.store(Clock::now(), std::memory_order_relaxed);
  to.control->state.store(LaneState::kReplied, std::memory_order_release);  // pairs with acquire in TakeReply
  bell_.Ring();
}

}  // namespace moe
