// The table of device_api.h over CUDA's run time, linked statically: a program with it starts where there is no driver,
// and learns so from the first call.
#include <cuda_runtime_api.h>
#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): setenv is POSIX

#include <map>
#include <mutex>

#include "device/cublas.h"
#include "device/device_api.h"

namespace moe {
namespace {

Status Check(cudaError_t error, std::string_view call) {
  if (error == cudaSuccess) return Status::Ok();
  (void)cudaGetLastError();  // else the next launch would be blamed for it; errors that stick come back anyway
  const std::string message = Cat(call, ": ", cudaGetErrorName(error), " (", cudaGetErrorString(error), ")");
  switch (error) {
    case cudaErrorMemoryAllocation: return ResourceExhausted(message);
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorDevicesUnavailable: return Unavailable(message);
    default: return Internal(message);
  }
}

cudaStream_t Native(DeviceStream stream) { return static_cast<cudaStream_t>(stream.handle); }
cudaEvent_t Native(DeviceEvent event) { return static_cast<cudaEvent_t>(event.handle); }
cudaGraphExec_t Native(DeviceGraph graph) { return static_cast<cudaGraphExec_t>(graph.handle); }

class CudaApi final : public DeviceApi {
 public:
  Result<int> DeviceCount() override {
    int count = 0;
    MOE_RETURN_IF_ERROR(Check(cudaGetDeviceCount(&count), "cudaGetDeviceCount"));
    return count;
  }

  Result<DeviceProperties> Properties(int device) override {
    cudaDeviceProp native;
    MOE_RETURN_IF_ERROR(Check(cudaGetDeviceProperties(&native, device), "cudaGetDeviceProperties"));
    DeviceProperties properties{.name = native.name, .compute_major = native.major, .compute_minor = native.minor};
    // Free memory is told of the current device only.
    int before = 0;
    MOE_RETURN_IF_ERROR(Check(cudaGetDevice(&before), "cudaGetDevice"));
    MOE_RETURN_IF_ERROR(SetDevice(device));
    const Status status = Check(cudaMemGetInfo(&properties.free_bytes, &properties.total_bytes), "cudaMemGetInfo");
    MOE_RETURN_IF_ERROR(SetDevice(before));
    MOE_RETURN_IF_ERROR(status);
    return properties;
  }

  Status SetDevice(int device) override { return Check(cudaSetDevice(device), "cudaSetDevice"); }

  Result<void*> AllocateDevice(std::size_t bytes) override {
    void* memory = nullptr;
    MOE_RETURN_IF_ERROR(Check(cudaMalloc(&memory, bytes), "cudaMalloc").WithContext(Cat(bytes, " bytes")));
    return memory;
  }
  Status FreeDevice(void* memory) override { return Check(cudaFree(memory), "cudaFree"); }

  Result<void*> AllocatePinned(std::size_t bytes) override {
    void* memory = nullptr;
    MOE_RETURN_IF_ERROR(
        Check(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "cudaHostAlloc").WithContext(Cat(bytes, " bytes")));
    return memory;
  }
  Status FreePinned(void* memory) override { return Check(cudaFreeHost(memory), "cudaFreeHost"); }

  Status CopyToDevice(std::span<const std::byte> host, DeviceSpan device, DeviceStream stream) override {
    MOE_CHECK(host.size() == device.bytes, "copy to the device: lengths differ");
    return Copy(device.address, host.data(), host.size(), cudaMemcpyHostToDevice, stream);
  }
  Status CopyToHost(DeviceSpan device, std::span<std::byte> host, DeviceStream stream) override {
    MOE_CHECK(host.size() == device.bytes, "copy to the host: lengths differ");
    return Copy(host.data(), device.address, host.size(), cudaMemcpyDeviceToHost, stream);
  }
  Status CopyOnDevice(DeviceSpan from, DeviceSpan to, DeviceStream stream) override {
    MOE_CHECK(from.bytes == to.bytes, "copy on the device: lengths differ");
    return Copy(to.address, from.address, from.bytes, cudaMemcpyDeviceToDevice, stream);
  }
  Status Fill(DeviceSpan memory, std::uint8_t value, DeviceStream stream) override {
    return Check(cudaMemsetAsync(memory.address, value, memory.bytes, Native(stream)), "cudaMemsetAsync");
  }

