// Where emulated launches go: to the stream of whoever plays the device, or, without one, straight to the processor.
#pragma once

#include <functional>

#include "device/device_api.h"

namespace moe::emulation {

/// Takes the work of a kernel's launch on `stream`, to run it in the stream's order (or to keep it, under capture).
using LaunchSink = std::function<void(DeviceStream stream, const char* kernel, std::function<void()> work)>;

/// Until the end of the scope, launches of this process go to `sink`; they run at once where there is none.
class ScopedLaunchSink {
 public:
  explicit ScopedLaunchSink(LaunchSink sink);
  ~ScopedLaunchSink();
  ScopedLaunchSink(const ScopedLaunchSink&) = delete;
  ScopedLaunchSink& operator=(const ScopedLaunchSink&) = delete;
};

void Enqueue(DeviceStream stream, const char* kernel, std::function<void()> work);

}  // namespace moe::emulation
