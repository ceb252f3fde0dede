// Rows of int8 activations times a packed matrix of int8 or int4.
#if defined(MOE_KERNELS_INT_MATMUL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_KERNELS_INT_MATMUL_INL_H_
#undef MOE_KERNELS_INT_MATMUL_INL_H_
#else
#define MOE_KERNELS_INT_MATMUL_INL_H_
#endif

#include "core/check.h"
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

template <WeightType kType>
void IntMatMulBlock(const QuantizedView& x, const PackedMatrix& w, std::size_t first_group, std::size_t num_groups,
                    std::size_t panel_begin, std::size_t panel_end, MatrixView<float> y) {
  const RowTiles tiles(x.rows, kMaxIntRows);
  std::array<const std::byte*, kMaxIntPanels> values;
  std::array<const std::byte*, kMaxIntPanels> scales;
  for (std::size_t first = panel_begin; first < panel_end;) {
    const std::size_t count = std::min(IntPanelsForRows(tiles.largest()), std::bit_floor(panel_end - first));
    for (std::size_t p = 0; p < count; ++p) {
      values[p] = w.panel(first + p) + first_group * kGroupBytes<kType>;
      scales[p] = w.scales(first + p) + first_group * kGroupScaleBytes;
    }
    const std::size_t begin = (first - panel_begin) * kLanes;
    const std::size_t columns = std::min(count * kLanes, y.cols() - begin);
    std::array<const std::byte*, kMaxIntPanels> following = values;
    for (std::size_t p = 0; p < count && first + count + p < panel_end; ++p)
      following[p] = w.panel(first + count + p) + first_group * kGroupBytes<kType>;
    for (std::size_t tile = 0; tile < tiles.count(); ++tile) {
      const std::size_t row = tiles.begin(tile);
      RunIntTileOf<kType>({.x = x.Rows(row, tiles.size(tile)),
                           .values = {values.data(), count},
                           .scales = {scales.data(), count},
                           .first_group = first_group,
                           .num_groups = num_groups,
                           .y = y.Rows(row, tiles.size(tile)).Columns(begin, columns),
                           .following = {following.data(), count}});
    }
    first += count;
  }
}

template <WeightType kType>
void IntMatMulOf(const QuantizedView& x, const PackedMatrix& w, std::size_t panel_begin, std::size_t panel_end,
                 MatrixView<float> y) {
  constexpr std::size_t kBlockGroups = kIntBlockInputs / GroupSize(kType);
  for (std::size_t row = 0; row < x.rows; row += kIntBlockRows) {
    const std::size_t rows = std::min(kIntBlockRows, x.rows - row);
    // A few rows stream weights only once: there is nothing to keep in a cache.
    const std::size_t block = rows <= kMaxIntRows ? x.groups : kBlockGroups;
    for (std::size_t group = 0; group < x.groups; group += block) {
      IntMatMulBlock<kType>(x.Rows(row, rows), w, group, std::min(block, x.groups - group), panel_begin, panel_end,
                            y.Rows(row, rows));
    }
  }
}

inline void MatMulPanels(const QuantizedView& x, const PackedMatrix& w, std::size_t panel_begin, std::size_t panel_end,
                         MatrixView<float> y) {
  MOE_CHECK(IsQuantized(w.type()) && x.cols == w.cols() && x.group == GroupSize(w.type()));
  MOE_CHECK(x.rows == y.rows() && y.cols() == w.Outputs(panel_begin, panel_end));
  if (w.type() == WeightType::kInt8) return IntMatMulOf<WeightType::kInt8>(x, w, panel_begin, panel_end, y);
  IntMatMulOf<WeightType::kInt4>(x, w, panel_begin, panel_end, y);
}

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#endif  // MOE_KERNELS_INT_MATMUL_INL_H_
