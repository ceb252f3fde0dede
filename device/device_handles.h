// Owners of what a DeviceApi gives out. Each frees what it holds when it is destroyed; a failure to free has nobody
// left to tell and is dropped. The DeviceApi outlives them, and enqueued work that uses them is done before they go.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "core/status.h"
#include "device/device_api.h"

namespace moe {

/// Device memory of a fixed size; none by default.
class DeviceBuffer {
 public:
  static Result<DeviceBuffer> Allocate(DeviceApi& api, std::size_t bytes);
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : api_(std::exchange(other.api_, nullptr)), span_(std::exchange(other.span_, {})) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  DeviceSpan span() const { return span_; }
  std::size_t bytes() const { return span_.bytes; }

 private:
  DeviceBuffer(DeviceApi* api, DeviceSpan span) : api_(api), span_(span) {}
  DeviceApi* api_ = nullptr;
  DeviceSpan span_;
};

/// Pinned host memory of a fixed size; none by default.
class PinnedBuffer {
 public:
  static Result<PinnedBuffer> Allocate(DeviceApi& api, std::size_t bytes);
  PinnedBuffer() = default;
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : api_(std::exchange(other.api_, nullptr)), span_(std::exchange(other.span_, {})) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  ~PinnedBuffer();

  std::span<std::byte> span() const { return span_; }

 private:
  PinnedBuffer(DeviceApi* api, std::span<std::byte> span) : api_(api), span_(span) {}
  DeviceApi* api_ = nullptr;
  std::span<std::byte> span_;
};

/// An owned stream, event or graph; none by default. `Handle` is DeviceStream, DeviceEvent or DeviceGraph.
template <typename Handle, Status (DeviceApi::*Destroy)(Handle)>
class OwnedHandle {
 public:
  OwnedHandle() = default;
  OwnedHandle(DeviceApi& api, Handle handle) : api_(&api), handle_(handle) {}
  OwnedHandle(OwnedHandle&& other) noexcept
      : api_(std::exchange(other.api_, nullptr)), handle_(std::exchange(other.handle_, {})) {}
  OwnedHandle& operator=(OwnedHandle&& other) noexcept {
    std::swap(api_, other.api_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~OwnedHandle() {
    if (api_ != nullptr) (void)(api_->*Destroy)(handle_);
  }

  explicit operator bool() const { return api_ != nullptr; }
  Handle get() const { return handle_; }

 private:
  DeviceApi* api_ = nullptr;
  Handle handle_;
};

using Stream = OwnedHandle<DeviceStream, &DeviceApi::DestroyStream>;
using Event = OwnedHandle<DeviceEvent, &DeviceApi::DestroyEvent>;
using Graph = OwnedHandle<DeviceGraph, &DeviceApi::DestroyGraph>;

Result<Stream> MakeStream(DeviceApi& api);
Result<Event> MakeEvent(DeviceApi& api);
/// Ends the capture that was begun on `stream`.
Result<Graph> FinishCapture(DeviceApi& api, DeviceStream stream);

}  // namespace moe
