// One loop of two kinds of items. Inner ones, (MLP, 64 columns of its inner width): gate, up and the activation. Outer
// ones, (MLP, 128 outputs): the down-projection, once all inner tiles of that MLP are done. Inner items come first and
// are taken in order, so that an outer item waits, if at all, for what other threads are just finishing: there is one
// barrier a layer. Each output element has one writer and one order of summation, so the cut does not show in the bits.
#include "model/cpu_mlp.h"

#include <algorithm>
#include <thread>

#include "core/check.h"
#include "core/parallel.h"
#include "kernels/panel_bias.h"
#include "model/mlp_activation.h"
#include "model/quantize_rows.h"

namespace moe {
namespace {

// Columns of the inner width in a tile: one group of int8, two of int4, so that a tile's results are quantized where
// they are made. Gate and up of it stream 2 x 128 KiB of int8 at hidden 2048: long against the few hundred nanoseconds
// that taking an item costs, short against an expert (so that threads finish together).
constexpr std::size_t kTileColumns = 64;
static_assert(kTileColumns % GroupSize(WeightType::kInt8) == 0 && kTileColumns % GroupSize(WeightType::kInt4) == 0);
constexpr std::size_t kTilePanels = kTileColumns / PackedMatrix::kPanelWidth;
// Panels of the down-projection in a tile: 128 KiB of int8 at an inner width of 1024.
constexpr std::size_t kOuterPanels = 8;
// Rows whose gate and up wait in the thread's scratch: 2 x 32 KiB.
constexpr std::size_t kBlockRows = 128;
// Looks at the counter before the thread gives its processor away: about a microsecond.
constexpr int kLooks = 64;

std::size_t Tiles(std::size_t count, std::size_t tile) { return (count + tile - 1) / tile; }

}  // namespace

CpuMlp::CpuMlp(const Kernels& kernels, ThreadPool& pool, const CpuMlpLimits& limits)
    : kernels_(kernels),
      pool_(pool),
      limits_(limits),
      quantized_(IsQuantized(limits.type)),
      inputs_(quantized_ ? limits.rows : 0, limits.hidden),
      quantized_inner_(quantized_ ? limits.rows : 0, limits.intermediate),
      inner_(quantized_ ? 0 : limits.rows * limits.intermediate),
      scratch_(static_cast<std::size_t>(pool.threads()) * 2 * kBlockRows * kTileColumns),
      pending_(std::make_unique<std::atomic<std::uint32_t>[]>(limits.mlps)) {
  order_.reserve(limits.mlps);
}

void CpuMlp::Run(const MlpSpec& spec, std::span<const MlpWeights* const> mlps, const GroupedRows& rows) {
  const auto intermediate = static_cast<std::size_t>(spec.intermediate);
  const std::size_t hidden = rows.in.cols();
  MOE_CHECK(rows.offsets.size() == mlps.size() + 1 && rows.offsets.back() == rows.in.rows());
  MOE_CHECK(mlps.size() <= limits_.mlps && rows.in.rows() <= limits_.rows && hidden <= limits_.hidden &&
            intermediate <= limits_.intermediate);
  if (rows.in.rows() == 0) return;
  OrderBySize(rows);
  const Job job{.spec = spec,
                .mlps = mlps,
                .rows = rows,
                .inner_tiles = Tiles(intermediate, kTileColumns),
                .outer_tiles = Tiles(Tiles(hidden, PackedMatrix::kPanelWidth), kOuterPanels)};
  for (std::size_t place = 0; place < order_.size(); ++place)
    pending_[place].store(static_cast<std::uint32_t>(job.inner_tiles),
                          std::memory_order_relaxed);  // the loop publishes
  if (quantized_) {
    quantized_inner_.Shape(rows.in.rows(), intermediate, limits_.type);
    QuantizeRows(pool_, kernels_, rows.in, limits_.type, inputs_);
  }
  const std::size_t inner_items = order_.size() * job.inner_tiles;
  const std::size_t work = rows.in.rows() * hidden * (static_cast<std::size_t>(spec.inner_width()) + intermediate);
  ShareOut(pool_, inner_items + order_.size() * job.outer_tiles, work, [&](std::size_t item, int thread) {
    if (item < inner_items) return RunInner(job, item / job.inner_tiles, item % job.inner_tiles, thread);
    const std::size_t outer = item - inner_items;
    RunOuter(job, outer / job.outer_tiles, outer % job.outer_tiles);
  });
}

// The largest first, so that the last items taken are small ones.
void CpuMlp::OrderBySize(const GroupedRows& rows) {
  const auto count = [&](std::uint32_t m) { return rows.offsets[m + 1] - rows.offsets[m]; };
  order_.clear();
  for (std::uint32_t m = 0; m + 1 < rows.offsets.size(); ++m)
    if (count(m) > 0) order_.push_back(m);
  std::ranges::sort(
      order_, [&](std::uint32_t a, std::uint32_t b) { return count(a) != count(b) ? count(a) > count(b) : a < b; });
}

// y = rows [begin, begin + count) times the panels of `w` from first_panel on that y has room for, plus their bias.
void CpuMlp::Multiply(const GroupedRows& rows, std::size_t begin, std::size_t count, const PackedMatrix& w,
                      std::span<const float> bias, std::size_t first_panel, MatrixView<float> y) const {
  const std::size_t last_panel = first_panel + Tiles(y.cols(), PackedMatrix::kPanelWidth);
  if (quantized_) {
    kernels_.MatMulPanels(inputs_.view().Rows(begin, count), w, first_panel, last_panel, y);
  } else {
    kernels_.MatMulPanels(rows.in.Rows(begin, count), w, first_panel, last_panel, y);
  }
  AddPanelBias(kernels_, bias, first_panel, y);
}

void CpuMlp::RunInner(const Job& job, std::size_t place, std::size_t tile, int thread) {
  const std::uint32_t m = order_[place];
  const MlpWeights& weights = *job.mlps[m];
  const bool gated = job.spec.gated();
  const std::size_t column = tile * kTileColumns;
  const auto intermediate = static_cast<std::size_t>(job.spec.intermediate);
  const std::size_t columns = std::min(kTileColumns, intermediate - column);
  float* const scratch = scratch_.data() + static_cast<std::size_t>(thread) * 2 * kBlockRows * kTileColumns;
  for (std::size_t row = job.rows.offsets[m]; row < job.rows.offsets[m + 1]; row += kBlockRows) {
    const std::size_t count = std::min<std::size_t>(kBlockRows, job.rows.offsets[m + 1] - row);
    const MatrixView<float> first =
        quantized_
            ? MatrixView<float>(scratch, count, columns, kTileColumns)
            : MatrixView<float>(inner_.data() + row * intermediate, count, intermediate).Columns(column, columns);
    const MatrixView<float> up(scratch + kBlockRows * kTileColumns, gated ? count : 0, columns, kTileColumns);
    if (gated) {
      Multiply(job.rows, row, count, weights.gate, weights.gate_bias, tile * kTilePanels, first);
      Multiply(job.rows, row, count, weights.up, weights.up_bias, tile * kTilePanels, up);
    } else {
      Multiply(job.rows, row, count, weights.up, weights.up_bias, tile * kTilePanels, first);
    }
    for (std::size_t i = 0; i < count; ++i) {
      Activate(job.spec, kernels_, first.row(i), gated ? up.row(i) : std::span<float>());
      if (quantized_)
        kernels_.QuantizeRow(first.row(i), GroupSize(limits_.type), quantized_inner_.Groups(row + i, column, columns));
    }
  }
  pending_[place].fetch_sub(1, std::memory_order_release);  // pairs with RunOuter: it reads what this tile wrote
}

void CpuMlp::RunOuter(const Job& job, std::size_t place, std::size_t tile) {
  for (int look = 0; pending_[place].load(std::memory_order_acquire) != 0; ++look)
    if (look >= kLooks) std::this_thread::yield();
  const std::uint32_t m = order_[place];
  const MlpWeights& weights = *job.mlps[m];
  const std::size_t begin = job.rows.offsets[m];
  const std::size_t count = job.rows.offsets[m + 1] - begin;
  const std::size_t first = tile * kOuterPanels;
  const std::size_t last = std::min(first + kOuterPanels, weights.down.panels());
  const MatrixView<float> y =
      job.rows.out.Rows(begin, count).Columns(first * PackedMatrix::kPanelWidth, weights.down.Outputs(first, last));
  if (quantized_) {
    kernels_.MatMulPanels(quantized_inner_.view().Rows(begin, count), weights.down, first, last, y);
  } else {
    const auto intermediate = static_cast<std::size_t>(job.spec.intermediate);
    kernels_.MatMulPanels(MatrixView<float>(inner_.data() + begin * intermediate, count, intermediate), weights.down,
                          first, last, y);
  }
  AddPanelBias(kernels_, weights.down_bias, first, y);
}

}  // namespace moe
