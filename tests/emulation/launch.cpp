#include "tests/emulation/launch.h"

#include <utility>

#include "core/check.h"

namespace moe::emulation {
namespace {

LaunchSink launch_sink;  // set before the threads that launch, and taken away after them

}  // namespace

ScopedLaunchSink::ScopedLaunchSink(LaunchSink sink) {
  MOE_CHECK(!launch_sink, "launches go to somebody else already");
  launch_sink = std::move(sink);
}

ScopedLaunchSink::~ScopedLaunchSink() { launch_sink = {}; }

void Enqueue(DeviceStream stream, const char* kernel, std::function<void()> work) {
  if (launch_sink) return launch_sink(stream, kernel, std::move(work));
  work();
}

}  // namespace moe::emulation
