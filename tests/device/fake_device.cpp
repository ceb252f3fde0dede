#include "tests/device/fake_device.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "kernels/weight_type.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(memory, bytes) ((void)(memory), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(memory, bytes) ((void)(memory), (void)(bytes))
#endif

namespace moe {
namespace {

constexpr std::size_t kDeviceAlignment = 256;
constexpr std::size_t kPinnedAlignment = 64;

using Memory = std::map<const std::byte*, std::size_t>;

bool Covers(const Memory& memory, const void* begin, std::size_t bytes) {
  const auto* first = static_cast<const std::byte*>(begin);
  auto block = memory.upper_bound(first);
  if (block == memory.begin()) return false;
  --block;
  const auto offset = static_cast<std::size_t>(first - block->first);
  return offset <= block->second && bytes <= block->second - offset;
}

// Exactly `bytes`, so that the sanitizer's red zone begins there; filled with what no test expects.
std::byte* Allocate(std::size_t alignment, std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes) != 0) std::abort();
  std::memset(memory, 0xa7, bytes);
  return static_cast<std::byte*>(memory);
}

}  // namespace

FakeDevice::FakeDevice(const FakeDeviceOptions& options)
    : options_(options), scheduler_(options.seed, [this](FakeWork& work) { Execute(work); }) {}

FakeDevice::~FakeDevice() {
  for (const std::string& what : misuse_) ADD_FAILURE() << "fake device: " << what;
  if (!leaks_taken_) {
    for (const std::string& what : Leaks()) ADD_FAILURE() << "fake device: " << what;
  }
  for (const auto& [memory, bytes] : device_memory_) {
    ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
    std::free(const_cast<std::byte*>(memory));
  }
  for (const auto& [memory, bytes] : pinned_memory_) std::free(const_cast<std::byte*>(memory));
}

void FakeDevice::FailCall(FakeCall call, int nth, Status status) {
  const Lock lock(mutex_);
  MOE_CHECK(nth >= 1 && !status.ok(), "a planned failure needs a call to come and an error");
  planned_[call] = {counts_[static_cast<std::size_t>(call)] + static_cast<std::uint64_t>(nth), std::move(status)};
}

std::vector<FakeRecord> FakeDevice::records() const {
  const Lock lock(mutex_);
  return records_;
}

std::uint64_t FakeDevice::count(FakeCall call) const {
  const Lock lock(mutex_);
  return counts_[static_cast<std::size_t>(call)];
}

std::vector<std::string> FakeDevice::TakeMisuse() {
  const Lock lock(mutex_);
  return std::exchange(misuse_, {});
}

std::vector<std::string> FakeDevice::TakeLeaks() {
  const Lock lock(mutex_);
  leaks_taken_ = true;
  return Leaks();
}

std::vector<std::string> FakeDevice::Leaks() const {
  std::vector<std::string> leaks;
  for (const auto& [memory, bytes] : device_memory_) leaks.push_back(Cat(bytes, " bytes of device memory not freed"));
  for (const auto& [memory, bytes] : pinned_memory_) leaks.push_back(Cat(bytes, " bytes of pinned memory not freed"));
  for (const auto& stream : scheduler_.streams()) {
    if (!stream->destroyed) leaks.push_back(Cat("stream ", stream->number, " not destroyed"));
    if (!stream->queue.empty()) leaks.push_back(Cat("stream ", stream->number, ": work that nobody waited for"));
  }
  for (const auto& [handle, event] : events_) leaks.push_back(Cat("event ", handle, " not destroyed"));
  for (const auto& [handle, graph] : graphs_) leaks.push_back(Cat("graph ", handle, " not destroyed"));
  return leaks;
}

bool FakeDevice::OnDevice(DeviceSpan memory) const {
  const Lock lock(mutex_);
  return Covers(device_memory_, memory.address, memory.bytes);
}

bool FakeDevice::Pinned(std::span<const std::byte> memory) const {
  const Lock lock(mutex_);
  return Covers(pinned_memory_, memory.data(), memory.size());
}

