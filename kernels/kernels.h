// What the layers compute with: one contract, implemented by a plain reference and by SIMD code for several instruction
// sets. All SIMD targets give the same bits as one another (docs/architecture.md, invariant 1); the reference agrees
// with them within the rounding that the order of summation allows.
//
// Shared rules, which make a row's bits independent of rows beside it, tiles, threads and instruction sets:
//  - "running sum": acc = fma(a_k, b_k, acc), k ascending from acc = 0;
//  - "lane sum" over n values: 16 partial sums, value i goes to partial i % 16 in ascending order (fma where it is a
//  sum
//    of products), then partial j += partial j + 8, then + 4, + 2, + 1;
//  - exp is the polynomial of kernels/exp.h, fused multiply-adds written as such, the same for vectors and scalars.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/matrix.h"
#include "kernels/kv_type.h"
#include "kernels/packed_matrix.h"
#include "kernels/quantize.h"

namespace moe {

/// Positions that share a page of the KV cache and a block of the attention sums. Pages lie at absolute positions
/// 32 * index, so that the order of the sums depends on the position alone. 32 positions are two AVX-512 registers.
inline constexpr std::size_t kPageTokens = 32;

/// How rotary embedding pairs the elements of a head of width r: (i, i + r/2), or (2i, 2i + 1).
enum class RopePairing : std::uint8_t { kHalfSplit, kInterleaved };

/// How a page holds keys: one column a position (key_dim, kPageTokens), which scores read strictly forward; or one row
/// a position (kPageTokens, key_dim), for latent attention, where the values are the first columns of the same rows.
enum class KeyLayout : std::uint8_t { kColumns, kRows };

/// Positions [begin, end) that a query sees.
struct VisibleRange {
  std::size_t begin = 0;
  std::size_t end = 0;

  bool operator==(const VisibleRange&) const = default;
};

/// Queries against the cached positions that they see, all on one KV head: the query heads of one position that share
/// it, or one query head at several positions.
struct AttentionTask {
  MatrixView<const float> queries;  // (queries, key_dim)
  KvType type = KvType::kF32;       // of the pages' elements, which are widened exactly
  // By absolute page, as key_layout says; only those of [begin, end) are read.
  std::span<const std::byte* const> key_pages;
  KeyLayout key_layout = KeyLayout::kColumns;
  // By absolute page: (kPageTokens, value_dim), rows value_stride apart.
  std::span<const std::byte* const> value_pages;
  std::size_t value_stride = 0;  // elements; at least value_dim
  std::size_t begin = 0;         // visible positions [begin, end), end > begin
  std::size_t end = 0;
  // What each query sees of them, at least one position, begins and ends ascending; empty: all of them.
  std::span<const VisibleRange> visible;
  float scale = 1;
  MatrixView<const float> bias;  // (queries, at least end rounded up to a page) by position, added to the scaled
                                 // scores; empty: none. Values at invisible positions are read and do not count;
                                 // -infinity hides a visible one.
  std::span<const float> sinks;  // (queries) a score that joins the softmax without a value; empty: none (gpt-oss)
  MatrixView<float> out;         // (queries, value_dim)

  VisibleRange SeenBy(std::size_t query) const {
    return visible.empty() ? VisibleRange{.begin = begin, .end = end} : visible[query];
  }
};

class Kernels {
 public:
  virtual ~Kernels() = default;

  /// "reference", "portable", "avx2", "avx3", "avx3_dl", "amx", …
  virtual std::string_view name() const = 0;

  /// Y = X(T, k) W^T, (T, outputs of panels [panel_begin, panel_end) of W); x.cols() = W.cols(). Each element is one
  /// running sum over k; weights are widened exactly. W is not quantized.
  virtual void MatMulPanels(MatrixView<const float> x, const PackedMatrix& w, std::size_t panel_begin,
                            std::size_t panel_end, MatrixView<float> y) const = 0;

  /// The same for W of int8 or int4 and x in its groups. Each element is a sum over groups, ascending, from 0:
  /// sum = fma(dot, w scale * x scale, sum), where dot, the sum of a group's products of integers, is exact and the
  /// product of scales is rounded to fp32.
  virtual void MatMulPanels(const QuantizedView& x, const PackedMatrix& w, std::size_t panel_begin,
                            std::size_t panel_end, MatrixView<float> y) const = 0;

