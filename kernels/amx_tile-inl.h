// The inner loop over integer weights where the processor multiplies tiles of 16 rows by 16 columns (AMX): the dot
// products of a group are one instruction, since a panel's group of int8 is a tile as it lies there. The sums are those
// of kernels/int_tile-inl.h, bit by bit.
#if defined(MOE_KERNELS_AMX_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_KERNELS_AMX_TILE_INL_H_
#undef MOE_KERNELS_AMX_TILE_INL_H_
#else
#define MOE_KERNELS_AMX_TILE_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "kernels/amx.h"
#include "kernels/int_tile-inl.h"

#if HWY_TARGET == HWY_AVX3_DL
HWY_BEFORE_NAMESPACE();
namespace moe {
namespace HWY_NAMESPACE {

// The first of the tile registers that hold … Rows come in tiles of two sizes, each with registers of its own, because
// giving a register another shape takes as long as some groups do. Dots and weights have two each, so that one group is
// multiplied while the last one's dots are stored.
inline constexpr int kAmxDots = 0;     // 2 for larger tiles, 2 for smaller
inline constexpr int kAmxRows = 4;     // 1 for larger tiles, 1 for smaller
inline constexpr int kAmxWeights = 6;  // 2

// From this many rows on tiles beat dot instructions: on a Sapphire Rapids Xeon, weights in cache, by 654 to 421 Gop/s
// a thread in int8 and by 354 to 340 in int4; with 16 rows by 803 to 503 and 567 to 375. What remains is the way of the
// dots through memory and into the sums. Eight rows read weights from memory faster without.
inline constexpr std::size_t kAmxFromRows = 9;
inline constexpr std::size_t kAmxMaxRows = 16;
inline constexpr std::size_t kAmxMinRows = 8;  // 17 rows are tiles of 9 and 8, and no more rows have smaller ones

/// For products with weights of `type`: rows in tiles of `larger`, at least 2, and of one less.
HWY_INLINE AmxConfiguration AmxShapes(WeightType type, std::size_t larger) {
  AmxConfiguration shapes;
  for (int turn = 0; turn < 2; ++turn) {
    shapes.Shape(kAmxDots + turn, larger, kLanes * sizeof(std::int32_t));
    shapes.Shape(kAmxDots + 2 + turn, larger - 1, kLanes * sizeof(std::int32_t));
    shapes.Shape(kAmxWeights + turn, GroupSize(type) / 4, kLanes * 4);
  }
  shapes.Shape(kAmxRows, larger, GroupSize(type));
  shapes.Shape(kAmxRows + 1, larger - 1, GroupSize(type));
  return shapes;
}

/// dots = rows times weights, of registers of that number.
template <int kDots, int kRows, int kWeights>
HWY_INLINE void AmxMultiply(const std::int8_t* rows, std::size_t row_stride, const std::byte* weights) {
  asm volatile(
      "tileloadd (%[weights], %[line]), %%tmm%c[w]\n\t"
      "tileloadd (%[rows], %[stride]), %%tmm%c[r]\n\t"
      "tilezero %%tmm%c[d]\n\t"
      "tdpbsud %%tmm%c[w], %%tmm%c[r], %%tmm%c[d]"
      :
      : [weights] "r"(weights), [line] "r"(kLanes * 4), [rows] "r"(rows), [stride] "r"(row_stride), [w] "i"(kWeights),
        [r] "i"(kRows), [d] "i"(kDots)
      : "memory");
}

template <int kDots>
HWY_INLINE void AmxStore(std::int32_t* dots) {
  asm volatile("tilestored %%tmm%c[d], (%[dots], %[line])"
               :
               : [dots] "r"(dots), [line] "r"(kLanes * sizeof(std::int32_t)), [d] "i"(kDots)
               : "memory");
}

/// A group of int4 as bytes, in the layout of int8.
HWY_INLINE void WidenNibbles(const std::byte* packed, std::byte* widened) {
  constexpr std::size_t kBlock = kLanes * 4;
  MOE_UNROLL for (std::size_t block = 0; block < kGroupBytes<WeightType::kInt4> / kBlock; ++block) {
    const Quads both = LoadQuads(packed + block * kBlock);
    StoreQuads(LowNibbles(both), widened + 2 * block * kBlock);
    StoreQuads(HighNibbles(both), widened + (2 * block + 1) * kBlock);
  }
}

/// Where a panel's groups are, one after the other, and the rows' that they meet.
template <WeightType kType, std::size_t kRows>
struct AmxStream {
  const std::byte* values;
  const std::byte* ask;  // memory that is wanted next
  const std::int8_t* x;
  std::size_t x_stride;
  const std::byte* scales;
  const float* x_scales;
  const std::int32_t* offsets;
  std::size_t stride;  // of the last two

