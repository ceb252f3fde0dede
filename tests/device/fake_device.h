// A device for tests on machines without one: device memory is host memory that the host may not touch, streams run
// late and in any legal order (fake_streams.h), calls are recorded, failures come on demand.
//
// What it reports as a failure of the test, at the latest when it is destroyed: anything still allocated, handles used
// after they were destroyed or never made, copies through the wrong kind of memory or past its end, calls that a
// capture forbids, a thread that never called SetDevice. Memory is allocated to the byte and, under the address
// sanitizer, accessible only while work that uses it runs. Safe from several threads. Link GTest.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "device/device_api.h"
#include "tests/contract/allocation_count.h"
#include "tests/device/fake_streams.h"

namespace moe {

enum class FakeCall : std::uint8_t {
  kDeviceCount,
  kProperties,
  kSetDevice,
  kAllocateDevice,
  kFreeDevice,
  kAllocatePinned,
  kFreePinned,
  kCopyToDevice,
  kCopyToHost,
  kCopyOnDevice,
  kFill,
  kCreateStream,
  kDestroyStream,
  kSynchronizeStream,
  kCreateEvent,
  kDestroyEvent,
  kRecordEvent,
  kWaitForEvent,
  kQueryEvent,
  kSynchronizeEvent,
  kBeginCapture,
  kEndCapture,
  kLaunchGraph,
  kDestroyGraph,
  kPrepareGemm,
  kGroupedGemm,
  kLaunch,  // a kernel: FakeDevice::Enqueue
};
inline constexpr std::size_t kFakeCalls = 27;

struct FakeRecord {
  FakeCall call = FakeCall::kDeviceCount;
  int stream = 0;         // 1, 2, … in the order in which they were made; 0: none
  std::size_t bytes = 0;  // of a copy, fill or allocation
  std::string what;       // of a launch
};

struct FakeDeviceOptions {
  int devices = 1;
  std::size_t memory_bytes = std::size_t{1} << 30;  // of each device
  std::uint64_t seed = 1;
  std::size_t max_records = 10'000;   // the first ones are kept
  std::chrono::seconds patience{60};  // how long a wait may last that nothing can end
};

class FakeDevice final : public DeviceApi {
 public:
  explicit FakeDevice(const FakeDeviceOptions& options = {});
  ~FakeDevice() override;

  /// In place of a kernel launch: `work` may touch any device memory, nothing of the host but pinned memory. A wrong
  /// stream or a failure on demand is what LaunchStatus says next.
  void Enqueue(DeviceStream stream, std::string what, std::function<void()> work);
  /// The same for work that others must be ready for, and that uses only what it names.
  Status EnqueueWhen(DeviceStream stream, std::vector<DeviceSpan> touches, std::function<bool()> ready,
                     std::function<void()> work);

  /// The `nth` call of a kind from now on (1: the next one) fails with `status` and does nothing.
  void FailCall(FakeCall call, int nth, Status status);
  std::vector<FakeRecord> records() const;
  /// Calls of a kind so far, whether recorded or not.
  std::uint64_t count(FakeCall call) const;
  /// What was done wrong so far, one sentence each, and is then not reported any more.
  std::vector<std::string> TakeMisuse();
  /// What is still allocated, one sentence each, and is then not reported any more when the device is destroyed.
  std::vector<std::string> TakeLeaks();
  /// Whether `memory` lies in live device memory, or in live pinned memory.
  bool OnDevice(DeviceSpan memory) const;
  bool Pinned(std::span<const std::byte> memory) const;

  Result<int> DeviceCount() override;
  Result<DeviceProperties> Properties(int device) override;
  Status SetDevice(int device) override;
  Result<void*> AllocateDevice(std::size_t bytes) override;
  Status FreeDevice(void* memory) override;
  Result<void*> AllocatePinned(std::size_t bytes) override;
  Status FreePinned(void* memory) override;
  Status CopyToDevice(std::span<const std::byte> host, DeviceSpan device, DeviceStream stream) override;
  Status CopyToHost(DeviceSpan device, std::span<std::byte> host, DeviceStream stream) override;
  Status CopyOnDevice(DeviceSpan from, DeviceSpan to, DeviceStream stream) override;
  Status Fill(DeviceSpan memory, std::uint8_t value, DeviceStream stream) override;
  Result<DeviceStream> CreateStream() override;
  Status DestroyStream(DeviceStream stream) override;
  Status SynchronizeStream(DeviceStream stream) override;
  Result<DeviceEvent> CreateEvent() override;
  Status DestroyEvent(DeviceEvent event) override;
  Status RecordEvent(DeviceEvent event, DeviceStream stream) override;
  Status WaitForEvent(DeviceStream stream, DeviceEvent event) override;
  Result<bool> QueryEvent(DeviceEvent event) override;
  Status SynchronizeEvent(DeviceEvent event) override;
  Status BeginCapture(DeviceStream stream) override;
  Result<DeviceGraph> EndCapture(DeviceStream stream) override;
  Status LaunchGraph(DeviceGraph graph, DeviceStream stream) override;
  Status DestroyGraph(DeviceGraph graph) override;
  Status PrepareGemm() override;
  Status RunGroupedGemm(const GroupedGemm& gemm, DeviceStream stream) override;
  Status LaunchStatus(std::string_view what) override;

 private:
  struct FakeEvent {
    std::shared_ptr<FakePoint> point;  // none before it is first recorded
  };
  struct Lock : UncountedAllocations, std::unique_lock<std::mutex> {
    explicit Lock(std::mutex& mutex) : std::unique_lock<std::mutex>(mutex) {}
  };

  Status Note(FakeCall call, DeviceStream stream = {}, std::size_t bytes = 0, std::string what = {});
  Status Misuse(std::string what);
  Status CheckThread();
  Status CheckNoCapture(std::string_view call);
  Status CheckMemory(std::string_view call, DeviceSpan device);
  Status CheckHost(std::string_view call, std::span<const std::byte> host, std::size_t device_bytes);
  Result<FakeStream*> Find(DeviceStream stream);
  Result<FakeEvent*> Find(DeviceEvent event);
  Status Add(FakeStream& stream, FakeWork work);
  Status RunUntil(Lock& lock, const std::shared_ptr<FakePoint>& point);
  void Execute(FakeWork& work);
  void RunGemm(const GroupedGemm& gemm, const std::vector<GemmGroup>& groups);
  std::vector<std::string> Leaks() const;

  const FakeDeviceOptions options_;
  mutable std::mutex mutex_;
  FakeScheduler scheduler_;
  std::map<const std::byte*, std::size_t> device_memory_;  // live, with their lengths
  std::map<const std::byte*, std::size_t> pinned_memory_;
  std::size_t device_bytes_ = 0;
  // Handles are numbers that never come again, so that a stale one is found out.
  std::uint64_t last_handle_ = 0;
  std::map<std::uint64_t, FakeEvent> events_;
  std::map<std::uint64_t, std::vector<FakeCaptured>> graphs_;
  std::vector<std::unique_ptr<FakeCapture>> captures_;  // ended ones too: events point at them
  std::map<std::thread::id, FakeCapture*> capturing_;
  std::map<std::thread::id, int> device_of_thread_;
  std::map<std::thread::id, Status> launch_status_;

  std::vector<FakeRecord> records_;
  std::uint64_t counts_[kFakeCalls] = {};
  struct Planned {
    std::uint64_t at = 0;  // the count at which it happens
    Status status;
  };
  std::map<FakeCall, Planned> planned_;
  std::vector<std::string> misuse_;
  bool leaks_taken_ = false;
  bool gemm_prepared_ = false;
};

}  // namespace moe
