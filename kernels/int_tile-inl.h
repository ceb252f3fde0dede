// The inner loop over integer weights: a few rows of int8 activations times a few panels, in registers. A group of
// inputs is summed exactly in int32, then joins the fp32 sum with one multiply-add: sum = fma(dot, w scale * x scale,
// sum), groups ascending.
#if defined(MOE_KERNELS_INT_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_KERNELS_INT_TILE_INL_H_
#undef MOE_KERNELS_INT_TILE_INL_H_
#else
#define MOE_KERNELS_INT_TILE_INL_H_
#endif

#include <array>
#include <bit>
#include <span>
#include <utility>

#include "core/matrix.h"
#include "kernels/int_lanes-inl.h"
#include "kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moe {
namespace HWY_NAMESPACE {

/// y(r, 16 p + lane) = sum over groups of scale * scale * dot.
struct IntTileTask {
  QuantizedView x;                           // (rows, cols)
  std::span<const std::byte* const> values;  // by panel, the stored weights from group `first_group` on
  std::span<const std::byte* const> scales;  // by panel, their scales
  std::size_t first_group = 0;
  std::size_t num_groups = 0;
  MatrixView<float>
      y;  // (rows, columns), 16 (panels - 1) < columns <= 16 panels; its sums go on unless first_group = 0
  std::span<const std::byte* const> following;  // by panel, the weights that are streamed next; any if none are
};

/// Bytes of sixteen outputs' stored weights of a group, and of their scales.
template <WeightType kType>
inline constexpr std::size_t kGroupBytes = GroupSize(kType) * kLanes / (kType == WeightType::kInt4 ? 2 : 1);
inline constexpr std::size_t kGroupScaleBytes = kLanes * sizeof(std::uint16_t);

HWY_INLINE std::int32_t LoadInt(const std::int8_t* from) {
  std::int32_t value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

// As kAskAheadFromRows. On a Xeon with VNNI tiles of three and four rows read at 84 to 89 % of the bandwidth without
// and at 91 % to all of it with; two rows do as well without. AVX2 takes three to four instructions for what VNNI does
// in one, so that from two rows on the 256 instructions that a core keeps in flight reach only a few lines ahead.
inline constexpr std::size_t kAskAheadFromIntRows = kRegistersPerLanes == 1 ? 3 : 2;

/// The dot products of one group of kRows rows with kPanels panels, added to the sums of AddDot. Meanwhile memory is
/// asked for as many bytes from each of `ask` on.
template <WeightType kType, std::size_t kRows, std::size_t kPanels>
HWY_INLINE void DotGroup(const std::int8_t* const (&x)[kRows], const std::byte* const (&values)[kPanels],
                         const std::byte* const (&ask)[kPanels], IntLanes (&dots)[kRows][kPanels]) {
  constexpr std::size_t kBlock = kLanes * 4;  // bytes of four inputs, or of eight in nibbles
  constexpr std::size_t kQuadsInBlock = kType == WeightType::kInt4 ? 2 : 1;
  for (std::size_t block = 0; block < kGroupBytes<kType> / kBlock; ++block) {
    Quads packed[kPanels];
    MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) {
      if constexpr (kRows >= kAskAheadFromIntRows) __builtin_prefetch(ask[p] + block * kBlock, 0, 2);
      packed[p] = LoadQuads(values[p] + block * kBlock);
    }
    MOE_UNROLL for (std::size_t half = 0; half < kQuadsInBlock; ++half) {
      Quads weights[kPanels];
      MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) {
        if constexpr (kType == WeightType::kInt4) {
          weights[p] = half == 0 ? LowNibbles(packed[p]) : HighNibbles(packed[p]);
        } else {
          weights[p] = packed[p];
        }
      }
      MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) {
        const std::int32_t quad = LoadInt(x[r] + (block * kQuadsInBlock + half) * 4);
        MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) AddDot<kType>(dots[r][p], weights[p], quad);
      }
    }
  }
}