  /// Activations x (k) to int8 in groups of `group` inputs, as kernels/quantize.h says; out has ceil(k / group) groups.
  virtual void QuantizeRow(std::span<const float> x, std::size_t group, const QuantizedGroups& out) const = 0;

  /// The weights of one output, (1, k), to int8 or int4: stored values (whole groups, zeros past k) and scales in bf16.
  /// Squared errors are lane sums.
  virtual void QuantizeWeights(const WeightView& row, WeightType type, std::span<std::uint8_t> values,
                               std::span<std::uint16_t> scales) const = 0;

  /// y = weight * x / sqrt(mean(x²) + eps); the sum of squares is a lane sum. An empty weight is all ones. y may be x.
  virtual void RmsNorm(std::span<const float> x, std::span<const float> weight, float eps,
                       std::span<float> y) const = 0;

  /// Rotates each head of `heads` (n, width ≥ r) in place by the angles whose cosines and sines are given, (r/2) each;
  /// the elements past r pass. A pair (a, b) becomes (a cos − b sin, b cos + a sin), each fma(a, cos, −(b * sin)) and
  /// fma(b, cos, a * sin).
  virtual void Rope(MatrixView<float> heads, std::span<const float> cos, std::span<const float> sin,
                    RopePairing pairing) const = 0;

  /// gate[i] = silu(gate[i]) * up[i], silu(z) = z / (1 + exp(−z)).
  virtual void SiluMul(std::span<float> gate, std::span<const float> up) const = 0;

  /// gate[i] = (up' + 1) * gate' * sigmoid(1.702 * gate'), gate' = min(gate[i], limit), up' = up[i] clamped to ±limit,
  /// sigmoid(z) = 1 / (1 + exp(−z)) (gpt-oss). As written: s = gate' / (1 + exp(−1.702 gate')), gate = fma(up', s, s).
  virtual void ClampedSwiGlu(std::span<float> gate, std::span<const float> up, float limit) const = 0;

  /// x[i] = max(x[i], 0); NaN stays NaN.
  virtual void Relu(std::span<float> x) const = 0;

  /// x[i] = 1 / (1 + exp(−x[i])).
  virtual void Sigmoid(std::span<float> x) const = 0;

  /// x[i] limited to ±limit; NaN stays NaN.
  virtual void Clamp(float limit, std::span<float> x) const = 0;

  /// x[i] *= factor.
  virtual void Scale(float factor, std::span<float> x) const = 0;

  /// y[i] += x[i].
  virtual void Add(std::span<const float> x, std::span<float> y) const = 0;

  /// y[i] = fma(scale, x[i], y[i]).
  virtual void AddScaled(float scale, std::span<const float> x, std::span<float> y) const = 0;

  /// x = exp(x − max) / sum of those; the sum is a lane sum.
  virtual void Softmax(std::span<float> x) const = 0;

  /// log(sum(exp(x))) with the maximum taken out; the sum is a lane sum.
  virtual float LogSumExp(std::span<const float> x) const = 0;

  /// out = softmax(scale * q·k + bias) v over the positions that it sees, for each query: online softmax in blocks of
  /// kPageTokens absolute positions, ascending. In a block: scores are running sums over key_dim (KeyLayout::kColumns)
  /// or lane sums (kRows), then times scale, then plus bias when there is one; invisible positions weigh nothing; the
  /// new maximum m' = max(m, block's); earlier sums are scaled by exp(m − m'); weights p = exp(s − m'); their sum over
  /// the 32 positions is a lane sum, added to the total; each output is a running sum over the block's positions
  /// continued from the scaled one (p = 0 terms are skipped or added alike). A sink joins last: m' = max(m, sink),
  /// everything scaled by exp(m − m'), the total grows by exp(sink − m').
  virtual void Attention(const AttentionTask& task) const = 0;
};

/// Plain loops in fp32 with double accumulators where that is the honest reference; slow, for tests.
const Kernels& ReferenceKernels();

/// The SIMD implementation for the best instruction set of this machine.
const Kernels& SimdKernels();

/// Every SIMD implementation that can run on this machine, best first, the portable one last.
std::vector<const Kernels*> AvailableSimdKernels();

}  // namespace moe
