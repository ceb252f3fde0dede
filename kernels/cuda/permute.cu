// Rows to their slots and back: counts, exclusive offsets, the place of each pair, copies and the weighted sum.
#include "core/check.h"
#include "kernels/cuda/execution.cuh"
#include "kernels/cuda/router_kernels.h"

namespace moe::cuda {
namespace {

constexpr unsigned kThreads = 128;
constexpr unsigned kWarps = kThreads / kWarpLanes;

/// The sum of the lanes' values up to and with the own one.
MOE_DEVICE std::uint32_t SumUpTo(std::uint32_t value) {
  for (unsigned distance = 1; distance < kWarpLanes; distance *= 2) {
    const std::uint32_t below = ShuffleUp(value, distance);
    if (LaneIndex() >= distance) value += below;
  }
  return value;
}

/// One block: a few thousand pairs are counted faster than a second launch would begin.
MOE_KERNEL void OffsetsKernel(SortTask task) {
  auto counts = DynamicShared<std::uint32_t>();  // (slots)
  for (std::uint32_t s = ThreadIndex(); s < task.slots; s += kThreads) counts[s] = 0;
  Barrier();
  for (std::uint32_t pair = ThreadIndex(); pair < task.pairs; pair += kThreads)
    if (task.slot[pair] >= 0) AtomicAdd(counts, static_cast<std::uint32_t>(task.slot[pair]), 1u);
  Barrier();
  if (WarpIndex() > 0) return;
  std::uint32_t before = 0;  // rows of the slots below `first`
  for (std::uint32_t first = 0; first < task.slots; first += kWarpLanes) {
    const std::uint32_t s = first + LaneIndex();
    const std::uint32_t count = s < task.slots ? static_cast<std::uint32_t>(counts[s]) : 0u;
    const std::uint32_t sum = SumUpTo(count);
    if (s < task.slots) task.offsets[s] = before + sum - count;
    before += Shuffle(sum, kWarpLanes - 1);
  }
  if (LaneIndex() == 0) task.offsets[task.slots] = before;
}

/// A warp a slot, which looks at all pairs in their order; the warp of slot `slots` marks those that nobody wants.
MOE_KERNEL void ScatterKernel(SortTask task) {
  const std::uint32_t slot = BlockIndex().x * kWarps + WarpIndex();
  if (slot > task.slots) return;
  std::uint32_t next = slot < task.slots ? task.offsets[slot] : 0u;
  for (std::uint32_t first = 0; first < task.pairs; first += kWarpLanes) {
    const std::uint32_t pair = first + LaneIndex();
    const std::int32_t wanted = pair < task.pairs ? task.slot[pair] : static_cast<std::int32_t>(task.slots);
    const bool unwanted = wanted < 0 && slot == task.slots;
    const bool mine = slot < task.slots && wanted == static_cast<std::int32_t>(slot);
    const unsigned all = Ballot(mine);
    if (mine) task.row_of_pair[pair] = next + CountBits(all & ((1u << LaneIndex()) - 1u));
    if (unwanted) task.row_of_pair[pair] = kNoRow;
    next += CountBits(all);
  }
}

/// A block a pair.
MOE_KERNEL void PermuteKernel(PermuteTask task) {
  const std::uint32_t pair = BlockIndex().x;
  const std::uint32_t row = task.row_of_pair[pair];
  if (row == kNoRow) return;
  const float* from = task.tokens + pair / task.pairs_per_token * task.hidden;
  float* to = task.rows + row * task.hidden;
  for (std::size_t col = ThreadIndex(); col < task.hidden; col += kThreads) to[col] = from[col];
}

/// A block for kThreads columns of a token.
MOE_KERNEL void CombineKernel(CombineTask task) {
  const std::size_t token = BlockIndex().x;
  const std::size_t col = BlockIndex().y * kThreads + ThreadIndex();
  if (col >= task.hidden) return;
  float sum = 0;
  for (std::uint32_t j = 0; j < task.pairs_per_token; ++j) {
    const std::size_t pair = token * task.pairs_per_token + j;
    const float weight = task.weights != nullptr ? task.weights[pair] : 1.0f;
    const std::uint32_t row = task.row_of_pair[pair];
    if (weight == 0.0f || row == kNoRow) continue;
    sum = Fma(weight, task.rows[row * task.hidden + col], sum);
  }
  task.out[token * task.hidden + col] = sum;
}

}  // namespace

void SortBySlot(const SortTask& task, DeviceStream stream) {
  MOE_CHECK(task.slots <= SortTask::kMaxSlots, "more slots than a device sorts");
  Launch("Offsets", OffsetsKernel,
         {.threads = kThreads, .shared_bytes = task.slots * sizeof(std::uint32_t), .stream = stream}, task);
  if (task.pairs == 0) return;
  Launch("Scatter", ScatterKernel,
         {.blocks = {.x = task.slots / kWarps + 1}, .threads = kThreads, .shared_bytes = 0, .stream = stream}, task);
}

void PermuteRows(const PermuteTask& task, DeviceStream stream) {
  if (task.pairs == 0) return;
  Launch("Permute", PermuteKernel,
         {.blocks = {.x = task.pairs}, .threads = kThreads, .shared_bytes = 0, .stream = stream}, task);
}

void CombineRows(const CombineTask& task, DeviceStream stream) {
  if (task.tokens == 0) return;
  const auto parts = static_cast<unsigned>((task.hidden + kThreads - 1) / kThreads);
  Launch("Combine", CombineKernel,
         {.blocks = {.x = task.tokens, .y = parts}, .threads = kThreads, .shared_bytes = 0, .stream = stream}, task);
}

}  // namespace moe::cuda
