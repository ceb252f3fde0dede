// The inner loop of everything that multiplies: a few rows times a few panels of sixteen columns, in registers. Matrix
// products, attention scores and attention sums are made of such tiles, and every element of a tile is one running sum,
// so that its bits do not depend on which tile it lay in.
#if defined(MOE_KERNELS_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_KERNELS_TILE_INL_H_
#undef MOE_KERNELS_TILE_INL_H_
#else
#define MOE_KERNELS_TILE_INL_H_
#endif

#include <array>
#include <bit>
#include <span>
#include <utility>

#include "core/matrix.h"

#include "kernels/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moe {
namespace HWY_NAMESPACE {

/// y(r, 16 p + lane) = sum over k of x(r, k) * panels[p][k][lane].
struct TileTask {
  MatrixView<const float> x;                 // (rows, depth)
  std::span<const std::byte* const> panels;  // each depth groups of sixteen weights …
  std::size_t panel_stride = 0;              // … so many bytes apart
  MatrixView<float> y;                       // (rows, columns), 16 (panels - 1) < columns <= 16 panels
  bool continued = false;                    // the sums go on from what y holds; else from 0
};

// How large a tile is. The cores of interest start two fused multiply-adds a cycle, each taking four, so about eight
// registers of sums should be under way; more of them share the loads of weights and of x. Sums, one row of weights and
// one broadcast have to fit the registers: 32 with AVX-512, 16 with AVX2 (where sixteen lanes take two).
//   AVX-512: up to 8 rows x 2 panels = 16 sums + 2 + 1; 10 loads for 16 multiply-adds, two loads start a cycle. More
//   rows would evict each other from the first-level cache: 8 ways, and rows lie multiples of 4 KiB apart. One row or
//   two wait for memory, not for sums: four panels are as many streams as the hardware follows well.
//   AVX2: up to 6 rows x 1 panel = 12 sums + 2 + 1. Three rows x 2 panels would spill, hence 6 sums are enough there.
inline constexpr std::size_t kMinSums = kRegistersPerLanes == 1 ? 8 : 6;
inline constexpr std::size_t kMaxTileRows = kRegistersPerLanes == 1 ? 8 : 6;
inline constexpr std::size_t kMinPanels = kRegistersPerLanes == 1 ? 2 : 1;
inline constexpr std::size_t kMaxPanels = 4;

/// The panels that a tile of `rows` takes, a power of two.
constexpr std::size_t PanelsForRows(std::size_t rows) {
  const std::size_t sums = rows * kRegistersPerLanes;
  return std::clamp(std::bit_ceil((kMinSums + sums - 1) / sums), kMinPanels, kMaxPanels);
}

// From this many rows on a tile asks for its weights ahead of their use. With fewer, the processor itself runs far
// enough ahead of its sums, and asking costs: a line that is asked for takes one of the few places that wait for
// memory.
inline constexpr std::size_t kAskAheadFromRows = 5;
// How far ahead: memory answers after some 100 to 200 ns, in which a core streams 4 KiB at 20 to 40 GB/s. Into the
// second-level cache, since two panels' 4 KiB of weights and eight rows of x are all that the first level holds.
inline constexpr std::size_t kAskAheadBytes = 4096;

template <std::size_t kRows>
HWY_INLINE void AskAhead([[maybe_unused]] const std::byte* weights) {
  if constexpr (kRows >= kAskAheadFromRows) __builtin_prefetch(weights + kAskAheadBytes, 0, 2);
}

template <WeightType kType, std::size_t kRows, std::size_t kPanels>
HWY_NOINLINE void RunTile(const TileTask& task) {
  Lanes sums[kRows][kPanels];
  const float* x[kRows];
  const std::byte* panels[kPanels];
  MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) panels[p] = task.panels[p];
  const std::size_t last_columns = task.y.cols() - kLanes * (kPanels - 1);
  MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) {
    x[r] = task.x.data() + r * task.x.stride();
    const float* y = task.y.data() + r * task.y.stride();
    MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) {
      const std::size_t columns = p + 1 < kPanels ? kLanes : last_columns;
      sums[r][p] = task.continued ? LoadUpTo16(y + kLanes * p, columns) : Broadcast(0);
    }
  }
  const std::size_t depth = task.x.cols();
  const std::size_t stride = task.panel_stride;
  std::size_t offset = 0;
  for (std::size_t k = 0; k < depth; ++k) {
    MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) AskAhead<kRows>(panels[p] + offset);
    // Whichever is fewer waits in registers, the values of x or the weights.
    if constexpr (kRows <= kPanels) {
      Lanes values[kRows];
      MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) values[r] = Broadcast(x[r][k]);
      MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) {
        const Lanes weights = LoadWeights<kType>(panels[p] + offset);
        MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) sums[r][p] = Fma(values[r], weights, sums[r][p]);
      }
    } else {
      Lanes weights[kPanels];
      MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) weights[p] = LoadWeights<kType>(panels[p] + offset);
      MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) {
        const Lanes value = Broadcast(x[r][k]);
        MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) sums[r][p] = Fma(value, weights[p], sums[r][p]);
      }
    }
    offset += stride;
  }
  MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) {
    float* y = task.y.data() + r * task.y.stride();
    MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) {
      StoreUpTo16(sums[r][p], y + kLanes * p, p + 1 < kPanels ? kLanes : last_columns);
    }
  }
}