Status FakeDevice::Note(FakeCall call, DeviceStream stream, std::size_t bytes, std::string what) {
  const std::uint64_t count = ++counts_[static_cast<std::size_t>(call)];
  if (records_.size() < options_.max_records) {
    const auto number = static_cast<int>(reinterpret_cast<std::uintptr_t>(stream.handle));
    records_.push_back({call, number, bytes, std::move(what)});
  }
  const auto planned = planned_.find(call);
  if (planned == planned_.end() || planned->second.at != count) return Status::Ok();
  return planned_.extract(planned).mapped().status;
}

Status FakeDevice::Misuse(std::string what) {
  misuse_.push_back(what);
  return Internal(what);
}

Status FakeDevice::CheckThread() {
  if (device_of_thread_.contains(std::this_thread::get_id())) return Status::Ok();
  return Misuse("a thread uses the device before it has called SetDevice");
}

Status FakeDevice::CheckNoCapture(std::string_view call) {
  const auto capture = capturing_.find(std::this_thread::get_id());
  if (capture == capturing_.end()) return Status::Ok();
  capture->second->broken = Cat("cudaErrorStreamCaptureInvalidated: ", call, " was called during the capture");
  return Misuse(Cat(call, ": cudaErrorStreamCaptureUnsupported: not allowed while this thread captures"));
}

Status FakeDevice::CheckMemory(std::string_view call, DeviceSpan device) {
  if (Covers(device_memory_, device.address, device.bytes)) return Status::Ok();
  return Misuse(Cat(call, ": cudaErrorInvalidValue: ", device.bytes, " bytes are not within live device memory"));
}

Status FakeDevice::CheckHost(std::string_view call, std::span<const std::byte> host, std::size_t device_bytes) {
  if (host.size() != device_bytes) {
    return Misuse(Cat(call, ": ", host.size(), " bytes of the host, ", device_bytes, " of the device"));
  }
  if (Covers(pinned_memory_, host.data(), host.size())) return Status::Ok();
  return Misuse(Cat(call, ": ", host.size(), " bytes are not within live pinned memory"));
}

Result<int> FakeDevice::DeviceCount() {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kDeviceCount));
  if (options_.devices == 0) return Unavailable("cudaGetDeviceCount: cudaErrorNoDevice (no CUDA-capable device)");
  return options_.devices;
}

Result<DeviceProperties> FakeDevice::Properties(int device) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kProperties));
  if (device < 0 || device >= options_.devices) return Misuse(Cat("device ", device, ": cudaErrorInvalidDevice"));
  return DeviceProperties{.name = "Fake GPU",
                          .total_bytes = options_.memory_bytes,
                          .free_bytes = options_.memory_bytes - device_bytes_,
                          .compute_major = 9,
                          .compute_minor = 0};
}

Status FakeDevice::SetDevice(int device) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kSetDevice));
  if (device < 0 || device >= options_.devices) return Misuse(Cat("device ", device, ": cudaErrorInvalidDevice"));
  device_of_thread_[std::this_thread::get_id()] = device;
  return Status::Ok();
}

Result<void*> FakeDevice::AllocateDevice(std::size_t bytes) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kAllocateDevice, {}, bytes));
  MOE_RETURN_IF_ERROR(CheckThread());
  MOE_RETURN_IF_ERROR(CheckNoCapture("cudaMalloc"));
  if (bytes == 0) return Misuse("cudaMalloc: 0 bytes");
  if (bytes > options_.memory_bytes - device_bytes_) {
    return ResourceExhausted(bytes, " bytes: cudaMalloc: cudaErrorMemoryAllocation (out of memory)");
  }
  std::byte* memory = Allocate(kDeviceAlignment, bytes);
  ASAN_POISON_MEMORY_REGION(memory, bytes);
  device_memory_[memory] = bytes;
  device_bytes_ += bytes;
  return static_cast<void*>(memory);
}

