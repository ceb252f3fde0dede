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
inline constexpr std::size_t kPanelsPerPage = 2;

/// Query heads that go through the pages together.
inline constexpr std::size_t kMaxHeads = kMaxTileRows;
inline constexpr std::size_t kMaxPagesAtOnce = kMaxPanels / kPanelsPerPage;

/// Where the online softmax of one head stands.
struct SoftmaxState {
  float highest = -kInfinity;
  float total = 0;
};

/// Turns one block's scores into weights, in place, and returns the factor for the sums so far. Positions outside
/// [first, last) of the block are invisible; their scores may be anything.
inline float WeighBlock(std::span<float> scores, std::size_t first, std::size_t last, float scale,
                        SoftmaxState& state) {
  const Lanes factor = Broadcast(scale);
  Lanes low = Mul(Load(scores.data()), factor);
  Lanes high = Mul(Load(scores.data() + kLanes), factor);
  if (first > 0 || last < kPageTokens) {
    low = Within(low, std::min(first, kLanes), std::min(last, kLanes), -kInfinity);
    high = Within(high, std::max(first, kLanes) - kLanes, std::max(last, kLanes) - kLanes, -kInfinity);
  }
  const float highest = std::max(state.highest, MaxOfLanes(Max(low, high)));
  low = Exp(Sub(low, Broadcast(highest)));
  high = Exp(Sub(high, Broadcast(highest)));
  Store(low, scores.data());
  Store(high, scores.data() + kLanes);
  const float rescale = moe::Exp(state.highest - highest);
  state.total = state.total * rescale + SumOfLanes(Add(low, high));
  state.highest = highest;
  return rescale;
}

inline void Scale(std::span<float> values, float by) {
  const Lanes factor = Broadcast(by);
  for (std::size_t i = 0; i < values.size(); i += kLanes) {
    const std::size_t count = values.size() - i;
    StoreUpTo16(Mul(LoadUpTo16(values.data() + i, count), factor), values.data() + i, count);
  }
}

/// out(head, :) += sum over positions of weights(head, position) * values(position, :).
inline void AddValues(MatrixView<const float> weights, MatrixView<const float> values, MatrixView<float> out) {
  const std::size_t whole = values.cols() / kLanes;
  std::array<const std::byte*, kMaxPanels> panels;
  for (std::size_t first = 0; first < whole;) {
    const std::size_t count = PanelsAtOnce(weights.rows(), whole - first);
    for (std::size_t p = 0; p < count; ++p) {
      panels[p] = reinterpret_cast<const std::byte*>(values.data() + (first + p) * kLanes);
    }
    RunTileOf<WeightType::kF32>({.x = weights,
                                 .panels = {panels.data(), count},
                                 .panel_stride = values.stride() * sizeof(float),
                                 .y = out.Columns(first * kLanes, count * kLanes),
                                 .continued = true});
    first += count;
  }
  const std::size_t done = whole * kLanes;
  const std::size_t rest = values.cols() - done;  // a tile would read past the last row
  if (rest == 0) return;
  for (std::size_t head = 0; head < weights.rows(); ++head) {
    Lanes sum = LoadFirst(out.row(head).data() + done, rest);
    for (std::size_t at = 0; at < values.rows(); ++at) {
      sum = Fma(Broadcast(weights(head, at)), LoadFirst(values.row(at).data() + done, rest), sum);
    }
    StoreFirst(sum, out.row(head).data() + done, rest);
  }
}

/// Scores of all positions of as many pages as `scores` has room for, from page `page` on: (heads, 32 pages), unscaled.
inline void ScorePages(const AttentionTask& task, MatrixView<const float> queries, std::size_t page,
                       MatrixView<float> scores) {
  std::array<const std::byte*, kMaxPanels> panels;
  const std::size_t whole = scores.cols() / kLanes;
  for (std::size_t first = 0; first < whole;) {
    const std::size_t count = PanelsAtOnce(queries.rows(), whole - first);
    for (std::size_t p = 0; p < count; ++p) {
      const std::size_t panel = first + p;
      const float* keys = task.key_pages[page + panel / kPanelsPerPage] + panel % kPanelsPerPage * kLanes;
      panels[p] = reinterpret_cast<const std::byte*>(keys);
    }
    RunTileOf<WeightType::kF32>({.x = queries,
                                 .panels = {panels.data(), count},
                                 .panel_stride = kPageTokens * sizeof(float),
                                 .y = scores.Columns(first * kLanes, count * kLanes)});
    first += count;
  }
}

/// Heads [first_head, first_head + heads) of the task, at most kMaxHeads.
inline void AttendHeads(const AttentionTask& task, std::size_t first_head, std::size_t heads) {
  alignas(64) std::array<float, kMaxHeads * kMaxPagesAtOnce * kPageTokens> scratch;
  std::array<SoftmaxState, kMaxHeads> states;
  const MatrixView<const float> queries = task.queries.Rows(first_head, heads);
  const MatrixView<float> out = task.out.Rows(first_head, heads);
  for (std::size_t head = 0; head < heads; ++head) std::fill_n(out.row(head).begin(), out.cols(), 0.0f);

  const std::size_t page_end = (task.end + kPageTokens - 1) / kPageTokens;
  for (std::size_t page = task.begin / kPageTokens; page < page_end;) {
    // With few heads the scores of several pages are taken at once, to keep enough sums under way.
    const std::size_t wanted = std::max<std::size_t>(PanelsForRows(heads) / kPanelsPerPage, 1);
    const std::size_t pages = std::min(wanted, page_end - page);
    const MatrixView<float> scores(scratch.data(), heads, pages * kPageTokens);
    ScorePages(task, queries, page, scores);
    for (std::size_t i = 0; i < pages; ++i, ++page) {
      const std::size_t start = page * kPageTokens;
      const std::size_t first = std::max(task.begin, start) - start;
      const std::size_t last = std::min(task.end - start, kPageTokens);
      const MatrixView<float> block = scores.Columns(i * kPageTokens, kPageTokens);
      for (std::size_t head = 0; head < heads; ++head) {
        const float rescale = WeighBlock(block.row(head), first, last, task.scale, states[head]);
        if (rescale != 1.0f) Scale(out.row(head), rescale);
      }
      const std::size_t dim = out.cols();
      AddValues(block.Columns(first, last - first), {task.value_pages[page] + first * dim, last - first, dim}, out);
    }
  }
  for (std::size_t head = 0; head < heads; ++head) Scale(out.row(head), 1.0f / states[head].total);
}

inline void Attention(const AttentionTask& task) {
  MOE_CHECK(task.begin < task.end && task.out.rows() == task.queries.rows());
  MOE_CHECK(task.key_pages.size() * kPageTokens >= task.end && task.value_pages.size() * kPageTokens >= task.end);
  const std::size_t heads = task.queries.rows();
  const std::size_t groups = (heads + kMaxHeads - 1) / kMaxHeads;
  for (std::size_t group = 0; group < groups; ++group) {
    const std::size_t begin = group * heads / groups;
    AttendHeads(task, begin, (group + 1) * heads / groups - begin);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#endif  // MOE_KERNELS_ATTENTION_INL_H_
