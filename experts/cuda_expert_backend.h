// Experts on a device: the weights lie there, rows come and go through pinned memory, one stream carries everything.
//
// A step takes one of two paths (docs/gpu.md has the argument):
//   fixed capacity, for few rows: a graph, captured once for each layer and capacity, copies room for that many rows,
//     runs kernels that read on the device which rows belong to whom, and copies back. A step is one launch.
//   exact size, for many rows: what is copied and launched has the step's own sizes. 16-bit weights go through cuBLAS's
//     grouped products, whose sizes the host knows from the offsets; integers through the kernels of the other path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/status.h"
#include "device/device_api.h"
#include "experts/device_layer.h"
#include "experts/expert_backend.h"

namespace moe {

struct CudaExpertOptions {
  enum class Path : std::uint8_t { kByRows, kFixedCapacity, kExactSize };

  int device = 0;
  std::size_t rows = 0;   // of one Run
  std::size_t slots = 1;  // of a layer
  std::size_t hidden = 0;
  std::size_t intermediate = 0;
  WeightType type = WeightType::kBf16;  // of all layers
  Path path = Path::kByRows;            // tests choose one of them
  UploadObserver observer;              // called while weights are uploaded
};

/// Up to so many rows a step has a fixed capacity.
inline constexpr std::size_t kFixedCapacityRows = 128;

/// `device` must outlive the backend. INVALID_ARGUMENT when no device computes in the type, RESOURCE_EXHAUSTED when its
/// memory is short.
Result<std::unique_ptr<ExpertBackend>> MakeCudaExpertBackend(DeviceApi& device, const CudaExpertOptions& options);

}  // namespace moe