  /// Asks for memory as far ahead as the next group is long; of int4, makes it int8.
  HWY_INLINE const std::byte* Next(std::byte* widened) {
    const std::byte* weights = values;
    MOE_UNROLL for (std::size_t line = 0; line < kGroupBytes<kType>; line += kLanes * 4) {
      __builtin_prefetch(ask + line, 0, 2);
    }
    if constexpr (kType == WeightType::kInt4) {
      WidenNibbles(values, widened);
      weights = widened;
    }
    values += kGroupBytes<kType>;
    ask += kGroupBytes<kType>;
    return weights;
  }

  /// The dot products of the rows' next group with `weights` to the registers of kTurn.
  template <int kTurn>
  HWY_INLINE void Multiply(bool smaller, const std::byte* weights) {
    smaller ? AmxMultiply<kAmxDots + 2 + kTurn, kAmxRows + 1, kAmxWeights + kTurn>(x, x_stride, weights)
            : AmxMultiply<kAmxDots + kTurn, kAmxRows, kAmxWeights + kTurn>(x, x_stride, weights);
    x += GroupSize(kType);
  }

  /// A group's dot products, in the order of Multiply, join the sums.
  HWY_INLINE void Add(const std::int32_t* dots, Lanes (&sums)[kRows]) {
    const Lanes scale = LoadWeights<WeightType::kBf16>(scales);
    MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) {
      const Lanes both = Mul(scale, Broadcast(x_scales[r]));
      sums[r] = Fma(ToFloat(GroupDots<kType>(LoadInts(dots + r * kLanes), offsets[r])), both, sums[r]);
    }
    scales += kGroupScaleBytes;
    x_scales += stride;
    offsets += stride;
  }
};

template <int kTurn>
HWY_INLINE void AmxStore(bool smaller, std::int32_t* dots) {
  smaller ? AmxStore<kAmxDots + 2 + kTurn>(dots) : AmxStore<kAmxDots + kTurn>(dots);
}

/// As RunIntTile, for one panel. AmxRegisters have tiles of kRows, or of kRows + 1 when `smaller`.
template <WeightType kType, std::size_t kRows>
HWY_NOINLINE void RunAmxTile(const IntTileTask& task, bool smaller) {
  const QuantizedView& in = task.x;
  const std::size_t columns = task.y.cols();
  const std::size_t groups = task.num_groups;
  const std::size_t ahead = std::min(groups, kAskAheadBytes / kGroupBytes<kType>);
  AmxStream<kType, kRows> stream{.values = task.values[0],
                                 .ask = task.values[0] + ahead * kGroupBytes<kType>,
                                 .x = in.values + task.first_group * GroupSize(kType),
                                 .x_stride = in.groups * GroupSize(kType),
                                 .scales = task.scales[0],
                                 .x_scales = in.scales + task.first_group * in.stride,
                                 .offsets = in.offsets + task.first_group * in.stride,
                                 .stride = in.stride};
  Lanes sums[kRows];
  MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) {
    sums[r] = task.first_group > 0 ? LoadUpTo16(task.y.data() + r * task.y.stride(), columns) : Broadcast(0);
  }
  alignas(64) std::int32_t dots[2][kRows * kLanes];
  alignas(64) std::byte widened[2][kType == WeightType::kInt4 ? kLanes * GroupSize(kType) : 1];
  // Of four groups on end one is made ready, one multiplied, one's dots stored and one's added: what is written to
  // memory and read right after as something else, by a tile or of a tile, is waited for until it has reached the
  // cache.
  const std::byte* weights[2];
  const auto next = [&](std::size_t group) HWY_ATTR {
    if (group == groups - ahead) stream.ask = task.following[0];
    if (group < groups) weights[group % 2] = stream.Next(widened[group % 2]);
  };
  next(0);
  for (std::size_t group = 0; group < groups + 2; group += 2) {
    next(group + 1);
    if (group < groups) stream.template Multiply<0>(smaller, weights[0]);
    if (group > 0 && group - 1 < groups) AmxStore<1>(smaller, dots[1]);
    if (group > 1) stream.Add(dots[0], sums);
    next(group + 2);
    if (group + 1 < groups) stream.template Multiply<1>(smaller, weights[1]);
    if (group < groups) AmxStore<0>(smaller, dots[0]);
    if (group > 0 && group - 1 < groups) stream.Add(dots[1], sums);
  }
  MOE_UNROLL for (std::size_t r = 0; r < kRows; ++r) {
    StoreUpTo16(sums[r], task.y.data() + r * task.y.stride(), columns);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // MOE_KERNELS_AMX_TILE_INL_H_
