#include "transport/frame_tap.h"

namespace moe {

bool CompleteFrame(FrameHeader header, std::span<std::byte> frame, bool payload_checksum, FrameTap* tap,
                   WorkerId worker) {
  const std::span<std::byte> payload = frame.subspan(kFrameHeaderBytes);
  Seal(header, payload, payload_checksum);
  if (tap != nullptr && !tap->Pass(header, payload, worker)) return false;
  WriteFrameHeader(header, frame);
  return true;
}

}  // namespace moe