Status FakeDevice::FreeDevice(void* memory) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kFreeDevice));
  MOE_RETURN_IF_ERROR(CheckNoCapture("cudaFree"));
  const auto block = device_memory_.find(static_cast<const std::byte*>(memory));
  if (block == device_memory_.end()) return Misuse("cudaFree: cudaErrorInvalidValue: no such device memory");
  ASAN_UNPOISON_MEMORY_REGION(block->first, block->second);
  device_bytes_ -= block->second;
  device_memory_.erase(block);
  std::free(memory);
  return Status::Ok();
}

Result<void*> FakeDevice::AllocatePinned(std::size_t bytes) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kAllocatePinned, {}, bytes));
  MOE_RETURN_IF_ERROR(CheckThread());
  MOE_RETURN_IF_ERROR(CheckNoCapture("cudaHostAlloc"));
  if (bytes == 0) return Misuse("cudaHostAlloc: 0 bytes");
  std::byte* memory = Allocate(kPinnedAlignment, bytes);
  pinned_memory_[memory] = bytes;
  return static_cast<void*>(memory);
}

Status FakeDevice::FreePinned(void* memory) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kFreePinned));
  MOE_RETURN_IF_ERROR(CheckNoCapture("cudaFreeHost"));
  if (pinned_memory_.erase(static_cast<const std::byte*>(memory)) == 0) {
    return Misuse("cudaFreeHost: cudaErrorInvalidValue: no such pinned memory");
  }
  std::free(memory);
  return Status::Ok();
}

Status FakeDevice::CopyToDevice(std::span<const std::byte> host, DeviceSpan device, DeviceStream stream) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kCopyToDevice, stream, host.size()));
  MOE_ASSIGN_OR_RETURN(FakeStream* const found, Find(stream));
  MOE_RETURN_IF_ERROR(CheckHost("copy to the device", host, device.bytes));
  MOE_RETURN_IF_ERROR(CheckMemory("copy to the device", device));
  return Add(*found, {.run = [=] { std::memcpy(device.address, host.data(), host.size()); }, .touches = {device}});
}

Status FakeDevice::CopyToHost(DeviceSpan device, std::span<std::byte> host, DeviceStream stream) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kCopyToHost, stream, host.size()));
  MOE_ASSIGN_OR_RETURN(FakeStream* const found, Find(stream));
  MOE_RETURN_IF_ERROR(CheckHost("copy to the host", host, device.bytes));
  MOE_RETURN_IF_ERROR(CheckMemory("copy to the host", device));
  return Add(*found, {.run = [=] { std::memcpy(host.data(), device.address, host.size()); }, .touches = {device}});
}

Status FakeDevice::CopyOnDevice(DeviceSpan from, DeviceSpan to, DeviceStream stream) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kCopyOnDevice, stream, from.bytes));
  MOE_ASSIGN_OR_RETURN(FakeStream* const found, Find(stream));
  if (from.bytes != to.bytes) return Misuse("copy on the device: lengths differ");
  MOE_RETURN_IF_ERROR(CheckMemory("copy on the device", from));
  MOE_RETURN_IF_ERROR(CheckMemory("copy on the device", to));
  return Add(*found, {.run = [=] { std::memmove(to.address, from.address, from.bytes); }, .touches = {from, to}});
}

Status FakeDevice::Fill(DeviceSpan memory, std::uint8_t value, DeviceStream stream) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kFill, stream, memory.bytes));
  MOE_ASSIGN_OR_RETURN(FakeStream* const found, Find(stream));
  MOE_RETURN_IF_ERROR(CheckMemory("fill", memory));
  return Add(*found, {.run = [=] { std::memset(memory.address, value, memory.bytes); }, .touches = {memory}});
}

Status FakeDevice::PrepareGemm() {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kPrepareGemm));
  MOE_RETURN_IF_ERROR(CheckThread());
  MOE_RETURN_IF_ERROR(CheckNoCapture("cublasCreate"));
  gemm_prepared_ = true;
  return Status::Ok();
}

