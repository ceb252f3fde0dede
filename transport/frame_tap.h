// A place to watch and disturb frames between two ends. Used for fault injection; none is set in service.
#pragma once

#include <cstddef>
#include <span>

#include "core/ids.h"
#include "transport/frame.h"

namespace moe {

class FrameTap {
 public:
  virtual ~FrameTap() = default;

  /// Called with each sealed header and its payload, on their way to `worker` (a request) or from it (a reply), just
  /// before the frame is handed over. May edit both; false makes the whole frame vanish. Called from the threads of
  /// both ends.
  virtual bool Pass(FrameHeader& header, std::span<std::byte> payload, WorkerId worker) = 0;
};

/// Makes a frame of `frame`, room for the header and then the payload in place: seals the header, which knows all but
/// its checksums, and writes it. False when `tap`, which may be null, takes the frame away.
bool CompleteFrame(FrameHeader header, std::span<std::byte> frame, bool payload_checksum, FrameTap* tap,
                   WorkerId worker);

}  // namespace moe
