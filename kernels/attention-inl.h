// Attention of a few queries over the KV pages of one head.
#if defined(MOE_KERNELS_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_KERNELS_ATTENTION_INL_H_
#undef MOE_KERNELS_ATTENTION_INL_H_
#else
#define MOE_KERNELS_ATTENTION_INL_H_
#endif

#include <hwy/cache_control.h>

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

/// Queries that go through the pages together, in tiles. Latent attention has up to 128 heads on one page of
/// 32 x 576 fp32, 72 KiB: each head does 70,000 operations with it, so that 32 heads do 30 a byte, well over what
/// memory can starve; their queries and outputs are another 136 KiB of the second-level cache.
inline constexpr std::size_t kMaxQueries = 32;

// A tile of scores of key rows, (heads, positions) sums of sixteen lanes. The registers have to hold the sums, one
// key of each position and one query: 16 + 4 + 1 of 32 with AVX-512, 8 loads for 16 multiply-adds; 8 + 4 + 2 of 16
// with AVX2.
inline constexpr std::size_t kRowTileHeads = kRegistersPerLanes == 1 ? 4 : 2;
inline constexpr std::size_t kRowTilePositions = kRegistersPerLanes == 1 ? 4 : 2;

/// Where the online softmax of one query stands.
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
  bool empty() const { return first >= last; }
  std::size_t visible() const { return last - first; }
  bool operator==(const Block&) const = default;
};

inline Block BlockOf(const VisibleRange& range, std::size_t page) {
  const std::size_t start = page * kPageTokens;
  return {page, std::max(range.begin, start) - start, std::min(std::max(range.end, start) - start, kPageTokens)};
}

