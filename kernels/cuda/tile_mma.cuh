// The one place that knows tensor cores: a product of tiles by one warp, D (16 rows, 16 outputs) += A (16, K) B (K,
// 16).
//
// A and B are counted in words, 32 bits of consecutive inputs: two of bf16 or f16, four of int8. K is eight words, in
// all formats, and so is which lane holds what (PTX ISA, "Matrix Fragments for mma.m16n8k16" and ".m16n8k32"). With
// g = lane / 4 and t = lane % 4, a lane holds
//   of A: words t and t + 4 of rows g and g + 8;
//   of B: words t and t + 4 of outputs g and g + 8 (the second for the second half of the outputs);
//   of D: rows g and g + 8, outputs 2 t and 2 t + 1 of each half.
// A sum does not care which inputs are called words t and t + 4, if A and B agree. Here they are words 2 t and 2 t + 1,
// which lie beside one another: one load of eight bytes.
#pragma once

#include "kernels/cuda/execution.cuh"

namespace moe::cuda {

/// Words 2 t and 2 t + 1 of a row or an output.
struct alignas(8) WordPair {
  std::uint32_t first;  // not initialised: shared memory cannot be
  std::uint32_t second;
};

enum class TileFormat : std::uint8_t { kBf16, kF16, kInt8 };

struct TileA {
  WordPair row;        // of row g
  WordPair lower_row;  // of row g + 8
};
struct TileB {
  WordPair output;        // of output g
  WordPair upper_output;  // of output g + 8
};
/// Sums of float (kBf16, kF16) or std::int32_t (kInt8, exact).
template <typename Sum>
struct TileD {
  Sum sums[2][4] = {};  // [half of the outputs]: (row g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1)
};

/// Row and output, inside of the tile, of d.sums[half][i].
MOE_DEVICE unsigned TileRow(unsigned i) { return LaneIndex() / 4 + (i / 2) * 8; }
MOE_DEVICE unsigned TileOutput(unsigned half, unsigned i) { return half * 8 + LaneIndex() % 4 * 2 + i % 2; }

#ifdef __CUDACC__

template <TileFormat kFormat, typename Sum>
__device__ __forceinline__ void MultiplyHalf(Sum (&d)[4], const TileA& a, const WordPair& b) {
  if constexpr (kFormat == TileFormat::kBf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.row.first), "r"(a.lower_row.first), "r"(a.row.second), "r"(a.lower_row.second), "r"(b.first),
          "r"(b.second));
  } else if constexpr (kFormat == TileFormat::kF16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.row.first), "r"(a.lower_row.first), "r"(a.row.second), "r"(a.lower_row.second), "r"(b.first),
          "r"(b.second));
  } else {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a.row.first), "r"(a.lower_row.first), "r"(a.row.second), "r"(a.lower_row.second), "r"(b.first),
          "r"(b.second));
  }
}

/// All lanes of a warp together.
template <TileFormat kFormat, typename Sum>
__device__ __forceinline__ void MultiplyTile(const TileA& a, const TileB& b, TileD<Sum>& d) {
  MultiplyHalf<kFormat>(d.sums[0], a, b.output);
  MultiplyHalf<kFormat>(d.sums[1], a, b.upper_output);
}

#else

/// Inputs of a word, as numbers.
template <TileFormat kFormat>
inline constexpr unsigned kWordInputs = kFormat == TileFormat::kInt8 ? 4 : 2;

template <TileFormat kFormat, typename Sum>
Sum InputOf(std::uint32_t word, unsigned i) {
  if constexpr (kFormat == TileFormat::kInt8) {
    return static_cast<std::int8_t>(word >> 8 * i & 0xff);
  } else {
    const auto bits = static_cast<std::uint16_t>(word >> 16 * i & 0xffff);
    return kFormat == TileFormat::kBf16 ? WidenBf16(bits) : WidenF16(bits);
  }
}

/// All inputs of a row of A, or of an output of B: the four lanes from `first` on hold two words each, `pair` of them.
template <TileFormat kFormat, typename Sum, typename Held, typename Pair>
void ReadInputs(const std::array<Held, kWarpLanes>& held, unsigned first, Pair pair, Sum* inputs) {
  for (unsigned t = 0; t < 4; ++t) {
    const WordPair words = pair(held[first + t]);
    for (const std::uint32_t word : {words.first, words.second})
      for (unsigned i = 0; i < kWordInputs<kFormat>; ++i) *inputs++ = InputOf<kFormat, Sum>(word, i);
  }
}

/// All lanes of a warp together: each shows the others what it holds of A and B, by the layout above. Products are
/// added one by one in ascending order of inputs.
template <TileFormat kFormat, typename Sum>
void MultiplyTile(const TileA& a, const TileB& b, TileD<Sum>& d, const Site& site = Site::current()) {
  struct Held {
    TileA a;
    TileB b;
  };
  constexpr unsigned kInputs = 8 * kWordInputs<kFormat>;
  const std::array<Held, kWarpLanes> held = GatherLanes(Held{a, b}, kWholeWarp, site);
  Sum x[2][kInputs];  // of rows g and g + 8
  ReadInputs<kFormat>(
      held, TileRow(0) * 4, [](const Held& lane) { return lane.a.row; }, x[0]);
  ReadInputs<kFormat>(
      held, TileRow(0) * 4, [](const Held& lane) { return lane.a.lower_row; }, x[1]);
  for (unsigned half = 0; half < 2; ++half) {
    Sum w[2][kInputs];  // of outputs 2 t and 2 t + 1 of the half
    for (unsigned i = 0; i < 2; ++i) {
      ReadInputs<kFormat>(
          held, TileOutput(0, i) * 4,
          [half](const Held& lane) { return half == 0 ? lane.b.output : lane.b.upper_output; }, w[i]);
    }
    for (unsigned i = 0; i < 4; ++i) {
      Sum sum = d.sums[half][i];
      for (unsigned k = 0; k < kInputs; ++k) sum += x[i / 2][k] * w[i % 2][k];  // of 16-bit floats exact products
      d.sums[half][i] = sum;
    }
  }
}

#endif

}  // namespace moe::cuda
