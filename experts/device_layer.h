// A layer's experts in the memory of a device.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "core/status.h"
#include "device/device_api.h"
#include "device/device_handles.h"
#include "experts/expert_shard.h"
#include "kernels/cuda/device_matrix.h"
#include "kernels/cuda/expert_kernels.h"

namespace moe {

/// How far the upload of one layer is.
struct UploadProgress {
  int layer = 0;  // absolute index
  std::size_t uploaded_bytes = 0;
  std::size_t bytes = 0;
};
using UploadObserver = std::function<void(const UploadProgress&)>;

/// Writes pieces of what lies behind one another on the device by way of two halves of pinned memory: while one is
/// copied, the other is filled.
class DeviceUpload {
 public:
  /// Large enough that starting a copy costs nothing beside it (4 MiB take 160 µs at 25 GB/s), small enough that pinned
  /// memory, which the machine cannot page out, is not missed.
  static constexpr std::size_t kHalfBytes = std::size_t{4} << 20;

  /// Pieces of up to `largest_piece` bytes.
  static Result<DeviceUpload> Make(DeviceApi& device, DeviceStream stream, std::size_t largest_piece);

  /// What follows goes to `target`, from its beginning on.
  void Begin(DeviceSpan target);
  /// The next `bytes` bytes, to be filled at once.
  Result<std::span<std::byte>> Next(std::size_t bytes);
  /// Starts the copy of what has been filled since.
  Status Flush();
  /// Waits for all copies.
  Status Finish();

 private:
  DeviceUpload(DeviceApi& device, DeviceStream stream) : device_(&device), stream_(stream) {}

  DeviceApi* device_;
  DeviceStream stream_;
  PinnedBuffer staging_;    // two halves
  Event copied_[2];         // the half's last copy
  std::size_t half_ = 0;    // being filled
  std::size_t filled_ = 0;  // of it
  DeviceSpan target_;
  std::size_t written_ = 0;  // of the target, or on their way
};

struct DeviceLayer {
  std::size_t slots = 0;
  std::size_t hidden = 0;
  std::size_t intermediate = 0;
  WeightType type = WeightType::kBf16;
  cuda::ExpertActivation activation = cuda::ExpertActivation::kSiluGated;
  float limit = 0;
  cuda::SlotMatrices gate;  // no weights where experts are not gated
  cuda::SlotMatrices up;
  cuda::SlotMatrices down;
  DeviceBuffer memory;        // all of it
  std::vector<Graph> graphs;  // of the fixed-capacity step, by capacity

  bool gated() const { return gate.weights != nullptr; }
};

/// Brings a layer with at least one slot to the device, into `to`. INVALID_ARGUMENT for weights or experts in which no
/// device computes. After a failure copies may still be under way: `to` and `upload` stay until the stream is done.
Status UploadLayer(DeviceApi& device, DeviceUpload& upload, const ExpertShard::Layer& layer,
                   const UploadObserver& observer, DeviceLayer& to);

}  // namespace moe
