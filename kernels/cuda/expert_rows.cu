// Rows of activations from one form to another: ready for products, through the activation, back to fp32.
#include "kernels/cuda/arithmetic.cuh"
#include "kernels/cuda/execution.cuh"
#include "kernels/cuda/expert_kernels.h"

namespace moe::cuda {
namespace {

constexpr unsigned kWarps = 4;
constexpr unsigned kThreads = kWarps * kWarpLanes;
constexpr float kRounder =
    0x1.8p+23f;  // added to a number below 2^22 it leaves an integer, ties to even, in the low bits
// Blocks that share a slot's rows.
constexpr std::uint32_t kMaxRowBlocks = 64;

unsigned BlocksFor(std::size_t count, std::size_t block) { return static_cast<unsigned>((count + block - 1) / block); }

struct RowsTask {
  SlotRows rows;
  const float* in = nullptr;  // (rows, cols)
  std::size_t cols = 0;
  ProductRows out;
};

/// A block for kThreads columns of a row.
template <bool kIsBf16>
MOE_KERNEL void NarrowKernel(RowsTask task) {
  const std::size_t row = BlockIndex().x;
  const std::size_t padded = PaddedInputs(task.cols, WeightType::kBf16);
  const std::size_t col = BlockIndex().y * kThreads + ThreadIndex();
  if (row >= task.rows.offsets[task.rows.slots] || col >= padded) return;
  const float value = col < task.cols ? task.in[row * task.cols + col] : 0.0f;
  reinterpret_cast<std::uint16_t*>(task.out.values)[row * padded + col] = Narrow<kIsBf16>(value);
}

/// A warp for a group of kGroup inputs of a row, as kernels/quantize.h says.
template <unsigned kGroup>
MOE_KERNEL void QuantizeKernel(RowsTask task) {
  constexpr unsigned kValues = kGroup / kWarpLanes;  // of a lane
  const std::size_t row = BlockIndex().x;
  const std::size_t groups = (task.cols + kGroup - 1) / kGroup;
  const std::size_t group = BlockIndex().y * kWarps + WarpIndex();
  if (row >= task.rows.offsets[task.rows.slots] || group >= groups) return;  // all of the warp
  float values[kValues];
  float magnitude = 0;
  bool finite = true;
  MOE_UNROLL_LOOP
  for (unsigned i = 0; i < kValues; ++i) {
    const std::size_t col = group * kGroup + i * kWarpLanes + LaneIndex();
    values[i] = col < task.cols ? task.in[row * task.cols + col] : 0.0f;
    const float absolute = FloatOf(BitsOf(values[i]) & 0x7fffffffu);
    finite = finite && absolute < FloatOf(0x7f800000u);
    magnitude = absolute > magnitude ? absolute : magnitude;
  }
  magnitude = WarpMax(magnitude);
  const bool bad = Ballot(!finite) != 0;
  const bool counts = !bad && magnitude >= kSmallestMagnitude;
  const float inverse = counts ? 127.0f / magnitude : 0.0f;
  MOE_UNROLL_LOOP
  for (unsigned i = 0; i < kValues; ++i) {
    const float rounded = AtLeast(AtMost(Fma(values[i], inverse, kRounder), kRounder + 127.0f), kRounder - 127.0f);
    const std::size_t at = row * groups * kGroup + group * kGroup + i * kWarpLanes + LaneIndex();
    task.out.values[at] = static_cast<std::byte>(counts ? BitsOf(rounded) & 0xffu : 0u);
  }
  if (LaneIndex() != 0) return;
  task.out.scales[row * groups + group] = bad ? FloatOf(0x7fc00000u) : counts ? magnitude / 127.0f : 0.0f;
}

/// Calls body(row) for the rows of the block's slot that are its own, one after the other.
template <typename Body>
MOE_DEVICE void ForEachRow(const SlotRows& rows, Body&& body) {
  const unsigned end = rows.offsets[BlockIndex().y + 1];
  for (unsigned row = rows.offsets[BlockIndex().y] + BlockIndex().z; row < end; row += GridBlocks().z) body(row);
}

template <bool kIsBf16>
MOE_KERNEL void ActivateKernel(ActivateTask task) {
  const std::size_t padded = PaddedInputs(task.intermediate, WeightType::kBf16);
  const std::size_t col = BlockIndex().x * kThreads + ThreadIndex();
  if (col >= padded) return;
  const bool gated = task.gate != nullptr;
  const auto* first = reinterpret_cast<const std::uint16_t*>(gated ? task.gate : task.up);
  const auto* second = reinterpret_cast<const std::uint16_t*>(task.up);
  const float* first_bias = gated ? task.gate_bias : task.up_bias;
  const std::size_t bias_at = BlockIndex().y * task.intermediate + col;
  ForEachRow(task.rows, [&](std::size_t row) {
    float value = 0;
    if (col < task.intermediate) {
      float gate = Widen<kIsBf16>(first[row * task.intermediate + col]);
      float up = Widen<kIsBf16>(second[row * task.intermediate + col]);
      if (first_bias != nullptr) gate = gate + first_bias[bias_at];
      if (task.up_bias != nullptr) up = up + task.up_bias[bias_at];
      value = Activate(task.activation, task.limit, gate, up);
    }
    reinterpret_cast<std::uint16_t*>(task.inner.values)[row * padded + col] = Narrow<kIsBf16>(value);
  });
}

struct WidenTask {
  SlotRows rows;
  const std::uint16_t* in = nullptr;  // (rows, cols)
  std::size_t cols = 0;
  const float* bias = nullptr;
  float* out = nullptr;
};

template <bool kIsBf16>
MOE_KERNEL void WidenKernel(WidenTask task) {
  const std::size_t col = BlockIndex().x * kThreads + ThreadIndex();
  if (col >= task.cols) return;
  ForEachRow(task.rows, [&](std::size_t row) {
    float value = Widen<kIsBf16>(task.in[row * task.cols + col]);
    if (task.bias != nullptr) value = value + task.bias[BlockIndex().y * task.cols + col];
    task.out[row * task.cols + col] = value;
  });
}

struct ScaleTask {
  SlotRows rows;
  const float* factors = nullptr;  // (rows)
  std::size_t cols = 0;
  float* in = nullptr;  // (rows, cols)
};

MOE_KERNEL void ScaleKernel(ScaleTask task) {
  const std::size_t row = BlockIndex().x;
  const std::size_t col = BlockIndex().y * kThreads + ThreadIndex();
  if (row >= task.rows.offsets[task.rows.slots] || col >= task.cols) return;
  float& value = task.in[row * task.cols + col];
  value = value * task.factors[row];
}

/// Blocks (row, part of its columns).
LaunchShape RowShape(const SlotRows& rows, unsigned parts, DeviceStream stream) {
  return {.blocks = {.x = rows.max_rows, .y = parts}, .threads = kThreads, .shared_bytes = 0, .stream = stream};
}

/// Blocks (part of the columns, slot, part of its rows).
LaunchShape SlotShape(const SlotRows& rows, std::size_t cols, DeviceStream stream) {
  const std::uint32_t share = rows.max_rows < kMaxRowBlocks ? rows.max_rows : kMaxRowBlocks;
  return {.blocks = {.x = BlocksFor(cols, kThreads), .y = rows.slots, .z = share},
          .threads = kThreads,
          .shared_bytes = 0,
          .stream = stream};
}

bool Nothing(const SlotRows& rows) { return rows.slots == 0 || rows.max_rows == 0; }

}  // namespace

void MakeReady(const SlotRows& rows, const float* in, std::size_t cols, WeightType type, const ProductRows& out,
               DeviceStream stream) {
  if (Nothing(rows)) return;
  const RowsTask task{.rows = rows, .in = in, .cols = cols, .out = out};
  const LaunchShape narrow = RowShape(rows, BlocksFor(PaddedInputs(cols, WeightType::kBf16), kThreads), stream);
  const LaunchShape quantize = RowShape(rows, BlocksFor(GroupsOf(cols, type), kWarps), stream);
  switch (type) {
    case WeightType::kBf16: return Launch("Narrow", NarrowKernel<true>, narrow, task);
    case WeightType::kF16: return Launch("Narrow", NarrowKernel<false>, narrow, task);
    case WeightType::kInt8: return Launch("Quantize", QuantizeKernel<64>, quantize, task);
    case WeightType::kInt4: return Launch("Quantize", QuantizeKernel<32>, quantize, task);
    case WeightType::kF32: break;
  }
  MOE_CHECK(false, "no kernel of a device takes weights in f32");
}

void ActivateRows(const ActivateTask& task, DeviceStream stream) {
  if (Nothing(task.rows)) return;
  const LaunchShape shape = SlotShape(task.rows, PaddedInputs(task.intermediate, task.type), stream);
  MOE_CHECK(!IsQuantized(task.type) && task.type != WeightType::kF32, "only 16-bit rows are activated apart");
  task.type == WeightType::kBf16 ? Launch("Activate", ActivateKernel<true>, shape, task)
                                 : Launch("Activate", ActivateKernel<false>, shape, task);
}

void WidenRows(const SlotRows& rows, const std::byte* in, std::size_t cols, WeightType type, const float* bias,
               float* out, DeviceStream stream) {
  if (Nothing(rows)) return;
  const WidenTask task{
      .rows = rows, .in = reinterpret_cast<const std::uint16_t*>(in), .cols = cols, .bias = bias, .out = out};
  MOE_CHECK(!IsQuantized(type) && type != WeightType::kF32, "only 16-bit rows are widened");
  const LaunchShape shape = SlotShape(rows, cols, stream);
  type == WeightType::kBf16 ? Launch("Widen", WidenKernel<true>, shape, task)
                            : Launch("Widen", WidenKernel<false>, shape, task);
}

void ScaleRows(const SlotRows& rows, const float* factors, std::size_t cols, float* in, DeviceStream stream) {
  if (Nothing(rows)) return;
  const ScaleTask task{.rows = rows, .factors = factors, .cols = cols, .in = in};
  Launch("Scale", ScaleKernel, RowShape(rows, BlocksFor(cols, kThreads), stream), task);
}

}  // namespace moe::cuda
