// The fake device's streams, events, captures and graphs.
#include <algorithm>

#include "core/clock.h"
#include "tests/device/fake_device.h"

namespace moe {
namespace {

std::uint64_t Number(void* handle) { return reinterpret_cast<std::uintptr_t>(handle); }
void* Handle(std::uint64_t number) { return reinterpret_cast<void*>(static_cast<std::uintptr_t>(number)); }

}  // namespace

Result<FakeStream*> FakeDevice::Find(DeviceStream stream) {
  const std::uint64_t number = Number(stream.handle);
  if (number == 0) return Misuse("work on the default stream, which waits for all others");
  if (number > scheduler_.streams().size() || scheduler_.streams()[number - 1]->destroyed) {
    return Misuse(Cat("cudaErrorInvalidResourceHandle: stream ", number, " does not exist (any more)"));
  }
  return scheduler_.streams()[number - 1].get();
}

Result<FakeDevice::FakeEvent*> FakeDevice::Find(DeviceEvent event) {
  const auto found = events_.find(Number(event.handle));
  if (found == events_.end()) {
    return Misuse(Cat("cudaErrorInvalidResourceHandle: event ", Number(event.handle), " does not exist (any more)"));
  }
  return &found->second;
}

Status FakeDevice::Add(FakeStream& stream, FakeWork work) {
  if (stream.capture != nullptr) {
    if (work.ready) return Misuse("work that waits for others cannot be captured");
    stream.capture->pieces.push_back({stream.number, std::move(work), {}});
  } else {
    stream.queue.push_back(std::move(work));
  }
  return Status::Ok();
}

void FakeDevice::Enqueue(DeviceStream stream, std::string what, std::function<void()> work) {
  const Lock lock(mutex_);
  Status status = Note(FakeCall::kLaunch, stream, 0, std::move(what));
  if (status.ok()) {
    const Result<FakeStream*> found = Find(stream);
    status = found.ok() ? Add(**found, {.run = std::move(work), .touches_all = true}) : found.status();
  }
  if (!status.ok()) launch_status_[std::this_thread::get_id()] = status;
}

Status FakeDevice::LaunchStatus(std::string_view what) {
  const Lock lock(mutex_);
  const auto status = launch_status_.extract(std::this_thread::get_id());
  return status.empty() ? Status::Ok() : status.mapped().WithContext(what);
}

Status FakeDevice::EnqueueWhen(DeviceStream stream, std::vector<DeviceSpan> touches, std::function<bool()> ready,
                               std::function<void()> work) {
  const Lock lock(mutex_);
  MOE_ASSIGN_OR_RETURN(FakeStream* const found, Find(stream));
  for (const DeviceSpan span : touches) MOE_RETURN_IF_ERROR(CheckMemory("enqueued work", span));
  return Add(*found, {.run = std::move(work), .ready = std::move(ready), .touches = std::move(touches)});
}

Result<DeviceStream> FakeDevice::CreateStream() {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kCreateStream));
  MOE_RETURN_IF_ERROR(CheckThread());
  return DeviceStream{Handle(static_cast<std::uint64_t>(scheduler_.AddStream().number))};
}

Status FakeDevice::DestroyStream(DeviceStream stream) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kDestroyStream, stream));
  MOE_ASSIGN_OR_RETURN(FakeStream* const found, Find(stream));
  if (found->capture != nullptr) return Misuse("cudaStreamDestroy: the stream is being captured");
  found->destroyed = true;
  return Status::Ok();
}

Status FakeDevice::RunUntil(Lock& lock, const std::shared_ptr<FakePoint>& point) {
  const Deadline deadline = After(options_.patience);
  while (!point->done) {
    if (scheduler_.RunTowards(*point)) continue;
    if (Clock::now() >= deadline) return Misuse("a wait for work that never became able to run");
    // What is missing comes from another thread, which may need this device.
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(20));
    lock.lock();
  }
  return Status::Ok();
}

Status FakeDevice::SynchronizeStream(DeviceStream stream) {
  Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kSynchronizeStream, stream));
  MOE_RETURN_IF_ERROR(CheckNoCapture("cudaStreamSynchronize"));
  MOE_ASSIGN_OR_RETURN(FakeStream* const found, Find(stream));
  if (found->capture != nullptr) return Misuse("cudaStreamSynchronize: the stream is being captured");
  const auto point = std::make_shared<FakePoint>();
  found->queue.push_back({.records = point});
  return RunUntil(lock, point);
}

Result<DeviceEvent> FakeDevice::CreateEvent() {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kCreateEvent));
  MOE_RETURN_IF_ERROR(CheckThread());
  events_[++last_handle_] = {};
  return DeviceEvent{Handle(last_handle_)};
}

Status FakeDevice::DestroyEvent(DeviceEvent event) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kDestroyEvent));
  MOE_RETURN_IF_ERROR(Find(event).status());
  events_.erase(Number(event.handle));
  return Status::Ok();
}

