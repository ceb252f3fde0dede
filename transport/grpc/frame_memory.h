// A frame that gRPC may send without a copy: its memory lives as long as an end of ours or a message under way needs
// it.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <span>

#include "core/aligned_buffer.h"
#include "transport/frame.h"

namespace moe {

class FrameMemory {
 public:
  struct Release {
    void operator()(FrameMemory* memory) const { Unref(memory); }
  };
  using Owner = std::unique_ptr<FrameMemory, Release>;

  static Owner Make(std::size_t max_payload_bytes) { return Owner(new FrameMemory(max_payload_bytes)); }

  std::span<std::byte> frame() { return memory_.span(); }
  std::span<std::byte> payload() { return memory_.span().subspan(kFrameHeaderBytes); }

  /// One more user; each calls Unref when it is done, on whatever thread.
  void Ref() { users_.fetch_add(1, std::memory_order_relaxed); }  // no pair: the caller is a user itself
  /// `memory` is a FrameMemory: gRPC hands back what a slice was made with.
  static void Unref(void* memory) {
    auto* const frame = static_cast<FrameMemory*>(memory);
    // Pairs with itself: what every user did comes before the last one's deletion.
    if (frame->users_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete frame;
  }

 private:
  explicit FrameMemory(std::size_t max_payload_bytes) : memory_(kFrameHeaderBytes + max_payload_bytes) {}

  AlignedBuffer<std::byte> memory_;  // header, then payload
  std::atomic<int> users_{1};
};

}  // namespace moe
