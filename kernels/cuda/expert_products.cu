// The grouped products of the fixed-capacity path: weights of every slot times the rows that the device finds in it.
//
// A block has four warps. Each computes 16 outputs of one slot for up to 32 rows at a time; the rows' inputs lie in
// shared memory, since all four read them, and each weight goes from memory to the one lane that needs it. A slot
// without rows costs a block that looks at two offsets.
#include "kernels/cuda/arithmetic.cuh"
#include "kernels/cuda/execution.cuh"
#include "kernels/cuda/expert_kernels.h"
#include "kernels/cuda/tile_mma.cuh"

namespace moe::cuda {
namespace {

constexpr unsigned kWarps = 4;
constexpr unsigned kThreads = kWarps * kWarpLanes;
constexpr unsigned kWarpOutputs = 16;
constexpr unsigned kBlockOutputs = kWarps * kWarpOutputs;
// Two tiles of 16 rows: with gate and up, integer dots and fp32 sums are 64 registers of a lane, which leaves room for
// loads under way. Decode rarely has more rows for one expert; more are taken 32 at a time.
constexpr unsigned kRowTiles = 2;
constexpr unsigned kTileRows = 16 * kRowTiles;
// Steps of 32 bytes of each row that lie in shared memory at a time: whole groups of integers.
constexpr unsigned kChunkSteps = 8;
constexpr unsigned kChunkPairs = kChunkSteps * 4;
// Pairs from one row to the next. Half a warp reads pairs t of four rows: 8 words further each time, modulo the 32
// banks, so that no two of its reads share one.
constexpr unsigned kRowPairs = kChunkPairs + 4;
// Blocks that share a slot's rows. Of use for prompts: eight times the outputs' blocks fill a device even when one slot
// has all rows.
constexpr std::uint32_t kMaxRowBlocks = 8;

template <WeightType kType>
struct Format;
template <>
struct Format<WeightType::kBf16> {
  static constexpr TileFormat kTile = TileFormat::kBf16;
  static constexpr unsigned kGroupSteps = 1;
};
template <>
struct Format<WeightType::kF16> {
  static constexpr TileFormat kTile = TileFormat::kF16;
  static constexpr unsigned kGroupSteps = 1;
};
template <>
struct Format<WeightType::kInt8> {
  static constexpr TileFormat kTile = TileFormat::kInt8;
  static constexpr unsigned kGroupSteps = 2;
};
template <>
struct Format<WeightType::kInt4> {
  static constexpr TileFormat kTile = TileFormat::kInt8;  // nibbles become bytes on their way
  static constexpr unsigned kGroupSteps = 1;
};
static_assert(kChunkSteps % Format<WeightType::kInt8>::kGroupSteps == 0);

/// What a warp reads of one matrix: a panel of 16 outputs.
struct WarpWeights {
  const std::byte* values = nullptr;
  const std::uint16_t* scales = nullptr;  // int8, int4: (groups, 16) in bf16
};

template <WeightType kType>
MOE_DEVICE WarpWeights WeightsOf(const SlotMatrices& matrices, unsigned slot, unsigned first_output, unsigned outputs) {
  // A warp past the end computes the last panel once more, which nobody stores.
  const unsigned last = (outputs - 1) / kWarpOutputs;
  const unsigned panel = first_output / kWarpOutputs;
  const std::byte* values =
      matrices.weights + slot * matrices.slot_bytes + (panel < last ? panel : last) * matrices.panel_bytes;
  return {values, reinterpret_cast<const std::uint16_t*>(values + matrices.value_bytes)};
}

/// The lane's words of one output of a step of 16-bit weights.
MOE_DEVICE WordPair FloatPair(const WarpWeights& weights, unsigned output, std::size_t row_bytes, unsigned step) {
  return reinterpret_cast<const WordPair*>(weights.values + output * row_bytes + step * 32)[LaneIndex() % 4];
}

// Stored integers to int8: 128 is taken off by turning the highest bit of each byte; of nibbles, 8, by way of 120 -
// 128, which needs no carry from one byte into the next.
MOE_DEVICE std::uint32_t Int8Word(std::uint32_t stored) { return stored ^ 0x80808080u; }
MOE_DEVICE std::uint32_t NibbleWord(std::uint32_t stored) {
  return ((stored & 0x0f0f0f0fu) + 0x78787878u) ^ 0x80808080u;
}

template <WeightType kType>
MOE_DEVICE WordPair IntegerPair(const WarpWeights& weights, unsigned output, unsigned step) {
  const auto* words = reinterpret_cast<const std::uint32_t*>(weights.values) + output;
  const unsigned t = LaneIndex() % 4;
  if constexpr (kType == WeightType::kInt8) {
    const unsigned word = step * 8 + 2 * t;
    return {Int8Word(words[word * kWarpOutputs]), Int8Word(words[(word + 1) * kWarpOutputs])};
  }
  const std::uint32_t both = words[(step * 4 + t) * kWarpOutputs];  // eight inputs
  return {NibbleWord(both), NibbleWord(both >> 4)};
}

template <WeightType kType>
MOE_DEVICE TileB LoadWeights(const WarpWeights& weights, std::size_t row_bytes, unsigned step) {
  const unsigned g = LaneIndex() / 4;
  if constexpr (IsQuantized(kType))
    return {IntegerPair<kType>(weights, g, step), IntegerPair<kType>(weights, g + 8, step)};
  return {FloatPair(weights, g, row_bytes, step), FloatPair(weights, g + 8, row_bytes, step)};
}

/// Rows [first, first + count) of a product, at most kTileRows.
struct RowTile {
  unsigned first = 0;
  unsigned count = 0;
};

/// The chunk of the rows from `step` on to shared memory; zeros for the rows that a tile has too many.
template <typename Shared>
MOE_DEVICE void LoadRows(const ProductRows& in, std::size_t row_bytes, const RowTile& rows, unsigned step,
                         unsigned steps, Shared& x) {
  const unsigned pairs = steps * 4;
  const unsigned padded = (rows.count + 15) / 16 * 16;
  for (unsigned i = ThreadIndex(); i < padded * pairs; i += kThreads) {
    const unsigned row = i / pairs;
    const unsigned pair = i % pairs;
    const std::byte* from = in.values + (rows.first + row) * row_bytes + step * 32;
    x[row * kRowPairs + pair] = row < rows.count ? reinterpret_cast<const WordPair*>(from)[pair] : WordPair{};
  }
}

template <typename Shared>
MOE_DEVICE TileA ReadRows(Shared& x, unsigned tile, unsigned step) {
  const unsigned row = tile * 16 + LaneIndex() / 4;
  const unsigned pair = step * 4 + LaneIndex() % 4;
  return {x[row * kRowPairs + pair], x[(row + 8) * kRowPairs + pair]};
}

/// sums = fma(dot, weight scale * row scale, sums), for a group of inputs.
MOE_DEVICE void AddGroup(const WarpWeights& weights, const ProductRows& in, const RowTile& rows, unsigned tile,
                         unsigned group, unsigned groups, const TileD<std::int32_t>& dots, TileD<float>& sums) {
  MOE_UNROLL_LOOP
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = tile * 16 + TileRow(i);
    const unsigned at = rows.first + (row < rows.count ? row : rows.count - 1);
    const float row_scale = in.scales[static_cast<std::size_t>(at) * groups + group];
    MOE_UNROLL_LOOP
    for (unsigned half = 0; half < 2; ++half) {
      const float both = WidenBf16(weights.scales[group * kWarpOutputs + TileOutput(half, i)]) * row_scale;
      sums.sums[half][i] = Fma(static_cast<float>(dots.sums[half][i]), both, sums.sums[half][i]);
    }
  }
}

/// sums[m][tile] = the rows times the 16 outputs of weights[m]. All threads of the block together.
template <WeightType kType, unsigned kMatrices, typename Shared>
MOE_DEVICE void Multiply(const ProductRows& in, std::size_t inputs, const RowTile& rows,
                         const WarpWeights (&weights)[kMatrices], Shared& x,
                         TileD<float> (&sums)[kMatrices][kRowTiles]) {
  constexpr unsigned kGroupSteps = Format<kType>::kGroupSteps;
  const std::size_t row_bytes = RowBytes(inputs, kType);
  const auto steps = static_cast<unsigned>(row_bytes / 32);
  for (unsigned first = 0; first < steps; first += kChunkSteps) {
    const unsigned count = steps - first < kChunkSteps ? steps - first : kChunkSteps;
    Barrier();  // the chunk before has been read
    LoadRows(in, row_bytes, rows, first, count, x);
    Barrier();
    for (unsigned step = 0; step < count; step += kGroupSteps) {
      [[maybe_unused]] TileD<std::int32_t> dots[kMatrices][kRowTiles] = {};
      MOE_UNROLL_LOOP
      for (unsigned s = step; s < step + kGroupSteps; ++s) {
        TileB b[kMatrices];
        MOE_UNROLL_LOOP
        for (unsigned m = 0; m < kMatrices; ++m) b[m] = LoadWeights<kType>(weights[m], row_bytes, first + s);
        MOE_UNROLL_LOOP
        for (unsigned tile = 0; tile < kRowTiles; ++tile) {
          if (tile * 16 >= rows.count) continue;
          const TileA a = ReadRows(x, tile, s);
          MOE_UNROLL_LOOP
          for (unsigned m = 0; m < kMatrices; ++m) {
            if constexpr (IsQuantized(kType)) {
              MultiplyTile<Format<kType>::kTile>(a, b[m], dots[m][tile]);
            } else {
              MultiplyTile<Format<kType>::kTile>(a, b[m], sums[m][tile]);
            }
          }
        }
      }
      if constexpr (IsQuantized(kType)) {
        const unsigned group = (first + step) / kGroupSteps;
        MOE_UNROLL_LOOP
        for (unsigned m = 0; m < kMatrices; ++m)
          for (unsigned tile = 0; tile < kRowTiles; ++tile)
            if (tile * 16 < rows.count)
              AddGroup(weights[m], in, rows, tile, group, steps / kGroupSteps, dots[m][tile], sums[m][tile]);
      }
    }
  }
}

/// Calls store(row, output, sum of each matrix) for the lane's part of the tile, outputs from `first_output` on.
template <unsigned kMatrices, typename Store>
MOE_DEVICE void ForEachSum(const RowTile& rows, unsigned first_output, const TileD<float> (&sums)[kMatrices][kRowTiles],
                           Store&& store) {
  MOE_UNROLL_LOOP
  for (unsigned tile = 0; tile < kRowTiles; ++tile) {
    MOE_UNROLL_LOOP
    for (unsigned half = 0; half < 2; ++half) {
      MOE_UNROLL_LOOP
      for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = tile * 16 + TileRow(i);
        if (row >= rows.count) continue;
        const float last = sums[kMatrices - 1][tile].sums[half][i];
        store(rows.first + row, first_output + TileOutput(half, i), sums[0][tile].sums[half][i], last);
      }
    }
  }
}

