// Attention of one query position over the KV pages.
#if defined(MOE_KERNELS_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_KERNELS_ATTENTION_INL_H_
#undef MOE_KERNELS_ATTENTION_INL_H_
#else
#define MOE_KERNELS_ATTENTION_INL_H_
#endif

#include "core/check.h"
#include "kernels/elementwise-inl.h"
#include "kernels/kernels.h"
#include "kernels/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moe {
namespace HWY_NAMESPACE {

static_assert(kPageTokens == 2 * kLanes);

/// Pages are read as weights are.
template <KvType kType>
inline constexpr WeightType kReadAs = kType == KvType::kF32 ? WeightType::kF32 : WeightType::kBf16;

/// Sixteen elements of a page.
template <KvType kType>
HWY_INLINE Lanes LoadElements(const std::byte* from) {
  return LoadWeights<kReadAs<kType>>(from);
}

/// The first `count` of them, no memory past them; the other lanes are 0.
template <KvType kType>
HWY_INLINE Lanes LoadFirstElements(const std::byte* from, std::size_t count) {
  if constexpr (kType == KvType::kF32) {
    return LoadFirst(reinterpret_cast<const float*>(from), count);
  } else {
    std::array<std::byte, kLanes * BytesPerElement(kType)> elements{};
    std::memcpy(elements.data(), from, count * BytesPerElement(kType));
    return LoadElements<kType>(elements.data());
  }
}

inline constexpr std::size_t kPanelsPerPage = 2;

/// Query heads that go through the pages together, in tiles. Latent attention has up to 128 heads on one page of
/// 32 x 576 fp32, 72 KiB: each head does 70,000 operations with it, so that 32 heads do 30 a byte, well over what
/// memory can starve; their queries and outputs are another 136 KiB of the second-level cache.
inline constexpr std::size_t kMaxHeads = 32;

// A tile of scores of key rows, (heads, positions) sums of sixteen lanes. The registers have to hold the sums, one
// key of each position and one query: 16 + 4 + 1 of 32 with AVX-512, 8 loads for 16 multiply-adds; 8 + 4 + 2 of 16
// with AVX2.
inline constexpr std::size_t kRowTileHeads = kRegistersPerLanes == 1 ? 4 : 2;
inline constexpr std::size_t kRowTilePositions = kRegistersPerLanes == 1 ? 4 : 2;

/// Where the online softmax of one head stands.
struct SoftmaxState {
  float highest = -kInfinity;
  float total = 0;

  /// Lets scores as high as `score` in and returns the factor for the sums so far. As long as every score is -infinity
  /// the sums stay 0.
  float RaiseTo(float score) {
    const float before = highest;
    highest = std::max(highest, score);
    const float rescale = moe::Exp(before - shift());
    total *= rescale;
    return rescale;
  }
  /// What is taken off a score.
  float shift() const {
    if (highest == -kInfinity) [[unlikely]]
      return 0;
    return highest;
  }
};

/// One page of positions, of which [first, last) are visible.
struct Block {
  std::size_t page = 0;
  std::size_t first = 0;
  std::size_t last = kPageTokens;