Status FakeDevice::RecordEvent(DeviceEvent event, DeviceStream stream) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kRecordEvent, stream));
  MOE_ASSIGN_OR_RETURN(FakeEvent* const found, Find(event));
  MOE_ASSIGN_OR_RETURN(FakeStream* const on, Find(stream));
  found->point = std::make_shared<FakePoint>();
  if (on->capture != nullptr) {
    found->point->capture = on->capture;
    found->point->place = on->capture->pieces.size();
  }
  return Add(*on, {.records = found->point});
}

Status FakeDevice::WaitForEvent(DeviceStream stream, DeviceEvent event) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kWaitForEvent, stream));
  MOE_ASSIGN_OR_RETURN(FakeEvent* const found, Find(event));
  MOE_ASSIGN_OR_RETURN(FakeStream* const on, Find(stream));
  if (found->point == nullptr) return Status::Ok();
  FakeCapture* const of = found->point->capture;
  if (of == nullptr && on->capture == nullptr) return Add(*on, {.waits_for = found->point});
  if (of == nullptr) return Misuse("cudaErrorStreamCaptureIsolation: captured work waits for work that is not");
  if (on->capture == nullptr) {
    const bool running = std::ranges::any_of(capturing_, [&](const auto& entry) { return entry.second == of; });
    if (!running) return Misuse("a wait for an event of a capture that has ended");
    on->capture = of;  // the stream joins the capture
  }
  if (on->capture != of) return Misuse("cudaErrorStreamCaptureMerge: two captures wait for one another");
  of->pieces.push_back({on->number, {}, found->point->place});
  return Status::Ok();
}

Result<bool> FakeDevice::QueryEvent(DeviceEvent event) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kQueryEvent));
  MOE_RETURN_IF_ERROR(CheckNoCapture("cudaEventQuery"));
  MOE_ASSIGN_OR_RETURN(FakeEvent* const found, Find(event));
  if (found->point == nullptr) return true;
  if (found->point->capture != nullptr) return Misuse("cudaErrorCapturedEvent: an event of a capture never happens");
  scheduler_.RunSome();
  return found->point->done;
}

Status FakeDevice::SynchronizeEvent(DeviceEvent event) {
  Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kSynchronizeEvent));
  MOE_RETURN_IF_ERROR(CheckNoCapture("cudaEventSynchronize"));
  MOE_ASSIGN_OR_RETURN(FakeEvent* const found, Find(event));
  const std::shared_ptr<FakePoint> point = found->point;
  if (point == nullptr) return Status::Ok();
  if (point->capture != nullptr) return Misuse("cudaErrorCapturedEvent: an event of a capture never happens");
  return RunUntil(lock, point);
}

Status FakeDevice::BeginCapture(DeviceStream stream) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kBeginCapture, stream));
  MOE_RETURN_IF_ERROR(CheckNoCapture("cudaStreamBeginCapture"));
  MOE_ASSIGN_OR_RETURN(FakeStream* const found, Find(stream));
  if (found->capture != nullptr) return Misuse("cudaStreamBeginCapture: the stream is being captured already");
  captures_.push_back(std::make_unique<FakeCapture>());
  captures_.back()->origin = found;
  found->capture = captures_.back().get();
  capturing_[std::this_thread::get_id()] = found->capture;
  return Status::Ok();
}

Result<DeviceGraph> FakeDevice::EndCapture(DeviceStream stream) {
  const Lock lock(mutex_);
  const Status failure = Note(FakeCall::kEndCapture, stream);
  MOE_ASSIGN_OR_RETURN(FakeStream* const found, Find(stream));
  const auto capturing = capturing_.find(std::this_thread::get_id());
  if (capturing == capturing_.end() || capturing->second->origin != found) {
    return Misuse("cudaStreamEndCapture: this thread began no capture of that stream");
  }
  FakeCapture& capture = *capturing->second;
  capturing_.erase(capturing);
  for (const auto& other : scheduler_.streams()) {
    if (other->capture == &capture) other->capture = nullptr;
  }
  MOE_RETURN_IF_ERROR(failure);
  if (!capture.broken.empty()) return Internal(capture.broken);
  if (std::string unjoined = FakeScheduler::Unjoined(capture); !unjoined.empty()) return Misuse(std::move(unjoined));
  graphs_[++last_handle_] = std::move(capture.pieces);
  return DeviceGraph{Handle(last_handle_)};
}

Status FakeDevice::LaunchGraph(DeviceGraph graph, DeviceStream stream) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kLaunchGraph, stream));
  MOE_RETURN_IF_ERROR(CheckNoCapture("cudaGraphLaunch"));
  MOE_ASSIGN_OR_RETURN(FakeStream* const found, Find(stream));
  const auto pieces = graphs_.find(Number(graph.handle));
  if (pieces == graphs_.end()) return Misuse("cudaGraphLaunch: the graph does not exist (any more)");
  return Add(*found, {.graph = pieces->second});
}

Status FakeDevice::DestroyGraph(DeviceGraph graph) {
  const Lock lock(mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeCall::kDestroyGraph));
  if (graphs_.erase(Number(graph.handle)) == 0) {
    return Misuse("cudaGraphExecDestroy: the graph does not exist (any more)");
  }
  return Status::Ok();
}

}  // namespace moe