/// Calls body(rows) for the tiles of the block's slot that are its own. The same ones for all threads of the block.
template <typename Body>
MOE_DEVICE void ForEachTile(const SlotRows& rows, Body&& body) {
  const unsigned slot = BlockIndex().y;
  const unsigned end = rows.offsets[slot + 1];
  const unsigned stride = kTileRows * GridBlocks().z;
  for (unsigned first = rows.offsets[slot] + kTileRows * BlockIndex().z; first < end; first += stride)
    body(RowTile{first, end - first < kTileRows ? end - first : kTileRows});
}

MOE_DEVICE float BiasOf(const float* bias, unsigned slot, std::size_t outputs, unsigned output) {
  return bias[slot * outputs + output];
}

/// kMatrices 2: gate and up; 1: up alone.
template <WeightType kType, unsigned kMatrices>
MOE_KERNEL void InnerProductKernel(InnerProductTask task) {
  MOE_SHARED(WordPair, x, kTileRows * kRowPairs);
  const unsigned slot = BlockIndex().y;
  const unsigned first_output = BlockIndex().x * kBlockOutputs + WarpIndex() * kWarpOutputs;
  const auto outputs = static_cast<unsigned>(task.intermediate);
  const auto padded = static_cast<unsigned>(PaddedInputs(outputs, kType));
  const SlotMatrices& first = kMatrices == 2 ? task.gate : task.up;
  WarpWeights weights[kMatrices];
  weights[0] = WeightsOf<kType>(first, slot, first_output, outputs);
  if constexpr (kMatrices == 2) weights[1] = WeightsOf<kType>(task.up, slot, first_output, outputs);
  ForEachTile(task.rows, [&](const RowTile& rows) {
    TileD<float> sums[kMatrices][kRowTiles] = {};
    Multiply<kType>(task.in, task.hidden, rows, weights, x, sums);
    ForEachSum(rows, first_output, sums, [&](std::size_t row, unsigned output, float gate_sum, float up_sum) {
      float value = 0;  // of the inputs that make whole steps for the next product
      if (output < outputs) {
        if (first.bias != nullptr) gate_sum = gate_sum + BiasOf(first.bias, slot, outputs, output);
        if (task.up.bias != nullptr) up_sum = up_sum + BiasOf(task.up.bias, slot, outputs, output);
        value = Activate(task.activation, task.limit, gate_sum, up_sum);
      }
      if constexpr (IsQuantized(kType)) {
        if (output < outputs) task.inner[row * outputs + output] = value;
      } else if (output < padded) {
        reinterpret_cast<std::uint16_t*>(task.narrow_inner.values)[row * padded + output] =
            Narrow<kType == WeightType::kBf16>(value);
      }
    });
  });
}

