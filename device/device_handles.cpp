#include "device/device_handles.h"

namespace moe {

Result<DeviceBuffer> DeviceBuffer::Allocate(DeviceApi& api, std::size_t bytes) {
  MOE_ASSIGN_OR_RETURN(void* memory, api.AllocateDevice(bytes));
  return DeviceBuffer(&api, {memory, bytes});
}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(api_, other.api_);
  std::swap(span_, other.span_);
  return *this;
}

DeviceBuffer::~DeviceBuffer() {
  if (api_ != nullptr) (void)api_->FreeDevice(span_.address);
}

Result<PinnedBuffer> PinnedBuffer::Allocate(DeviceApi& api, std::size_t bytes) {
  MOE_ASSIGN_OR_RETURN(void* memory, api.AllocatePinned(bytes));
  return PinnedBuffer(&api, {static_cast<std::byte*>(memory), bytes});
}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(api_, other.api_);
  std::swap(span_, other.span_);
  return *this;
}

PinnedBuffer::~PinnedBuffer() {
  if (api_ != nullptr) (void)api_->FreePinned(span_.data());
}

Result<Stream> MakeStream(DeviceApi& api) {
  MOE_ASSIGN_OR_RETURN(const DeviceStream stream, api.CreateStream());
  return Stream(api, stream);
}

Result<Event> MakeEvent(DeviceApi& api) {
  MOE_ASSIGN_OR_RETURN(const DeviceEvent event, api.CreateEvent());
  return Event(api, event);
}

Result<Graph> FinishCapture(DeviceApi& api, DeviceStream stream) {
  MOE_ASSIGN_OR_RETURN(const DeviceGraph graph, api.EndCapture(stream));
  return Graph(api, graph);
}

}  // namespace moe
