#include "experts/cuda_expert_backend.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/check.h"
#include "kernels/quantize.h"

namespace moe {
namespace {

using cuda::ProductRows;
using cuda::RowBytes;
using cuda::SlotRows;

// The capacities of captured graphs. A step copies up to four times the rows that it has: of eight rows of hidden 4096
// that is 0.4 MB too much each way, 16 µs of PCIe 4, and no more than that because most steps are near their last size.
constexpr std::array<std::size_t, 3> kCapacities = {8, 32, kFixedCapacityRows};

constexpr std::size_t kRowsAlignment = 256;  // of the rows behind the offsets

/// Buffers for one step at a time. Shapes are those of the limits; a layer uses the beginning of each.
struct Workspace {
  PinnedBuffer staged_in;   // offsets (slots + 1), then from rows_at on (rows, hidden) of fp32
  PinnedBuffer staged_out;  // (rows, hidden) of fp32
  DeviceBuffer in;          // as staged_in
  DeviceBuffer out;         // as staged_out
  DeviceBuffer ready_in;    // (rows, hidden) as products read them
  DeviceBuffer ready_inner;
  DeviceBuffer in_scales;  // integers: (rows, groups)
  DeviceBuffer inner_scales;
  DeviceBuffer inner;  // integers: (rows, intermediate) of fp32

  // The exact-size path of 16-bit weights.
  DeviceBuffer gate_out;          // (rows, intermediate), 16 bits
  DeviceBuffer up_out;            // (rows, intermediate)
  DeviceBuffer down_out;          // (rows, hidden)
  PinnedBuffer staged_addresses;  // Addresses of gate and up, then of down
  DeviceBuffer addresses;
};

/// The matrices of a grouped product, as three arrays of addresses.
struct Addresses {
  std::span<const void*> all;
  std::size_t count = 0;  // room in each array

  const void*& weights(std::size_t i) const { return all[i]; }
  const void*& in(std::size_t i) const { return all[count + i]; }
  const void*& out(std::size_t i) const { return all[2 * count + i]; }
};

class CudaExpertBackend final : public ExpertBackend {
 public:
  CudaExpertBackend(DeviceApi& device, const CudaExpertOptions& options) : api_(device), options_(options) {}
  ~CudaExpertBackend() override {
    if (stream_) (void)api_.SynchronizeStream(stream_.get());  // nothing may be freed under work
  }

  Status Start();

  std::string_view device() const override { return name_; }
  Status Prepare(const ExpertShard::Layer& layer) override;
  Status CheckMigration() const override {
    return Unimplemented("experts on ", name_, " do not move while they are served; restart with the placement");
  }
  Status Run(const ExpertShard::Layer& layer, const GroupedRows& rows) override;

 private:
  bool quantized() const { return IsQuantized(options_.type); }
  Status MakeWorkspace();
  Status CaptureGraphs(DeviceLayer& layer);
  Status EnqueueFixed(const DeviceLayer& layer, std::size_t capacity);
  Status EnqueueExact(const DeviceLayer& layer, const GroupedRows& rows);
  Status EnqueueKernels(const DeviceLayer& layer, std::size_t max_rows);
  Status EnqueueGroupedProducts(const DeviceLayer& layer, const GroupedRows& rows);
  void ListProblems(const DeviceLayer& layer, const GroupedRows& rows);
  Status EnqueueProduct(std::size_t product, std::size_t outputs, std::size_t inputs, int count);
  Status CopyIn(std::size_t rows, std::size_t hidden);
  Status CopyOut(std::size_t rows, std::size_t hidden);

  SlotRows RowsOf(const DeviceLayer& layer, std::size_t max_rows) const {
    return {.offsets = work_.in.span().as<const std::uint32_t>(),
            .slots = static_cast<std::uint32_t>(layer.slots),
            .max_rows = static_cast<std::uint32_t>(max_rows)};
  }
  const float* in_rows() const { return reinterpret_cast<const float*>(work_.in.span().as<std::byte>() + rows_at_); }
  ProductRows ready_in() const {
    return {.values = work_.ready_in.span().as<std::byte>(), .scales = work_.in_scales.span().as<float>()};
  }
  std::size_t AddressRoom() const { return 2 * options_.slots; }  // of each array
  Addresses StagedAddresses(std::size_t product) const {
    auto* first = reinterpret_cast<const void**>(work_.staged_addresses.span().data()) + product * 3 * AddressRoom();
    return {{first, 3 * AddressRoom()}, AddressRoom()};
  }
  ProductRows ready_inner() const {
    return {.values = work_.ready_inner.span().as<std::byte>(), .scales = work_.inner_scales.span().as<float>()};
  }

