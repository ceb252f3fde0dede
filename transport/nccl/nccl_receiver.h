// The receiving end of a lane: one message at a time, into pinned buffers that are handed out and given back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/status.h"
#include "device/device_handles.h"
#include "transport/nccl/nccl_lane.h"
#include "transport/nccl/nccl_message.h"

namespace moe {

/// A whole frame; its buffer is the receiver's again after Release.
struct NcclArrival {
  std::span<const std::byte> frame;  // 64-byte aligned
  std::size_t buffer = 0;
};

class NcclReceiver {
 public:
  struct Options {
    std::size_t small_bytes = 0;  // payload that fits the first part of a message
    std::size_t max_payload_bytes = 0;
    std::size_t num_buffers = 0;
  };

  /// `lane` outlives it.
  static Result<std::unique_ptr<NcclReceiver>> Make(NcclLane& lane, DeviceApi& device, const Options& options);

  NcclLane& lane() const { return lane_; }
  /// Whether a message is awaited.
  bool posted() const { return state_ != State::kIdle; }

  /// In an open group: asks for the next message, whose first part is `bytes` long. After the group comes Confirm,
  /// which does nothing where nothing has just been asked for.
  void Post(NcclGroup& group, std::size_t bytes);
  Status Confirm();
  /// A group with that alone.
  Status PostAlone(NcclGroup& group, Deadline deadline);

  std::size_t first_part_bytes() const { return kNcclPayloadOffset + options_.small_bytes; }

  /// The message, once it is there; asks for its second part itself. After that nothing is awaited.
  Result<std::optional<NcclArrival>> Poll(NcclGroup& group, Deadline launch_deadline);
  void Release(std::size_t buffer) { free_.push_back(buffer); }

 private:
  enum class State : std::uint8_t { kIdle, kAsked, kFirstPart, kSecondPart };

  NcclReceiver(NcclLane& lane, const Options& options) : lane_(lane), options_(options) {}
  Status PostSecondPart(NcclGroup& group, Deadline launch_deadline);

  NcclLane& lane_;
  const Options options_;
  std::vector<PinnedBuffer> buffers_;  // a message each
  std::vector<std::size_t> free_;
  State state_ = State::kIdle;
  std::size_t buffer_ = 0;       // that the awaited message goes to
  std::size_t first_bytes_ = 0;  // of that message
  std::size_t frame_bytes_ = 0;  // once its first part is there
};

}  // namespace moe