using TileFunction = void (*)(const TileTask&);

/// By log2(panels): the tiles of kRows rows with 1, 2, 4, … PanelsForRows(kRows) panels.
template <WeightType kType, std::size_t kRows>
constexpr auto TilesOfRows() {
  constexpr std::size_t kSizes = std::bit_width(kMaxPanels);
  std::array<TileFunction, kSizes> tiles{};
  [&]<std::size_t... kLog>(std::index_sequence<kLog...>) {
    ((tiles[kLog] = &RunTile<kType, kRows, std::size_t{1} << kLog>), ...);
  }
  (std::make_index_sequence<std::bit_width(PanelsForRows(kRows))>());
  return tiles;
}

/// Runs the tile that fits the task: 1 … kMaxTileRows rows; a power of two of panels, at most PanelsForRows(rows).
template <WeightType kType>
void RunTileOf(const TileTask& task) {
  static constexpr auto kTiles = []<std::size_t... kRow>(std::index_sequence<kRow...>) {
    return std::array{TilesOfRows<kType, kRow + 1>()...};
  }
  (std::make_index_sequence<kMaxTileRows>());
  kTiles[task.x.rows() - 1][static_cast<std::size_t>(std::countr_zero(task.panels.size()))](task);
}

/// The largest power of two of panels that is at most `wanted`, and at most what tiles of `rows` take.
HWY_INLINE std::size_t PanelsAtOnce(std::size_t rows, std::size_t wanted) {
  return std::min(PanelsForRows(rows), std::bit_floor(wanted));
}

/// Splits `rows` into as few tiles of at most `most` as can be, of sizes that differ by one at most, the larger first.
class RowTiles {
 public:
  explicit RowTiles(std::size_t rows, std::size_t most = kMaxTileRows) : count_((rows + most - 1) / most) {
    if (rows == 0) return;
    smaller_ = rows / count_;  // divided once: a tile may be no more work than a few divisions
    larger_tiles_ = rows % count_;
  }

  std::size_t count() const { return count_; }
  std::size_t begin(std::size_t tile) const { return tile * smaller_ + std::min(tile, larger_tiles_); }
  std::size_t size(std::size_t tile) const { return smaller_ + (tile < larger_tiles_ ? 1 : 0); }
  std::size_t largest() const { return size(0); }

 private:
  std::size_t count_;
  std::size_t smaller_ = 0;
  std::size_t larger_tiles_ = 0;
};

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#endif  // MOE_KERNELS_TILE_INL_H_