/// Turns one query's scores of a block into weights, in place, and returns the factor for the sums so far. Scores and
/// bias of invisible positions may be anything.
inline float WeighBlock(const AttentionTask& task, std::size_t query, const Block& block, std::span<float> scores,
                        SoftmaxState& state) {
  const Lanes factor = Broadcast(task.scale);
  Lanes low = Mul(Load(scores.data()), factor);
  Lanes high = Mul(Load(scores.data() + kLanes), factor);
  if (task.bias.rows() > 0) {
    const float* bias = task.bias.row(query).data() + block.page * kPageTokens;
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

/// out(query, :) += sum over positions of weights(query, position) * values(position, :), the first position's values
/// at `values`, the next ones `stride` bytes on. Inlined, for with one query a page is too little work to pass matrices
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
  for (std::size_t query = 0; query < weights.rows(); ++query) {
    Lanes sum = LoadFirst(out.row(query).data() + done, rest);
    for (std::size_t at = 0; at < weights.cols(); ++at) {
      const std::byte* value = values + at * stride + done * kBytes;
      sum = Fma(Broadcast(weights(query, at)), LoadFirstElements<kType>(value, rest), sum);
    }
    StoreFirst(sum, out.row(query).data() + done, rest);
  }
}

/// Scores of all positions of as many pages as `scores` has room for, from page `page` on: (queries, 32 pages),
/// unscaled.
template <KvType kType>
void ScoreColumns(const AttentionTask& task, MatrixView<const float> queries, const RowTiles& tiles, std::size_t page,
                  MatrixView<float> scores) {
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
      RunTileOf<kReadAs<kType>>({.x = queries.Rows(tiles.begin(tile), tiles.size(tile)),
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

/// Scores of the visible positions of a block whose keys are rows: (queries, 32), unscaled, 0 at the invisible ones. A
/// few positions are taken at a time for all queries, so that keys are loaded into the first-level cache once.
template <KvType kType>
void ScoreRows(const AttentionTask& task, MatrixView<const float> queries, const Block& block,
               MatrixView<float> scores) {
  if (!block.whole()) {
    for (std::size_t query = 0; query < queries.rows(); ++query) std::ranges::fill(scores.row(query), 0.0f);
  }
  const std::size_t row_bytes = queries.cols() * BytesPerElement(kType);
  for (std::size_t at = block.first; at < block.last;) {
    const std::size_t positions = block.last - at >= kRowTilePositions ? kRowTilePositions : 1;
    for (std::size_t query = 0; query < queries.rows(); query += kRowTileHeads) {
      const std::size_t count = std::min(kRowTileHeads, queries.rows() - query);
      RunRowTileOf<kType>({.queries = queries.Rows(query, count),
                           .keys = task.key_pages[block.page] + at * row_bytes,
                           .scores = scores.Rows(query, count).Columns(at, positions)});
    }
    at += positions;
  }
}

/// Attention of at most kMaxQueries queries over pages of one type.
template <KvType kType>
class Attending {
 public:
  explicit Attending(const AttentionTask& task) : task_(task), tiles_(task.queries.rows()) {}

  void Run() {
    const std::size_t queries = task_.queries.rows();
    for (std::size_t query = 0; query < queries; ++query) std::ranges::fill(task_.out.row(query), 0.0f);
    // With few queries the columns of several pages are scored at once, to keep enough sums under way.
    const bool rows = task_.key_layout == KeyLayout::kRows;
    const std::size_t wanted = rows ? 1 : std::max<std::size_t>(PanelsForRows(queries) / kPanelsPerPage, 1);
    const std::size_t page_end = (task_.end + kPageTokens - 1) / kPageTokens;
    // The queries that see anything of the pages under way: later ones, where begins and ends ascend.
    std::size_t first = 0;
    std::size_t last = 0;
    for (std::size_t page = task_.begin / kPageTokens; page < page_end;) {
      const std::size_t pages = std::min(wanted, page_end - page);
      while (first < queries && task_.SeenBy(first).end <= page * kPageTokens) ++first;
      while (last < queries && task_.SeenBy(last).begin < (page + pages) * kPageTokens) ++last;
      RunPages(page, pages, first, last);
      page += pages;
    }
    for (std::size_t query = 0; query < queries; ++query) Finish(query);
  }

 private:
  void RunPages(std::size_t page, std::size_t pages, std::size_t first, std::size_t last) {
    if (first == last) return;
    const std::size_t count = last - first;
    MOE_CHECK(count * pages <= kMaxQueries);
    const MatrixView<float> scores(scratch_.data(), count, pages * kPageTokens);
    const MatrixView<const float> queries = task_.queries.Rows(first, count);
    if (task_.key_layout == KeyLayout::kRows) {
      const VisibleRange seen{.begin = task_.SeenBy(first).begin, .end = task_.SeenBy(last - 1).end};
      ScoreRows<kType>(task_, queries, BlockOf(seen, page), scores);
    } else {
      ScoreColumns<kType>(task_, queries, TilesOf(count), page, scores);
    }
    for (std::size_t i = 0; i < pages; ++i)
      AddPage(page + i, first, last, scores.Columns(i * kPageTokens, kPageTokens));
  }

  /// Queries that see the same of a page are summed together.
  void AddPage(std::size_t page, std::size_t first, std::size_t last, MatrixView<float> scores) {
    const std::size_t stride = task_.value_stride * BytesPerElement(kType);
    for (std::size_t query = first; query < last;) {
      const Block block = BlockOf(task_.SeenBy(query), page);
      std::size_t end = query;
      for (; end < last && BlockOf(task_.SeenBy(end), page) == block; ++end) {
        if (block.empty()) continue;
        const float rescale = WeighBlock(task_, end, block, scores.row(end - first), states_[end]);
        if (rescale != 1.0f) Scale(rescale, task_.out.row(end));
      }
      if (!block.empty()) {
        AddValues<kType>(TilesOf(end - query),
                         scores.Rows(query - first, end - query).Columns(block.first, block.visible()),
                         task_.value_pages[page] + block.first * stride, stride, task_.out.Rows(query, end - query));
      }
      query = end;
    }
  }

  void Finish(std::size_t query) {
    if (!task_.sinks.empty()) {
      Scale(states_[query].RaiseTo(task_.sinks[query]), task_.out.row(query));
      states_[query].total += moe::Exp(task_.sinks[query] - states_[query].shift());
    }
    Scale(1.0f / states_[query].total, task_.out.row(query));
  }

  /// Mostly those of all queries, whose division is done once.
  RowTiles TilesOf(std::size_t queries) const { return queries == task_.queries.rows() ? tiles_ : RowTiles(queries); }

  const AttentionTask& task_;
  const RowTiles tiles_;
  std::array<SoftmaxState, kMaxQueries> states_;
  alignas(64) std::array<float, kMaxQueries * kPageTokens> scratch_;
  static_assert(kMaxQueries >= kMaxPanels / kPanelsPerPage);
};

inline void Attention(const AttentionTask& task) {
  const std::size_t queries = task.queries.rows();
  MOE_CHECK(task.begin < task.end && task.out.rows() == queries && task.value_stride >= task.out.cols());
  MOE_CHECK(task.key_pages.size() * kPageTokens >= task.end && task.value_pages.size() * kPageTokens >= task.end);
  const bool biased = task.bias.rows() > 0;
  MOE_CHECK(!biased || task.bias.rows() == queries);
  MOE_CHECK(!biased || task.bias.cols() >= (task.end + kPageTokens - 1) / kPageTokens * kPageTokens);
  MOE_CHECK(task.sinks.empty() || task.sinks.size() == queries);
  MOE_CHECK(task.visible.empty() || task.visible.size() == queries);
  const std::size_t parts = (queries + kMaxQueries - 1) / kMaxQueries;
  for (std::size_t index = 0; index < parts; ++index) {
    const std::size_t first = index * queries / parts;
    const std::size_t count = (index + 1) * queries / parts - first;
    AttentionTask part = task;
    part.queries = task.queries.Rows(first, count);
    part.out = task.out.Rows(first, count);
    if (biased) part.bias = task.bias.Rows(first, count);
    if (!task.sinks.empty()) part.sinks = task.sinks.subspan(first, count);
    if (!task.visible.empty()) {
      part.visible = task.visible.subspan(first, count);
      part.begin = part.visible.front().begin;
      part.end = part.visible.back().end;
    }
    if (task.type == KvType::kF32) {
      Attending<KvType::kF32>(part).Run();
    } else {
      Attending<KvType::kBf16>(part).Run();
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#endif  // MOE_KERNELS_ATTENTION_INL_H_