template <WeightType kType>
MOE_KERNEL void OuterProductKernel(OuterProductTask task) {
  MOE_SHARED(WordPair, x, kTileRows * kRowPairs);
  const unsigned slot = BlockIndex().y;
  const unsigned first_output = BlockIndex().x * kBlockOutputs + WarpIndex() * kWarpOutputs;
  const auto outputs = static_cast<unsigned>(task.hidden);
  const WarpWeights weights[1] = {WeightsOf<kType>(task.down, slot, first_output, outputs)};
  ForEachTile(task.rows, [&](const RowTile& rows) {
    TileD<float> sums[1][kRowTiles] = {};
    Multiply<kType>(task.in, task.intermediate, rows, weights, x, sums);
    ForEachSum(rows, first_output, sums, [&](std::size_t row, unsigned output, float sum, float) {
      if (output >= outputs) return;
      if (task.down.bias != nullptr) sum = sum + BiasOf(task.down.bias, slot, outputs, output);
      task.out[row * outputs + output] = sum;
    });
  });
}

LaunchShape ShapeFor(const SlotRows& rows, std::size_t outputs, DeviceStream stream) {
  const std::uint32_t tiles = (rows.max_rows + kTileRows - 1) / kTileRows;
  return {.blocks = {.x = static_cast<unsigned>((outputs + kBlockOutputs - 1) / kBlockOutputs),
                     .y = rows.slots,
                     .z = tiles < kMaxRowBlocks ? tiles : kMaxRowBlocks},
          .threads = kThreads,
          .shared_bytes = 0,
          .stream = stream};
}