  Result<DeviceStream> CreateStream() override {
    cudaStream_t stream = nullptr;
    MOE_RETURN_IF_ERROR(Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"));
    return DeviceStream{stream};
  }
  Status DestroyStream(DeviceStream stream) override {
    return Check(cudaStreamDestroy(Native(stream)), "cudaStreamDestroy");
  }
  Status SynchronizeStream(DeviceStream stream) override {
    return Check(cudaStreamSynchronize(Native(stream)), "cudaStreamSynchronize");
  }

  Result<DeviceEvent> CreateEvent() override {
    cudaEvent_t event = nullptr;
    MOE_RETURN_IF_ERROR(Check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync),
                              "cudaEventCreateWithFlags"));
    return DeviceEvent{event};
  }
  Status DestroyEvent(DeviceEvent event) override { return Check(cudaEventDestroy(Native(event)), "cudaEventDestroy"); }
  Status RecordEvent(DeviceEvent event, DeviceStream stream) override {
    return Check(cudaEventRecord(Native(event), Native(stream)), "cudaEventRecord");
  }
  Status WaitForEvent(DeviceStream stream, DeviceEvent event) override {
    return Check(cudaStreamWaitEvent(Native(stream), Native(event), cudaEventWaitDefault), "cudaStreamWaitEvent");
  }
  Result<bool> QueryEvent(DeviceEvent event) override {
    const cudaError_t error = cudaEventQuery(Native(event));
    if (error == cudaErrorNotReady) {
      (void)cudaGetLastError();
      return false;
    }
    MOE_RETURN_IF_ERROR(Check(error, "cudaEventQuery"));
    return true;
  }
  Status SynchronizeEvent(DeviceEvent event) override {
    return Check(cudaEventSynchronize(Native(event)), "cudaEventSynchronize");
  }

  Status BeginCapture(DeviceStream stream) override {
    return Check(cudaStreamBeginCapture(Native(stream), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  }
  Result<DeviceGraph> EndCapture(DeviceStream stream) override {
    cudaGraph_t graph = nullptr;
    MOE_RETURN_IF_ERROR(Check(cudaStreamEndCapture(Native(stream), &graph), "cudaStreamEndCapture"));
    cudaGraphExec_t ready = nullptr;
    const Status status = Check(cudaGraphInstantiate(&ready, graph, 0), "cudaGraphInstantiate");
    MOE_RETURN_IF_ERROR(Check(cudaGraphDestroy(graph), "cudaGraphDestroy"));
    MOE_RETURN_IF_ERROR(status);
    return DeviceGraph{ready};
  }
  Status LaunchGraph(DeviceGraph graph, DeviceStream stream) override {
    return Check(cudaGraphLaunch(Native(graph), Native(stream)), "cudaGraphLaunch");
  }
  Status DestroyGraph(DeviceGraph graph) override {
    return Check(cudaGraphExecDestroy(Native(graph)), "cudaGraphExecDestroy");
  }

  Status PrepareGemm() override {
    const std::lock_guard lock(mutex_);
    return CublasOfThisThread().status();
  }
  Status RunGroupedGemm(const GroupedGemm& gemm, DeviceStream stream) override {
    const std::lock_guard lock(mutex_);
    MOE_ASSIGN_OR_RETURN(Cublas* const cublas, CublasOfThisThread());
    return cublas->Run(gemm, stream);
  }

  Status LaunchStatus(std::string_view what) override { return Check(cudaGetLastError(), what); }

 private:
  static Status Copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, DeviceStream stream) {
    return Check(cudaMemcpyAsync(to, from, bytes, kind, Native(stream)), "cudaMemcpyAsync");
  }

  // One handle a device; the mutex is held.
  Result<Cublas*> CublasOfThisThread() {
    int device = 0;
    MOE_RETURN_IF_ERROR(Check(cudaGetDevice(&device), "cudaGetDevice"));
    std::unique_ptr<Cublas>& cublas = cublas_[device];
    if (cublas == nullptr) {
      MOE_ASSIGN_OR_RETURN(cublas, Cublas::Open());
    }
    return cublas.get();
  }

  std::mutex mutex_;
  std::map<int, std::unique_ptr<Cublas>> cublas_;
};

}  // namespace

Result<std::unique_ptr<DeviceApi>> OpenCudaDevice() {
  // Streams share hardware queues, 8 unless told otherwise, and work behind a kernel that waits (NCCL's receives do)
  // would wait with it, in whatever stream of that queue. Read once, when CUDA starts.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0);
  auto api = std::make_unique<CudaApi>();
  const Result<int> count = api->DeviceCount();
  if (!count.ok()) return Unavailable("there is no CUDA driver or device here: ", count.status().message());
  if (*count == 0) return Unavailable("there is no CUDA device here");
  return std::unique_ptr<DeviceApi>(std::move(api));
}

bool BuiltWithCuda() { return true; }

}  // namespace moe
