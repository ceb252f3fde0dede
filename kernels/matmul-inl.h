// Rows times a packed matrix.
#if defined(MOE_KERNELS_MATMUL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_KERNELS_MATMUL_INL_H_
#undef MOE_KERNELS_MATMUL_INL_H_
#else
#define MOE_KERNELS_MATMUL_INL_H_
#endif

#include "core/check.h"
#include "kernels/packed_matrix.h"
#include "kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moe {
namespace HWY_NAMESPACE {

// A block of rows and of k that the panels of one call stream past: 48 x 2048 fp32 of x are 384 KiB, which stay in the
// second-level cache. 48 rows are whole tiles of 8 and of 6, and weights are read from memory once for all of them: 24
// operations a byte of fp32, more than a core needs to be bound by arithmetic. Shorter blocks of k would break the
// stream of weights more often. Sums wait in y between blocks of k.
inline constexpr std::size_t kBlockRows = 48;
inline constexpr std::size_t kBlockDepth = 2048;

struct MatMulBlock {
  MatrixView<const float> x;    // (rows, depth)
  std::size_t depth_begin = 0;  // the depths lie from here on in the panels
  MatrixView<float> y;          // (rows, outputs of the panels)
};

/// Adds one block of depth to the outputs of panels [panel_begin, panel_end).
template <WeightType kType>
void MatMulBlockOf(const MatMulBlock& block, const PackedMatrix& w, std::size_t panel_begin, std::size_t panel_end) {
  constexpr std::size_t kStride = PackedMatrix::kPanelWidth * BytesPerWeight(kType);
  const RowTiles tiles(block.x.rows());
  std::array<const std::byte*, kMaxPanels> panels;
  for (std::size_t first = panel_begin; first < panel_end;) {
    const std::size_t count = PanelsAtOnce(tiles.largest(), panel_end - first);
    for (std::size_t p = 0; p < count; ++p) panels[p] = w.panel(first + p) + block.depth_begin * kStride;
    const std::size_t begin = (first - panel_begin) * kLanes;
    const std::size_t columns = std::min(count * kLanes, block.y.cols() - begin);
    for (std::size_t tile = 0; tile < tiles.count(); ++tile) {
      RunTileOf<kType>({.x = block.x.Rows(tiles.begin(tile), tiles.size(tile)),
                        .panels = {panels.data(), count},
                        .panel_stride = kStride,
                        .y = block.y.Rows(tiles.begin(tile), tiles.size(tile)).Columns(begin, columns),
                        .continued = block.depth_begin > 0});
    }
    first += count;
  }
}

template <WeightType kType>
void MatMulOf(MatrixView<const float> x, const PackedMatrix& w, std::size_t panel_begin, std::size_t panel_end,
              MatrixView<float> y) {
  for (std::size_t row = 0; row < x.rows(); row += kBlockRows) {
    const std::size_t rows = std::min(kBlockRows, x.rows() - row);
    for (std::size_t k = 0; k < x.cols(); k += kBlockDepth) {
      const std::size_t depth = std::min(kBlockDepth, x.cols() - k);
      MatMulBlockOf<kType>({.x = x.Rows(row, rows).Columns(k, depth), .depth_begin = k, .y = y.Rows(row, rows)}, w,
                           panel_begin, panel_end);
    }
  }
}

inline void MatMulPanels(MatrixView<const float> x, const PackedMatrix& w, std::size_t panel_begin,
                         std::size_t panel_end, MatrixView<float> y) {
  MOE_CHECK(x.cols() == w.cols() && x.rows() == y.rows() && y.cols() == w.Outputs(panel_begin, panel_end));
  switch (w.type()) {
    case WeightType::kF32: return MatMulOf<WeightType::kF32>(x, w, panel_begin, panel_end, y);
    case WeightType::kBf16: return MatMulOf<WeightType::kBf16>(x, w, panel_begin, panel_end, y);
    case WeightType::kF16: return MatMulOf<WeightType::kF16>(x, w, panel_begin, panel_end, y);
    case WeightType::kInt8:
    case WeightType::kInt4: break;
  }
  MOE_CHECK(false, "integer weights meet integer activations");
}

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#endif  // MOE_KERNELS_MATMUL_INL_H_