template <WeightType kType>
void LaunchInner(const InnerProductTask& task, DeviceStream stream) {
  const LaunchShape shape =
      ShapeFor(task.rows, IsQuantized(kType) ? task.intermediate : PaddedInputs(task.intermediate, kType), stream);
  if (task.gate.weights != nullptr) {
    Launch("InnerProduct", InnerProductKernel<kType, 2>, shape, task);
  } else {
    Launch("InnerProduct", InnerProductKernel<kType, 1>, shape, task);
  }
}

}  // namespace

void InnerProduct(const InnerProductTask& task, DeviceStream stream) {
  if (task.rows.slots == 0 || task.rows.max_rows == 0) return;
  switch (task.type) {
    case WeightType::kBf16: return LaunchInner<WeightType::kBf16>(task, stream);
    case WeightType::kF16: return LaunchInner<WeightType::kF16>(task, stream);
    case WeightType::kInt8: return LaunchInner<WeightType::kInt8>(task, stream);
    case WeightType::kInt4: return LaunchInner<WeightType::kInt4>(task, stream);
    case WeightType::kF32: break;
  }
  MOE_CHECK(false, "no kernel of a device takes weights in f32");
}

void OuterProduct(const OuterProductTask& task, DeviceStream stream) {
  if (task.rows.slots == 0 || task.rows.max_rows == 0) return;
  const LaunchShape shape = ShapeFor(task.rows, task.hidden, stream);
  switch (task.type) {
    case WeightType::kBf16: return Launch("OuterProduct", OuterProductKernel<WeightType::kBf16>, shape, task);
    case WeightType::kF16: return Launch("OuterProduct", OuterProductKernel<WeightType::kF16>, shape, task);
    case WeightType::kInt8: return Launch("OuterProduct", OuterProductKernel<WeightType::kInt8>, shape, task);
    case WeightType::kInt4: return Launch("OuterProduct", OuterProductKernel<WeightType::kInt4>, shape, task);
    case WeightType::kF32: break;
  }
  MOE_CHECK(false, "no kernel of a device takes weights in f32");
}

}  // namespace moe::cuda
