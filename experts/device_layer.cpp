#include "experts/device_layer.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace moe {
namespace {

using cuda::DeviceForm;
using cuda::DeviceMatrixForm;
using cuda::ExpertActivation;

constexpr std::size_t kPartAlignment = 256;  // of what an allocation gives, and so of every part of it

std::size_t Aligned(std::size_t bytes) { return (bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment; }

Result<ExpertActivation> ActivationOf(const ExpertShard::Layer& layer) {
  switch (layer.mlp.activation) {
    case Activation::kSiluGated: return ExpertActivation::kSiluGated;
    case Activation::kClampedSwiGlu: return ExpertActivation::kClampedSwiGlu;
    case Activation::kRelu: return ExpertActivation::kRelu;
    case Activation::kGeluGated:
    case Activation::kGelu: break;
  }
  return InvalidArgument("layer ", layer.layer, ": no device computes experts with GELU (SiLU, clamped SwiGLU, ReLU)");
}

/// One of an expert's three matrices with its bias, of all slots: where it lies in the layer's memory.
struct Part {
  const PackedMatrix& (*matrix)(const MlpWeights&);
  const std::vector<float>& (*bias)(const MlpWeights&);
  cuda::SlotMatrices DeviceLayer::*place;
};
constexpr Part kParts[] = {
    {[](const MlpWeights& w) -> const PackedMatrix& { return w.gate; },
     [](const MlpWeights& w) -> const std::vector<float>& { return w.gate_bias; }, &DeviceLayer::gate},
    {[](const MlpWeights& w) -> const PackedMatrix& { return w.up; },
     [](const MlpWeights& w) -> const std::vector<float>& { return w.up_bias; }, &DeviceLayer::up},
    {[](const MlpWeights& w) -> const PackedMatrix& { return w.down; },
     [](const MlpWeights& w) -> const std::vector<float>& { return w.down_bias; }, &DeviceLayer::down},
};

std::size_t PartBytes(const Part& part, const ExpertShard::Layer& layer) {
  const MlpWeights& first = *layer.weights.front();
  return layer.weights.size() * (DeviceForm(part.matrix(first)).bytes() + part.bias(first).size() * sizeof(float));
}

/// The matrices of all slots, then their biases, to the upload's target; `progress` counts bytes.
Status WritePart(DeviceUpload& upload, const Part& part, const ExpertShard::Layer& layer, UploadProgress& progress,
                 const UploadObserver& observer) {
  for (const std::shared_ptr<const MlpWeights>& expert : layer.weights) {
    const PackedMatrix& matrix = part.matrix(*expert);
    const DeviceMatrixForm form = DeviceForm(matrix);
    for (std::size_t panel = 0; panel < form.panels; ++panel) {
      MOE_ASSIGN_OR_RETURN(const std::span<std::byte> out, upload.Next(form.panel_bytes));
      cuda::WriteDevicePanel(matrix, panel, out);
    }
    progress.uploaded_bytes += form.bytes();
    if (observer && form.panels > 0) observer(progress);
  }
  for (const std::shared_ptr<const MlpWeights>& expert : layer.weights) {
    const std::vector<float>& bias = part.bias(*expert);
    if (bias.empty()) continue;
    MOE_ASSIGN_OR_RETURN(const std::span<std::byte> out, upload.Next(bias.size() * sizeof(float)));
    std::memcpy(out.data(), bias.data(), out.size());
    progress.uploaded_bytes += out.size();
  }
  return upload.Flush();
}

}  // namespace

Result<DeviceUpload> DeviceUpload::Make(DeviceApi& device, DeviceStream stream, std::size_t largest_piece) {
  DeviceUpload upload(device, stream);
  MOE_ASSIGN_OR_RETURN(upload.staging_, PinnedBuffer::Allocate(device, 2 * std::max(kHalfBytes, largest_piece)));
  for (Event& event : upload.copied_) {
    MOE_ASSIGN_OR_RETURN(event, MakeEvent(device));
  }
  return upload;
}

void DeviceUpload::Begin(DeviceSpan target) {
  target_ = target;
  written_ = 0;
}

Result<std::span<std::byte>> DeviceUpload::Next(std::size_t bytes) {
  const std::size_t half_bytes = staging_.span().size() / 2;
  MOE_CHECK(bytes <= half_bytes, "a piece is longer than half of the staging memory");
  if (filled_ + bytes > half_bytes) MOE_RETURN_IF_ERROR(Flush());
  const std::span<std::byte> piece = staging_.span().subspan(half_ * half_bytes + filled_, bytes);
  filled_ += bytes;
  return piece;
}

Status DeviceUpload::Flush() {
  if (filled_ == 0) return Status::Ok();
  const std::span<const std::byte> from = staging_.span().subspan(half_ * (staging_.span().size() / 2), filled_);
  MOE_RETURN_IF_ERROR(device_->CopyToDevice(from, target_.subspan(written_, filled_), stream_));
  MOE_RETURN_IF_ERROR(device_->RecordEvent(copied_[half_].get(), stream_));
  written_ += filled_;
  filled_ = 0;
  half_ = 1 - half_;
  return device_->SynchronizeEvent(copied_[half_].get());  // the other half is free again
}

Status DeviceUpload::Finish() {
  MOE_RETURN_IF_ERROR(Flush());
  return device_->SynchronizeStream(stream_);
}

Status UploadLayer(DeviceApi& device, DeviceUpload& upload, const ExpertShard::Layer& layer,
                   const UploadObserver& observer, DeviceLayer& to) {
  const MlpWeights& first = *layer.weights.front();
  to.slots = layer.weights.size();
  to.hidden = first.down.rows();
  to.intermediate = first.down.cols();
  to.type = first.down.type();
  to.limit = layer.mlp.limit;
  if (to.type == WeightType::kF32)
    return InvalidArgument("layer ", layer.layer, ": no device computes with weights in f32 (bf16, f16, int8, int4)");
  MOE_ASSIGN_OR_RETURN(to.activation, ActivationOf(layer));
  UploadProgress progress{.layer = layer.layer};
  std::size_t room = 0;
  for (const Part& part : kParts) {
    progress.bytes += PartBytes(part, layer);
    room += Aligned(PartBytes(part, layer));
  }
  Result<DeviceBuffer> memory = DeviceBuffer::Allocate(device, room);
  if (!memory.ok()) return memory.status().WithContext(Cat("weights of layer ", layer.layer));
  to.memory = *std::move(memory);
  std::size_t at = 0;
  for (const Part& part : kParts) {
    const DeviceMatrixForm form = DeviceForm(part.matrix(first));
    if (form.panels == 0) continue;
    const std::size_t bytes = PartBytes(part, layer);
    const DeviceSpan span = to.memory.span().subspan(at, bytes);
    at += Aligned(bytes);
    const std::size_t bias_at = to.slots * form.bytes();
    const auto* weights = span.as<const std::byte>();
    const auto* bias = reinterpret_cast<const float*>(weights + bias_at);
    to.*part.place = cuda::SlotsOf(form, weights, bytes > bias_at ? bias : nullptr);
    upload.Begin(span);
    MOE_RETURN_IF_ERROR(WritePart(upload, part, layer, progress, observer));
  }
  return upload.Finish();
}

}  // namespace moe
