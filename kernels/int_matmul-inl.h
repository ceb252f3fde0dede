// Rows of int8 activations times a packed matrix of int8 or int4.
#if defined(MOE_KERNELS_INT_MATMUL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_KERNELS_INT_MATMUL_INL_H_
#undef MOE_KERNELS_INT_MATMUL_INL_H_
#else
#define MOE_KERNELS_INT_MATMUL_INL_H_
#endif

#include "core/check.h"
#include "kernels/amx_tile-inl.h"
#include "kernels/int_tile-inl.h"
#include "kernels/packed_matrix.h"

HWY_BEFORE_NAMESPACE();
namespace moe {
namespace HWY_NAMESPACE {

// A block of rows and of inputs that the panels of one call stream past. Two panels of 2048 inputs in int8 are 64 KiB
// and 128 rows of them 256 KiB: both stay in the second-level cache, the panels for all tiles of rows but the first,
// the rows while all panels pass. Smaller blocks would fit the first level, but the sums' way through memory costs
// more.
inline constexpr std::size_t kIntBlockRows = 128;
inline constexpr std::size_t kIntBlockInputs = 2048;

/// Dot products of four bytes at a time.
struct DotTiles {
  static constexpr std::size_t kFromRows = 1;
  static constexpr std::size_t kMaxRows = kMaxIntRows;
  static constexpr std::size_t kMaxPanels = kMaxIntPanels;
  static constexpr std::size_t PanelsForRows(std::size_t rows) { return IntPanelsForRows(rows); }

  DotTiles(WeightType /*type*/, std::size_t /*largest*/) {}
  template <WeightType kType>
  void Run(const IntTileTask& task) const {
    RunIntTileOf<kType>(task);
  }
};

template <WeightType kType, class Tiles>
void IntMatMulBlock(const QuantizedView& x, const PackedMatrix& w, std::size_t first_group, std::size_t num_groups,
                    std::size_t panel_begin, std::size_t panel_end, MatrixView<float> y) {
  const RowTiles rows(x.rows, Tiles::kMaxRows);
  const Tiles tiles(kType, rows.largest());
  std::array<const std::byte*, Tiles::kMaxPanels> values;
  std::array<const std::byte*, Tiles::kMaxPanels> scales;
  for (std::size_t first = panel_begin; first < panel_end;) {
    const std::size_t count = std::min(Tiles::PanelsForRows(rows.largest()), std::bit_floor(panel_end - first));
    for (std::size_t p = 0; p < count; ++p) {
      values[p] = w.panel(first + p) + first_group * kGroupBytes<kType>;
      scales[p] = w.scales(first + p) + first_group * kGroupScaleBytes;
    }
    const std::size_t begin = (first - panel_begin) * kLanes;
    const std::size_t columns = std::min(count * kLanes, y.cols() - begin);
    std::array<const std::byte*, Tiles::kMaxPanels> following = values;
    for (std::size_t p = 0; p < count && first + count + p < panel_end; ++p)
      following[p] = w.panel(first + count + p) + first_group * kGroupBytes<kType>;
    for (std::size_t tile = 0; tile < rows.count(); ++tile) {
      const std::size_t row = rows.begin(tile);
      tiles.template Run<kType>({.x = x.Rows(row, rows.size(tile)),
                                 .values = {values.data(), count},
                                 .scales = {scales.data(), count},
                                 .first_group = first_group,
                                 .num_groups = num_groups,
                                 .y = y.Rows(row, rows.size(tile)).Columns(begin, columns),
                                 .following = {following.data(), count}});
    }
    first += count;
  }
}

template <WeightType kType, class Tiles>
void IntMatMulOf(const QuantizedView& x, const PackedMatrix& w, std::size_t panel_begin, std::size_t panel_end,
                 MatrixView<float> y) {
  constexpr std::size_t kBlockGroups = kIntBlockInputs / GroupSize(kType);
  for (std::size_t row = 0; row < x.rows; row += kIntBlockRows) {
    const std::size_t rows = std::min(kIntBlockRows, x.rows - row);
    // A few rows stream weights only once: there is nothing to keep in a cache.
    const std::size_t block = rows <= Tiles::kMaxRows ? x.groups : kBlockGroups;
    for (std::size_t group = 0; group < x.groups; group += block) {
      const auto multiply = rows < Tiles::kFromRows ? &IntMatMulBlock<kType, DotTiles> : &IntMatMulBlock<kType, Tiles>;
      multiply(x.Rows(row, rows), w, group, std::min(block, x.groups - group), panel_begin, panel_end,
               y.Rows(row, rows));
    }
  }
}

/// With `Tiles` where there are rows enough for them.
template <class Tiles>
void MatMulPanels(const QuantizedView& x, const PackedMatrix& w, std::size_t panel_begin, std::size_t panel_end,
                  MatrixView<float> y) {
  MOE_CHECK(IsQuantized(w.type()) && x.cols == w.cols() && x.group == GroupSize(w.type()));
  MOE_CHECK(x.rows == y.rows() && y.cols() == w.Outputs(panel_begin, panel_end));
  if (w.type() == WeightType::kInt8) return IntMatMulOf<WeightType::kInt8, Tiles>(x, w, panel_begin, panel_end, y);
  IntMatMulOf<WeightType::kInt4, Tiles>(x, w, panel_begin, panel_end, y);
}

#if HWY_TARGET == HWY_AVX3_DL
/// Those of a whole group at a time.
class AmxTiles {
 public:
  static constexpr std::size_t kFromRows = kAmxFromRows;
  static constexpr std::size_t kMaxRows = kAmxMaxRows;
  static constexpr std::size_t kMaxPanels = 1;
  static constexpr std::size_t PanelsForRows(std::size_t /*rows*/) { return 1; }

  AmxTiles(WeightType type, std::size_t largest) : registers_(AmxShapes(type, largest)), largest_(largest) {}
  template <WeightType kType>
  void Run(const IntTileTask& task) const {
    static constexpr auto kTiles = []<std::size_t... kRow>(std::index_sequence<kRow...>) {
      return std::array{&RunAmxTile<kType, kAmxMinRows + kRow>...};
    }
    (std::make_index_sequence<kMaxRows + 1 - kAmxMinRows>());
    kTiles[task.x.rows - kAmxMinRows](task, task.x.rows < largest_);
  }

 private:
  AmxRegisters registers_;
  std::size_t largest_;  // rows of a tile
};

#endif

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#endif  // MOE_KERNELS_INT_MATMUL_INL_H_