  bool whole() const { return first == 0 && last == kPageTokens; }
};

inline Block BlockOf(const AttentionTask& task, std::size_t page) {
  const std::size_t start = page * kPageTokens;
  return {page, std::max(task.begin, start) - start, std::min(task.end - start, kPageTokens)};
}

/// Turns one head's scores of a block into weights, in place, and returns the factor for the sums so far. Scores and
/// bias of invisible positions may be anything.
inline float WeighBlock(const AttentionTask& task, std::size_t head, const Block& block, std::span<float> scores,
                        SoftmaxState& state) {
  const Lanes factor = Broadcast(task.scale);
  Lanes low = Mul(Load(scores.data()), factor);
  Lanes high = Mul(Load(scores.data() + kLanes), factor);
  if (task.bias.rows() > 0) {
    const float* bias = task.bias.row(head).data() + block.page * kPageTokens;
    low = Add(low, Load(bias));
    high = Add(high, Load(bias + kLanes));
  }
  if (!block.whole()) {
    low = Within(low, std::min(block.first, kLanes), std::min(block.last, kLanes), -kInfinity);
    high = Within(high, std::max(block.first, kLanes) - kLanes, std::max(block.last, kLanes) - kLanes, -kInfinity);
  }
  const float rescale = state.RaiseTo(MaxOfLanes(Max(low, high)));
  const Lanes shift = Broadcast(state.shift());
  low = Exp(Sub(low, shift));
  high = Exp(Sub(high, shift));
  Store(low, scores.data());
  Store(high, scores.data() + kLanes);
  state.total += SumOfLanes(Add(low, high));
  return rescale;
}

/// out(head, :) += sum over positions of weights(head, position) * values(position, :), the first position's values at
/// `values`, the next ones `stride` bytes on. Inlined, for with one head a page is too little work to pass matrices
/// through memory.
template <KvType kType>
HWY_INLINE void AddValues(const RowTiles& tiles, MatrixView<const float> weights, const std::byte* values,
                          std::size_t stride, MatrixView<float> out) {
  constexpr std::size_t kBytes = BytesPerElement(kType);
  const std::size_t whole = out.cols() / kLanes;
  std::array<const std::byte*, kMaxPanels> panels;
  for (std::size_t first = 0; first < whole;) {
    const std::size_t count = PanelsAtOnce(tiles.largest(), whole - first);
    for (std::size_t p = 0; p < count; ++p) {
      panels[p] = values + (first + p) * kLanes * kBytes;
    }
    for (std::size_t tile = 0; tile < tiles.count(); ++tile) {
      const MatrixView<float> y = out.Rows(tiles.begin(tile), tiles.size(tile));
      RunTileOf<kReadAs<kType>>({.x = weights.Rows(tiles.begin(tile), tiles.size(tile)),
                                 .panels = {panels.data(), count},
                                 .panel_stride = stride,
                                 .y = y.Columns(first * kLanes, count * kLanes),
                                 .continued = true});
    }
    first += count;
  }
  const std::size_t done = whole * kLanes;
  const std::size_t rest = out.cols() - done;  // a tile would read past the last row
  if (rest == 0) return;
  for (std::size_t head = 0; head < weights.rows(); ++head) {
    Lanes sum = LoadFirst(out.row(head).data() + done, rest);
    for (std::size_t at = 0; at < weights.cols(); ++at) {
      const std::byte* value = values + at * stride + done * kBytes;
      sum = Fma(Broadcast(weights(head, at)), LoadFirstElements<kType>(value, rest), sum);
    }
    StoreFirst(sum, out.row(head).data() + done, rest);
  }
}

/// Scores of all positions of as many pages as `scores` has room for, from page `page` on: (heads, 32 pages), unscaled.
template <KvType kType>
void ScoreColumns(const AttentionTask& task, const RowTiles& tiles, std::size_t page, MatrixView<float> scores) {
  std::array<const std::byte*, kMaxPanels> panels;
  const std::size_t whole = scores.cols() / kLanes;
  for (std::size_t first = 0; first < whole;) {
    const std::size_t count = PanelsAtOnce(tiles.largest(), whole - first);
    for (std::size_t p = 0; p < count; ++p) {
      const std::size_t panel = first + p;
      panels[p] =
          task.key_pages[page + panel / kPanelsPerPage] + panel % kPanelsPerPage * kLanes * BytesPerElement(kType);
    }
    for (std::size_t tile = 0; tile < tiles.count(); ++tile) {
      const MatrixView<float> y = scores.Rows(tiles.begin(tile), tiles.size(tile));
      RunTileOf<kReadAs<kType>>({.x = task.queries.Rows(tiles.begin(tile), tiles.size(tile)),
                                 .panels = {panels.data(), count},
                                 .panel_stride = kPageTokens * BytesPerElement(kType),
                                 .y = y.Columns(first * kLanes, count * kLanes)});
    }
    first += count;
  }
}

/// scores(h, t) = the lane sum of queries(h, :) * keys(t, :).
struct RowTileTask {
  MatrixView<const float> queries;  // (heads, key_dim)
  const std::byte* keys = nullptr;  // (positions, key_dim), rows one after the other
  MatrixView<float> scores;         // (heads, positions)
};

/// Adds the products of lanes [at, at + count) of each row to the sums; count is 16 when kWhole.
template <KvType kType, bool kWhole, std::size_t kHeads, std::size_t kPositions>
HWY_INLINE void AddProducts(const float* const (&queries)[kHeads], const std::byte* const (&keys)[kPositions],
                            std::size_t at, std::size_t count, Lanes (&sums)[kHeads][kPositions]) {
  Lanes key[kPositions];
  MOE_UNROLL for (std::size_t p = 0; p < kPositions; ++p) {
    const std::byte* from = keys[p] + at * BytesPerElement(kType);
    key[p] = kWhole ? LoadElements<kType>(from) : LoadFirstElements<kType>(from, count);
  }
  MOE_UNROLL for (std::size_t h = 0; h < kHeads; ++h) {
    const Lanes query = kWhole ? Load(queries[h] + at) : LoadFirst(queries[h] + at, count);
    MOE_UNROLL for (std::size_t p = 0; p < kPositions; ++p) sums[h][p] = Fma(query, key[p], sums[h][p]);
  }
}

template <KvType kType, std::size_t kHeads, std::size_t kPositions>
HWY_NOINLINE void RunRowTile(const RowTileTask& task) {
  Lanes sums[kHeads][kPositions];
  const float* queries[kHeads];
  const std::byte* keys[kPositions];
  MOE_UNROLL for (std::size_t h = 0; h < kHeads; ++h) {
    queries[h] = task.queries.data() + h * task.queries.stride();
    MOE_UNROLL for (std::size_t p = 0; p < kPositions; ++p) sums[h][p] = Broadcast(0);
  }
  const std::size_t dim = task.queries.cols();
  const std::size_t row_bytes = dim * BytesPerElement(kType);
  MOE_UNROLL for (std::size_t p = 0; p < kPositions; ++p) keys[p] = task.keys + p * row_bytes;
  std::size_t at = 0;
  const std::size_t ahead = kPositions * row_bytes;  // memory is asked for the rows of the next tile meanwhile
  for (; at + kLanes <= dim; at += kLanes) {
    MOE_UNROLL for (std::size_t p = 0; p < kPositions; ++p) {
      hwy::Prefetch(keys[p] + at * BytesPerElement(kType) + ahead);
    }
    AddProducts<kType, true>(queries, keys, at, kLanes, sums);
  }
  if (at < dim) AddProducts<kType, false>(queries, keys, at, dim - at, sums);
  MOE_UNROLL for (std::size_t h = 0; h < kHeads; ++h) {
    MOE_UNROLL for (std::size_t p = 0; p < kPositions; ++p) task.scores(h, p) = SumOfLanes(sums[h][p]);
  }
}

using RowTileFunction = void (*)(const RowTileTask&);

/// Runs the tile that fits the task: 1 … kRowTileHeads heads, 1 or kRowTilePositions positions.
template <KvType kType>
void RunRowTileOf(const RowTileTask& task) {
  static constexpr auto kTiles = []<std::size_t... kHead>(std::index_sequence<kHead...>) {
    return std::array{std::array<RowTileFunction, 2>{&RunRowTile<kType, kHead + 1, 1>,
                                                     &RunRowTile<kType, kHead + 1, kRowTilePositions>}...};
  }
  (std::make_index_sequence<kRowTileHeads>());
  kTiles[task.queries.rows() - 1][task.scores.cols() > 1 ? 1 : 0](task);
}

/// Scores of the visible positions of a block whose keys are rows: (heads, 32), unscaled, 0 at the invisible ones. A
/// few positions are taken at a time for all heads, so that keys are loaded into the first-level cache once.
template <KvType kType>
void ScoreRows(const AttentionTask& task, const Block& block, MatrixView<float> scores) {
  const std::size_t heads = task.queries.rows();
  if (!block.whole()) {
    for (std::size_t head = 0; head < heads; ++head) std::fill_n(scores.row(head).begin(), kPageTokens, 0.0f);
  }
  const std::size_t row_bytes = task.queries.cols() * BytesPerElement(kType);
  for (std::size_t at = block.first; at < block.last;) {
    const std::size_t positions = block.last - at >= kRowTilePositions ? kRowTilePositions : 1;
    for (std::size_t head = 0; head < heads; head += kRowTileHeads) {
      const std::size_t count = std::min(kRowTileHeads, heads - head);
      RunRowTileOf<kType>({.queries = task.queries.Rows(head, count),
                           .keys = task.key_pages[block.page] + at * row_bytes,
                           .scores = scores.Rows(head, count).Columns(at, positions)});
    }
    at += positions;
  }
}

/// Attention of at most kMaxHeads heads over pages of one type.
template <KvType kType>
void AttendHeads(const AttentionTask& task) {
  const std::size_t heads = task.queries.rows();
  const RowTiles tiles(heads);
  const std::size_t dim = task.out.cols();
  // With few heads the columns of several pages are scored at once, to keep enough sums under way.
  const bool rows = task.key_layout == KeyLayout::kRows;
  const std::size_t value_stride = task.value_stride * BytesPerElement(kType);
  const std::size_t wanted = rows ? 1 : std::max<std::size_t>(PanelsForRows(heads) / kPanelsPerPage, 1);
  alignas(64) std::array<float, kMaxHeads * kPageTokens> scratch;
  static_assert(kMaxHeads >= kMaxPanels / kPanelsPerPage);
  std::array<SoftmaxState, kMaxHeads> states;
  for (std::size_t head = 0; head < heads; ++head) std::fill_n(task.out.row(head).begin(), dim, 0.0f);

  const std::size_t page_end = (task.end + kPageTokens - 1) / kPageTokens;
  for (std::size_t page = task.begin / kPageTokens; page < page_end;) {
    const std::size_t pages = std::min(wanted, page_end - page);
    MOE_CHECK(heads * pages <= kMaxHeads);
    const MatrixView<float> scores(scratch.data(), heads, pages * kPageTokens);
    if (rows) {
      ScoreRows<kType>(task, BlockOf(task, page), scores);
    } else {
      ScoreColumns<kType>(task, tiles, page, scores);
    }
    for (std::size_t i = 0; i < pages; ++i, ++page) {
      const Block block = BlockOf(task, page);
      const std::size_t visible = block.last - block.first;
      const MatrixView<float> weights = scores.Columns(i * kPageTokens, kPageTokens);
      for (std::size_t head = 0; head < heads; ++head) {
        const float rescale = WeighBlock(task, head, block, weights.row(head), states[head]);
        if (rescale != 1.0f) Scale(rescale, task.out.row(head));
      }
      AddValues<kType>(tiles, weights.Columns(block.first, visible),
                       task.value_pages[page] + block.first * value_stride, value_stride, task.out);
    }
  }
  for (std::size_t head = 0; head < heads; ++head) {
    if (!task.sinks.empty()) {
      Scale(states[head].RaiseTo(task.sinks[head]), task.out.row(head));
      states[head].total += moe::Exp(task.sinks[head] - states[head].shift());
    }
    Scale(1.0f / states[head].total, task.out.row(head));
  }
}

inline void Attention(const AttentionTask& task) {
  const std::size_t heads = task.queries.rows();
  MOE_CHECK(task.begin < task.end && task.out.rows() == heads && task.value_stride >= task.out.cols());
  MOE_CHECK(task.key_pages.size() * kPageTokens >= task.end && task.value_pages.size() * kPageTokens >= task.end);
  const bool biased = task.bias.rows() > 0;
  MOE_CHECK(!biased || task.bias.rows() == heads);
  MOE_CHECK(!biased || task.bias.cols() >= (task.end + kPageTokens - 1) / kPageTokens * kPageTokens);
  MOE_CHECK(task.sinks.empty() || task.sinks.size() == heads);
  const std::size_t groups = (heads + kMaxHeads - 1) / kMaxHeads;
  for (std::size_t group = 0; group < groups; ++group) {
    const std::size_t begin = group * heads / groups;
    const std::size_t count = (group + 1) * heads / groups - begin;
    AttentionTask part = task;
    part.queries = task.queries.Rows(begin, count);
    part.out = task.out.Rows(begin, count);
    if (biased) part.bias = task.bias.Rows(begin, count);
    if (!task.sinks.empty()) part.sinks = task.sinks.subspan(begin, count);
    if (task.type == KvType::kF32) {
      AttendHeads<KvType::kF32>(part);
    } else {
      AttendHeads<KvType::kBf16>(part);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#endif  // MOE_KERNELS_ATTENTION_INL_H_