Status FakeDevice::RunGroupedGemm(const GroupedGemm& gemm, DeviceStream stream) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kGroupedGemm, stream));
  MOE_ASSIGN_OR_RETURN(FakeStream* const found, Find(stream));
  MOE_RETURN_IF_ERROR(CheckNoCapture("grouped GEMM"));
  if (!gemm_prepared_) return Misuse("grouped GEMM before PrepareGemm: its first call would load cuBLAS");
  if (gemm.input_type == GemmType::kF32) return Misuse("grouped GEMM: input type f32 (bf16, f16)");
  if (gemm.groups.empty()) return Misuse("grouped GEMM: no groups");
  std::size_t problems = 0;
  for (const GemmGroup& group : gemm.groups) {
    if (group.rows < 1 || group.outputs < 1 || group.inner < 1 || group.count < 1) {
      return Misuse("grouped GEMM: an empty group");
    }
    problems += static_cast<std::size_t>(group.count);
  }
  for (const DeviceSpan pointers : {gemm.weights, gemm.in, gemm.out}) {
    MOE_RETURN_IF_ERROR(CheckMemory("grouped GEMM", pointers));
    if (pointers.bytes != problems * sizeof(void*)) {
      return Misuse(Cat("grouped GEMM: ", pointers.bytes, " bytes of pointers for ", problems, " problems"));
    }
  }
  const std::vector<GemmGroup> groups(gemm.groups.begin(), gemm.groups.end());
  return Add(*found, {.run = [this, gemm, groups] { RunGemm(gemm, groups); }, .touches_all = true});
}

void FakeDevice::RunGemm(const GroupedGemm& gemm, const std::vector<GemmGroup>& groups) {
  const auto read = [&](const void* from, std::size_t i) {
    const std::uint16_t bits = static_cast<const std::uint16_t*>(from)[i];
    return gemm.input_type == GemmType::kBf16 ? Bf16ToF32(bits) : F16ToF32(bits);
  };
  const auto write = [&](void* to, std::size_t i, float value) {
    if (gemm.output_type == GemmType::kF32) {
      static_cast<float*>(to)[i] = value;
    } else {
      static_cast<std::uint16_t*>(to)[i] = gemm.output_type == GemmType::kBf16 ? F32ToBf16(value) : F32ToF16(value);
    }
  };
  const std::size_t out_bytes = gemm.output_type == GemmType::kF32 ? 4 : 2;
  std::size_t problem = 0;
  for (const GemmGroup& group : groups) {
    const auto rows = static_cast<std::size_t>(group.rows), outputs = static_cast<std::size_t>(group.outputs);
    const auto inner = static_cast<std::size_t>(group.inner);
    for (int i = 0; i < group.count; ++i, ++problem) {
      void* weights = gemm.weights.as<void*>()[problem];
      void* in = gemm.in.as<void*>()[problem];
      void* out = gemm.out.as<void*>()[problem];
      if (!CheckMemory("grouped GEMM: weights", {weights, outputs * inner * 2}).ok() ||
          !CheckMemory("grouped GEMM: rows", {in, rows * inner * 2}).ok() ||
          !CheckMemory("grouped GEMM: output", {out, rows * outputs * out_bytes}).ok()) {
        return;
      }
      for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t o = 0; o < outputs; ++o) {
          float sum = 0;
          for (std::size_t k = 0; k < inner; ++k) {
            sum = std::fma(read(in, r * inner + k), read(weights, o * inner + k), sum);
          }
          write(out, r * outputs + o, sum);
        }
      }
    }
  }
}

void FakeDevice::Execute(FakeWork& work) {
  for (const DeviceSpan span : work.touches) {
    if (!CheckMemory("work that ran after its memory was freed", span).ok()) return;
  }
  const auto set_access = [&](bool accessible) {
    const auto set = [&](const void* memory, std::size_t bytes) {
      if (accessible) {
        ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
      } else {
        ASAN_POISON_MEMORY_REGION(memory, bytes);
      }
    };
    for (const DeviceSpan span : work.touches) set(span.address, span.bytes);
    if (!work.touches_all) return;
    for (const auto& [memory, bytes] : device_memory_) set(memory, bytes);
  };
  set_access(true);
  work.run();
  set_access(false);
}

}  // namespace moe