  DeviceApi& api_;
  const CudaExpertOptions options_;
  std::string name_;
  std::size_t rows_at_ = 0;
  std::vector<std::size_t> capacities_;  // of the graphs, ascending
  Stream stream_;
  Event done_;
  Workspace work_;
  std::vector<GemmGroup> groups_;  // of the products under way
  std::unordered_map<const ExpertShard::Layer*, DeviceLayer> layers_;
};

Status CudaExpertBackend::Start() {
  if (options_.type == WeightType::kF32)
    return InvalidArgument("no device computes with experts in f32 (bf16, f16, int8, int4)");
  MOE_CHECK(options_.rows > 0 && options_.slots > 0 && options_.hidden > 0 && options_.intermediate > 0);
  MOE_RETURN_IF_ERROR(api_.SetDevice(options_.device));
  MOE_ASSIGN_OR_RETURN(const DeviceProperties properties, api_.Properties(options_.device));
  name_ = Cat("cuda:", options_.device, " ", properties.name);
  MOE_ASSIGN_OR_RETURN(stream_, MakeStream(api_));
  MOE_ASSIGN_OR_RETURN(done_, MakeEvent(api_));
  if (options_.path != CudaExpertOptions::Path::kExactSize) {
    for (const std::size_t capacity : kCapacities)
      if (capacities_.empty() || capacities_.back() < options_.rows)
        capacities_.push_back(std::min(capacity, options_.rows));
    if (options_.path == CudaExpertOptions::Path::kFixedCapacity && capacities_.back() < options_.rows)
      capacities_.push_back(options_.rows);
  }
  return MakeWorkspace();
}

Status CudaExpertBackend::MakeWorkspace() {
  const std::size_t rows = options_.rows;
  const std::size_t hidden = options_.hidden;
  const std::size_t intermediate = options_.intermediate;
  const std::size_t offsets_bytes = (options_.slots + 1) * sizeof(std::uint32_t);
  rows_at_ = (offsets_bytes + kRowsAlignment - 1) / kRowsAlignment * kRowsAlignment;
  const std::size_t in_bytes = rows_at_ + rows * hidden * sizeof(float);
  const std::size_t out_bytes = rows * hidden * sizeof(float);
  const auto on_device = [&](DeviceBuffer& buffer, std::size_t bytes) -> Status {
    MOE_ASSIGN_OR_RETURN(buffer, DeviceBuffer::Allocate(api_, std::max<std::size_t>(1, bytes)));
    return Status::Ok();
  };
  const auto pinned = [&](PinnedBuffer& buffer, std::size_t bytes) -> Status {
    MOE_ASSIGN_OR_RETURN(buffer, PinnedBuffer::Allocate(api_, std::max<std::size_t>(1, bytes)));
    return Status::Ok();
  };
  MOE_RETURN_IF_ERROR(pinned(work_.staged_in, in_bytes));
  MOE_RETURN_IF_ERROR(pinned(work_.staged_out, out_bytes));
  std::ranges::fill(work_.staged_in.span(), std::byte{0});
  MOE_RETURN_IF_ERROR(on_device(work_.in, in_bytes));
  MOE_RETURN_IF_ERROR(on_device(work_.out, out_bytes));
  MOE_RETURN_IF_ERROR(on_device(work_.ready_in, rows * RowBytes(hidden, options_.type)));
  MOE_RETURN_IF_ERROR(on_device(work_.ready_inner, rows * RowBytes(intermediate, options_.type)));
  if (quantized()) {
    MOE_RETURN_IF_ERROR(on_device(work_.in_scales, rows * GroupsOf(hidden, options_.type) * sizeof(float)));
    MOE_RETURN_IF_ERROR(on_device(work_.inner_scales, rows * GroupsOf(intermediate, options_.type) * sizeof(float)));
    return on_device(work_.inner, rows * intermediate * sizeof(float));
  }
  if (!capacities_.empty() && capacities_.back() >= rows) return Status::Ok();  // every step has a fixed capacity
  MOE_RETURN_IF_ERROR(api_.PrepareGemm());
  const std::size_t address_bytes = 2 * 3 * AddressRoom() * sizeof(void*);
  MOE_RETURN_IF_ERROR(on_device(work_.gate_out, rows * intermediate * 2));
  MOE_RETURN_IF_ERROR(on_device(work_.up_out, rows * intermediate * 2));
  MOE_RETURN_IF_ERROR(on_device(work_.down_out, rows * hidden * 2));
  MOE_RETURN_IF_ERROR(pinned(work_.staged_addresses, address_bytes));
  groups_.reserve(options_.slots);
  return on_device(work_.addresses, address_bytes);
}

Status CudaExpertBackend::Prepare(const ExpertShard::Layer& layer) {
  MOE_CHECK(!layers_.contains(&layer), "a layer is prepared twice");
  if (layer.weights.empty()) return Status::Ok();
  MOE_RETURN_IF_ERROR(api_.SetDevice(options_.device));
  const std::size_t largest_piece =
      std::max({PackedMatrix::kPanelWidth * 4 * std::max(options_.hidden, options_.intermediate),
                options_.hidden * sizeof(float), options_.intermediate * sizeof(float)});
  MOE_ASSIGN_OR_RETURN(DeviceUpload upload, DeviceUpload::Make(api_, stream_.get(), largest_piece));
  DeviceLayer on_device;
  Status status = UploadLayer(api_, upload, layer, options_.observer, on_device);
  if (status.ok()) {
    MOE_CHECK(on_device.slots <= options_.slots && on_device.hidden <= options_.hidden &&
              on_device.intermediate <= options_.intermediate && on_device.type == options_.type);
    status = CaptureGraphs(on_device);
  }
  if (!status.ok()) {
    (void)api_.SynchronizeStream(stream_.get());  // nothing may be freed under work
    return status;
  }
  layers_.emplace(&layer, std::move(on_device));
  return status;
}

// The first launch of a kernel loads it, which a capture does not allow: so the step runs once before, without rows.
Status CudaExpertBackend::CaptureGraphs(DeviceLayer& layer) {
  std::memset(work_.staged_in.span().data(), 0, (layer.slots + 1) * sizeof(std::uint32_t));
  for (const std::size_t capacity : capacities_) {
    if (layer.graphs.empty()) MOE_RETURN_IF_ERROR(EnqueueFixed(layer, capacity));
    MOE_RETURN_IF_ERROR(api_.BeginCapture(stream_.get()));
    const Status enqueued = EnqueueFixed(layer, capacity);
    Result<Graph> graph = FinishCapture(api_, stream_.get());  // also of a failure: the stream is in capture until then
    MOE_RETURN_IF_ERROR(enqueued);
    if (!graph.ok()) return graph.status();
    layer.graphs.push_back(*std::move(graph));
  }
  return api_.SynchronizeStream(stream_.get());
}

Status CudaExpertBackend::Run(const ExpertShard::Layer& layer, const GroupedRows& rows) {
  const std::size_t count = rows.in.rows();
  const std::size_t hidden = rows.in.cols();
  MOE_CHECK(rows.offsets.size() == layer.weights.size() + 1 && rows.offsets.back() == count && count <= options_.rows);
  if (count == 0) return Status::Ok();
  const auto found = layers_.find(&layer);
  MOE_CHECK(found != layers_.end() && found->second.hidden == hidden, "a layer runs that was not prepared");
  const DeviceLayer& on_device = found->second;
  MOE_RETURN_IF_ERROR(api_.SetDevice(options_.device));  // of this thread; CUDA compares two numbers

  std::memcpy(work_.staged_in.span().data(), rows.offsets.data(), rows.offsets.size_bytes());
  auto* staged = reinterpret_cast<float*>(work_.staged_in.span().data() + rows_at_);
  for (std::size_t row = 0; row < count; ++row) std::ranges::copy(rows.in.row(row), staged + row * hidden);
  const auto capacity = std::ranges::lower_bound(capacities_, count);
  if (capacity != capacities_.end()) {
    const Graph& graph = on_device.graphs[static_cast<std::size_t>(capacity - capacities_.begin())];
    MOE_RETURN_IF_ERROR(api_.LaunchGraph(graph.get(), stream_.get()));
  } else {
    MOE_RETURN_IF_ERROR(EnqueueExact(on_device, rows));
  }
  MOE_RETURN_IF_ERROR(api_.RecordEvent(done_.get(), stream_.get()));
  MOE_RETURN_IF_ERROR(api_.SynchronizeEvent(done_.get()));
  const auto* results = reinterpret_cast<const float*>(work_.staged_out.span().data());
  for (std::size_t row = 0; row < count; ++row) std::copy_n(results + row * hidden, hidden, rows.out.row(row).begin());
  return Status::Ok();
}

Status CudaExpertBackend::CopyIn(std::size_t rows, std::size_t hidden) {
  const std::size_t bytes = rows_at_ + rows * hidden * sizeof(float);
  return api_.CopyToDevice(work_.staged_in.span().first(bytes), work_.in.span().subspan(0, bytes), stream_.get());
}

Status CudaExpertBackend::CopyOut(std::size_t rows, std::size_t hidden) {
  const std::size_t bytes = rows * hidden * sizeof(float);
  return api_.CopyToHost(work_.out.span().subspan(0, bytes), work_.staged_out.span().first(bytes), stream_.get());
}

Status CudaExpertBackend::EnqueueFixed(const DeviceLayer& layer, std::size_t capacity) {
  MOE_RETURN_IF_ERROR(CopyIn(capacity, layer.hidden));
  MOE_RETURN_IF_ERROR(EnqueueKernels(layer, capacity));
  return CopyOut(capacity, layer.hidden);
}

Status CudaExpertBackend::EnqueueExact(const DeviceLayer& layer, const GroupedRows& rows) {
  const std::size_t count = rows.in.rows();
  MOE_RETURN_IF_ERROR(CopyIn(count, layer.hidden));
  MOE_RETURN_IF_ERROR(quantized() ? EnqueueKernels(layer, count) : EnqueueGroupedProducts(layer, rows));
  return CopyOut(count, layer.hidden);
}

// Both products by our own kernels.
Status CudaExpertBackend::EnqueueKernels(const DeviceLayer& layer, std::size_t max_rows) {
  const SlotRows rows = RowsOf(layer, max_rows);
  cuda::MakeReady(rows, in_rows(), layer.hidden, layer.type, ready_in(), stream_.get());
  MOE_RETURN_IF_ERROR(api_.LaunchStatus("the experts' input"));
  cuda::InnerProduct({.rows = rows,
                      .type = layer.type,
                      .in = ready_in(),
                      .gate = layer.gate,
                      .up = layer.up,
                      .hidden = layer.hidden,
                      .intermediate = layer.intermediate,
                      .activation = layer.activation,
                      .limit = layer.limit,
                      .inner = work_.inner.span().as<float>(),
                      .narrow_inner = ready_inner()},
                     stream_.get());
  MOE_RETURN_IF_ERROR(api_.LaunchStatus("the experts' gate and up"));
  if (quantized()) {
    const auto* inner = work_.inner.span().as<const float>();
    cuda::MakeReady(rows, inner, layer.intermediate, layer.type, ready_inner(), stream_.get());
    MOE_RETURN_IF_ERROR(api_.LaunchStatus("the experts' inner rows"));
  }
  cuda::OuterProduct({.rows = rows,
                      .type = layer.type,
                      .in = ready_inner(),
                      .down = layer.down,
                      .hidden = layer.hidden,
                      .intermediate = layer.intermediate,
                      .out = work_.out.span().as<float>()},
                     stream_.get());
  return api_.LaunchStatus("the experts' down");
}

// The problems of both products: one group for each slot that has rows, its gate and up together.
void CudaExpertBackend::ListProblems(const DeviceLayer& layer, const GroupedRows& rows) {
  const std::size_t matrices = layer.gated() ? 2 : 1;
  const auto at = [](const DeviceBuffer& buffer, std::size_t row, std::size_t row_bytes) {
    return buffer.span().as<std::byte>() + row * row_bytes;
  };
  const Addresses inner = StagedAddresses(0);
  const Addresses outer = StagedAddresses(1);
  groups_.clear();
  for (std::size_t slot = 0; slot < layer.slots; ++slot) {
    const std::size_t begin = rows.offsets[slot];
    if (rows.offsets[slot + 1] == begin) continue;
    const std::size_t problem = groups_.size();
    for (std::size_t m = 0; m < matrices; ++m) {
      const bool up = m + 1 == matrices;
      const std::size_t i = problem * matrices + m;
      inner.weights(i) = (up ? layer.up : layer.gate).weights + slot * layer.up.slot_bytes;
      inner.in(i) = at(work_.ready_in, begin, RowBytes(layer.hidden, layer.type));
      inner.out(i) = at(up ? work_.up_out : work_.gate_out, begin, layer.intermediate * 2);
    }
    outer.weights(problem) = layer.down.weights + slot * layer.down.slot_bytes;
    outer.in(problem) = at(work_.ready_inner, begin, RowBytes(layer.intermediate, layer.type));
    outer.out(problem) = at(work_.down_out, begin, layer.hidden * 2);
    groups_.push_back({.rows = static_cast<int>(rows.offsets[slot + 1] - begin)});
  }
}

// Product 0 or 1 of the listed problems, all with `count` matrices (outputs, inputs) a slot.
Status CudaExpertBackend::EnqueueProduct(std::size_t product, std::size_t outputs, std::size_t inputs, int count) {
  for (GemmGroup& group : groups_) {
    group.outputs = static_cast<int>(outputs);
    group.inner = static_cast<int>(cuda::PaddedInputs(inputs, options_.type));
    group.count = count;
  }
  const std::size_t problems = groups_.size() * static_cast<std::size_t>(count);
  const auto part = [&](std::size_t i) {
    return work_.addresses.span().subspan((product * 3 + i) * AddressRoom() * sizeof(void*), problems * sizeof(void*));
  };
  // Results have the type of the inputs: with 16-bit inputs the call is documented for no other.
  const GemmType type = options_.type == WeightType::kBf16 ? GemmType::kBf16 : GemmType::kF16;
  return api_.RunGroupedGemm(
      {.input_type = type, .output_type = type, .groups = groups_, .weights = part(0), .in = part(1), .out = part(2)},
      stream_.get());
}

// Both products by cuBLAS, and what is left to do around them.
Status CudaExpertBackend::EnqueueGroupedProducts(const DeviceLayer& layer, const GroupedRows& rows) {
  ListProblems(layer, rows);
  MOE_RETURN_IF_ERROR(api_.CopyToDevice(work_.staged_addresses.span(), work_.addresses.span(), stream_.get()));
  const SlotRows slot_rows = RowsOf(layer, rows.in.rows());
  cuda::MakeReady(slot_rows, in_rows(), layer.hidden, layer.type, ready_in(), stream_.get());
  MOE_RETURN_IF_ERROR(api_.LaunchStatus("the experts' input"));
  MOE_RETURN_IF_ERROR(EnqueueProduct(0, layer.intermediate, layer.hidden, layer.gated() ? 2 : 1));
  cuda::ActivateRows({.rows = slot_rows,
                      .type = layer.type,
                      .gate = layer.gated() ? work_.gate_out.span().as<std::byte>() : nullptr,
                      .up = work_.up_out.span().as<std::byte>(),
                      .gate_bias = layer.gate.bias,
                      .up_bias = layer.up.bias,
                      .intermediate = layer.intermediate,
                      .activation = layer.activation,
                      .limit = layer.limit,
                      .inner = ready_inner()},
                     stream_.get());
  MOE_RETURN_IF_ERROR(api_.LaunchStatus("the experts' activation"));
  MOE_RETURN_IF_ERROR(EnqueueProduct(1, layer.hidden, layer.intermediate, 1));
  cuda::WidenRows(slot_rows, work_.down_out.span().as<std::byte>(), layer.hidden, layer.type, layer.down.bias,
                  work_.out.span().as<float>(), stream_.get());
  return api_.LaunchStatus("the experts' output");
}

}  // namespace

Result<std::unique_ptr<ExpertBackend>> MakeCudaExpertBackend(DeviceApi& device, const CudaExpertOptions& options) {
  auto backend = std::make_unique<CudaExpertBackend>(device, options);
  MOE_RETURN_IF_ERROR(backend->Start());
  return std::unique_ptr<ExpertBackend>(std::move(backend));
}

}  // namespace moe