template <WeightType kType, std::size_t kRows, std::size_t kPanels>
HWY_NOINLINE void RunIntTile(const IntTileTask& task) {
  const QuantizedView& in = task.x;
  const std::int8_t* x[kRows];
  const std::byte* values[kPanels];
  const std::byte* ask[kPanels];
  Lanes sums[kRows][kPanels];
  const std::size_t last_columns = task.y.cols() - kLanes * (kPanels - 1);
  const std::size_t ahead = std::min(task.num_groups, kAskAheadBytes / kGroupBytes<kType>);
  MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) values[p] = task.values[p];
  MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) ask[p] = values[p] + ahead * kGroupBytes<kType>;
  MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) {
    x[r] = in.values + (r * in.groups + task.first_group) * GroupSize(kType);
    const float* y = task.y.data() + r * task.y.stride();
    MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) {
      const std::size_t columns = p + 1 < kPanels ? kLanes : last_columns;
      sums[r][p] = task.first_group > 0 ? LoadUpTo16(y + kLanes * p, columns) : Broadcast(0);
    }
  }
  const float* x_scales = in.scales + task.first_group * in.stride;
  const std::int32_t* offsets = in.offsets + task.first_group * in.stride;
  for (std::size_t group = 0; group < task.num_groups; ++group) {
    if (group == task.num_groups - ahead) {  // a panel's end is not where the next one of its stream begins
      MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) ask[p] = task.following[p];
    }
    IntLanes dots[kRows][kPanels];
    MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) {
      MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) dots[r][p] = BroadcastInt(0);
    }
    DotGroup<kType>(x, values, ask, dots);
    MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) {
      values[p] += kGroupBytes<kType>;
      ask[p] += kGroupBytes<kType>;
      const Lanes scale = LoadWeights<WeightType::kBf16>(task.scales[p] + group * kGroupScaleBytes);
      MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) {
        const Lanes both = Mul(scale, Broadcast(x_scales[r]));
        const std::int32_t offset = kDotTakesStored<kType> ? offsets[r] : 0;
        sums[r][p] = Fma(ToFloat(GroupDots<kType>(dots[r][p], offset)), both, sums[r][p]);
      }
    }
    MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) x[r] += GroupSize(kType);
    x_scales += in.stride;
    offsets += in.stride;
  }
  MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) {
    float* y = task.y.data() + r * task.y.stride();
    MOE_UNROLL for (std::size_t p = 0; p < kPanels; ++p) {
      StoreUpTo16(sums[r][p], y + kLanes * p, p + 1 < kPanels ? kLanes : last_columns);
    }
  }
}

// How large a tile is. A dot instruction takes four or five cycles and two start in each, so that eight sums should be
// under way; with up to four rows the memory is what is waited for, and four streams of weights or more keep it
// busiest.
//   AVX-512: up to 8 rows x 2 panels = 16 integer sums + 2 registers of weights + 1 broadcast; the fp32 sums are
//   needed once for a group only and may wait in memory.
//   AVX2: up to 4 rows x 1 panel = 8 registers of sums + 2 of weights + 4 of intermediate results.
inline constexpr std::size_t kMaxIntRows = kRegistersPerLanes == 1 ? 8 : 4;

constexpr std::size_t IntPanelsForRows(std::size_t rows) {
  if (kRegistersPerLanes > 1) return rows == 1 ? 2 : 1;
  if (rows == 1) return 8;
  return rows <= 4 ? 4 : 2;
}
inline constexpr std::size_t kMaxIntPanels = IntPanelsForRows(1);

using IntTileFunction = void (*)(const IntTileTask&);

/// By log2(panels): the tiles of kRows rows with 1, 2, 4 … IntPanelsForRows(kRows) panels.
template <WeightType kType, std::size_t kRows>
constexpr auto IntTilesOfRows() {
  std::array<IntTileFunction, std::bit_width(kMaxIntPanels)> tiles{};
  [&]<std::size_t... kLog>(std::index_sequence<kLog...>) {
    ((tiles[kLog] = &RunIntTile<kType, kRows, std::size_t{1} << kLog>), ...);
  }
  (std::make_index_sequence<std::bit_width(IntPanelsForRows(kRows))>());
  return tiles;
}

/// Runs the tile that fits the task: 1 … kMaxIntRows rows; a power of two of panels, at most IntPanelsForRows(rows).
template <WeightType kType>
void RunIntTileOf(const IntTileTask& task) {
  static constexpr auto kTiles = []<std::size_t... kRow>(std::index_sequence<kRow...>) {
    return std::array{IntTilesOfRows<kType, kRow + 1>()...};
  }
  (std::make_index_sequence<kMaxIntRows>());
  kTiles[task.x.rows - 1][static_cast<std::size_t>(std::countr_zero(task.values.size()))](task);
}

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#endif  // MOE_KERNELS_INT_TILE_INL_H_
