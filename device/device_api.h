// The calls of a GPU's run time that this project makes, and no others: a narrow table, so that a recording fake can
// stand in for the device in tests. Headers of CUDA stay in cuda_api.cpp.
//
// Every call may be made from any thread, after that thread has called SetDevice. Calls that take a stream enqueue work
// there and return at once; the work of one stream runs in order, that of two streams in any order unless an event says
// otherwise. Memory that enqueued work uses must stay alive until the work is done. Errors carry the run time's own
// name and text: RESOURCE_EXHAUSTED when memory is short, UNAVAILABLE when there is no device, else INTERNAL.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "core/check.h"
#include "core/status.h"

namespace moe {

/// Work in order, on the device that was set when it was made. In the CUDA build, a cudaStream_t.
struct DeviceStream {
  void* handle = nullptr;
  friend bool operator==(DeviceStream, DeviceStream) = default;
};
/// A point in a stream. In the CUDA build, a cudaEvent_t.
struct DeviceEvent {
  void* handle = nullptr;
  friend bool operator==(DeviceEvent, DeviceEvent) = default;
};
/// Captured work, ready to be launched. In the CUDA build, a cudaGraphExec_t.
struct DeviceGraph {
  void* handle = nullptr;
  friend bool operator==(DeviceGraph, DeviceGraph) = default;
};

/// Device memory. Not a std::span: the host must not touch what it points at.
struct DeviceSpan {
  void* address = nullptr;
  std::size_t bytes = 0;

  bool empty() const { return bytes == 0; }
  DeviceSpan subspan(std::size_t offset, std::size_t count) const {
    MOE_CHECK(offset <= bytes && count <= bytes - offset, "a device span's part lies outside of it");
    return {static_cast<std::byte*>(address) + offset, count};
  }
  /// For a kernel's arguments.
  template <typename T>
  T* as() const {
    return static_cast<T*>(address);
  }
};

struct DeviceProperties {
  std::string name;
  std::size_t total_bytes = 0;
  std::size_t free_bytes = 0;
  int compute_major = 0;  // compute capability
  int compute_minor = 0;
};

enum class GemmType : std::uint8_t { kF32, kBf16, kF16 };

/// Problems of one shape: `count` times out (rows, outputs) = in (rows, inner) · transposed weights (outputs, inner).
struct GemmGroup {
  int rows = 0;
  int outputs = 0;
  int inner = 0;
  int count = 0;
};

/// All of it row-major without gaps. Problem i, counted through the groups, reads weights[i] and in[i], writes out[i].
struct GroupedGemm {
  GemmType input_type = GemmType::kBf16;  // of weights and rows: kBf16 or kF16
  GemmType output_type = GemmType::kF32;  // sums are fp32 in any case
  std::span<const GemmGroup> groups;      // read before the call returns; none may be empty
  // Arrays of pointers in device memory, one entry a problem; read when the work runs.
  DeviceSpan weights;
  DeviceSpan in;
  DeviceSpan out;
};

class DeviceApi {
 public:
  virtual ~DeviceApi() = default;

  /// Visible devices (CUDA itself applies CUDA_VISIBLE_DEVICES); UNAVAILABLE when there is none.
  virtual Result<int> DeviceCount() = 0;
  virtual Result<DeviceProperties> Properties(int device) = 0;
  /// For this thread, from now on.
  virtual Status SetDevice(int device) = 0;

  /// Of `bytes` bytes, at least 1, aligned to 256, contents undefined.
  virtual Result<void*> AllocateDevice(std::size_t bytes) = 0;
  virtual Status FreeDevice(void* memory) = 0;
  /// Host memory that copies can use without a detour, visible to the device; aligned to 64, contents undefined.
  virtual Result<void*> AllocatePinned(std::size_t bytes) = 0;
  virtual Status FreePinned(void* memory) = 0;

  /// `host` lies in pinned memory: a copy from or to any other is not asynchronous. Both of one length.
  virtual Status CopyToDevice(std::span<const std::byte> host, DeviceSpan device, DeviceStream stream) = 0;
  virtual Status CopyToHost(DeviceSpan device, std::span<std::byte> host, DeviceStream stream) = 0;
  virtual Status CopyOnDevice(DeviceSpan from, DeviceSpan to, DeviceStream stream) = 0;
  /// Every byte of `memory` becomes `value`.
  virtual Status Fill(DeviceSpan memory, std::uint8_t value, DeviceStream stream) = 0;

  /// One that does not wait for the default stream.
  virtual Result<DeviceStream> CreateStream() = 0;
  /// What is enqueued still runs.
  virtual Status DestroyStream(DeviceStream stream) = 0;
  virtual Status SynchronizeStream(DeviceStream stream) = 0;

  /// One without timing, for which a waiting host thread sleeps.
  virtual Result<DeviceEvent> CreateEvent() = 0;
  virtual Status DestroyEvent(DeviceEvent event) = 0;
  /// `event` is now the point behind all that is enqueued on `stream`; what it was before is forgotten.
  virtual Status RecordEvent(DeviceEvent event, DeviceStream stream) = 0;
  /// What is enqueued on `stream` from now on waits for the event as it is recorded now; at once, if it never was.
  virtual Status WaitForEvent(DeviceStream stream, DeviceEvent event) = 0;
  /// Whether the event has happened; true if it was never recorded.
  virtual Result<bool> QueryEvent(DeviceEvent event) = 0;
  virtual Status SynchronizeEvent(DeviceEvent event) = 0;

  /// From here to EndCapture, work on `stream`, and on streams that wait for its events, is kept and not run. In
  /// between, nothing that waits, allocates or frees may be called on this thread; all streams have been joined into
  /// `stream` again by events before the end.
  virtual Status BeginCapture(DeviceStream stream) = 0;
  virtual Result<DeviceGraph> EndCapture(DeviceStream stream) = 0;
  virtual Status LaunchGraph(DeviceGraph graph, DeviceStream stream) = 0;
  virtual Status DestroyGraph(DeviceGraph graph) = 0;

  /// Loads cuBLAS and makes its handle for this thread's device, so that the first RunGroupedGemm does not take that
  /// time. UNAVAILABLE where the library is missing.
  virtual Status PrepareGemm() = 0;
  /// Not under capture.
  virtual Status RunGroupedGemm(const GroupedGemm& gemm, DeviceStream stream) = 0;

  /// The run time's error that a kernel launch just left behind on this thread, if any; `what` names the launch.
  virtual Status LaunchStatus(std::string_view what) = 0;
};

/// CUDA of this machine. UNAVAILABLE, one sentence, when this build has no CUDA, or when there is no driver or device.
Result<std::unique_ptr<DeviceApi>> OpenCudaDevice();

/// Whether this build has CUDA at all.
bool BuiltWithCuda();

}  // namespace moe
