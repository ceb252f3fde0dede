// What every expert backend promises, as one set of test bodies. A binary instantiates it with ways to make a backend.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "experts/expert_backend.h"
#include "kernels/weight_type.h"
#include "tests/contract/allocation_count.h"
#include "tests/kernels/kernel_cases.h"

namespace moe {

struct ExpertBackendLimits {
  std::size_t max_rows = 0;      // of one Run
  std::size_t intermediate = 0;  // the widest expert's
};

struct ExpertBackendContractParam {
  std::string name;
  std::function<std::unique_ptr<ExpertBackend>(ThreadPool&, const ExpertBackendLimits&)> make;
};

inline void PrintTo(const ExpertBackendContractParam& param, std::ostream* out) { *out << param.name; }

/// A layer of random experts, one a slot, of the given intermediate sizes.
struct ExpertLayerCase {
  std::size_t hidden = 0;
  Counts intermediates;
  WeightType type = WeightType::kF32;
  bool bias = false;
};

inline PackedMatrix RandomMatrix(std::size_t rows, std::size_t cols, WeightType type, std::uint32_t seed) {
  std::vector<float> values = RandomValues(rows * cols, seed);
  const float scale = 1 / std::sqrt(static_cast<float>(cols));  // outputs as large as inputs
  for (float& value : values) value *= scale;
  return PackedMatrix::Pack(
      {.type = WeightType::kF32, .data = reinterpret_cast<const std::byte*>(values.data()), .rows = rows, .cols = cols},
      type);
}

inline ExpertShard::Layer MakeExpertLayer(const ExpertLayerCase& c) {
  ExpertShard::Layer layer{.layer = 5};
  std::uint32_t seed = 40;
  for (std::size_t slot = 0; slot < c.intermediates.size(); ++slot) {
    const std::size_t intermediate = c.intermediates[slot];
    MlpWeights weights{.gate_up = RandomMatrix(2 * intermediate, c.hidden, c.type, ++seed),
                       .down = RandomMatrix(c.hidden, intermediate, c.type, ++seed)};
    if (c.bias) {
      weights.gate_up_bias = RandomValues(2 * intermediate, ++seed);
      weights.down_bias = RandomValues(c.hidden, ++seed);
    }
    layer.experts.push_back(static_cast<int>(slot));
    layer.weights.push_back(std::move(weights));
  }
  return layer;
}

/// A value computed in double, and by how much an honest fp32 computation of it may be off.
struct Bounded {
  double value = 0;
  double error = 0;
};

/// W x + bias in double. In fp32, n products and n additions (and one for the bias) round; each rounding is at most
/// half an ulp of a partial sum, which is at most Σ |w x| + |bias|. What x itself is off by is passed on.
inline Bounded LinearInDouble(const PackedMatrix& w, std::size_t row, std::span<const Bounded> x,
                              const std::vector<float>& bias) {
  Bounded sum;
  double magnitude = 0;
  for (std::size_t k = 0; k < w.cols(); ++k) {
    const double weight = PackedElement(w, row, k);
    sum.value += weight * x[k].value;
    sum.error += std::abs(weight) * x[k].error;
    magnitude += std::abs(weight * x[k].value);
  }
  if (!bias.empty()) {
    sum.value += bias[row];
    magnitude += std::abs(bias[row]);
  }
  sum.error += (2 * static_cast<double>(w.cols()) + 1) * kRoundoff * magnitude;
  return sum;
}

/// down(silu(gate x) * up x) by its definition.
inline std::vector<Bounded> ExpertInDouble(const MlpWeights& w, std::span<const float> in) {
  std::vector<Bounded> x;
  for (const float value : in) x.push_back({.value = value});
  std::vector<Bounded> hidden;
  const std::size_t intermediate = w.down.cols();
  for (std::size_t i = 0; i < intermediate; ++i) {
    const Bounded gate = LinearInDouble(w.gate_up, i, x, w.gate_up_bias);
    const Bounded up = LinearInDouble(w.gate_up, intermediate + i, x, w.gate_up_bias);
    const double silu = gate.value / (1 + std::exp(-gate.value));
    // The slope of silu is at most 1.1. exp is off by an ulp and by half an ulp of its argument, up to 8 here; the
    // sum, the quotient and the product round once each.
    const double silu_error = 1.1 * gate.error + (2 + 8 + 2) * kRoundoff * std::abs(silu);
    hidden.push_back({.value = silu * up.value,
                      .error = silu_error * (std::abs(up.value) + up.error) + std::abs(silu) * up.error +
                               kRoundoff * std::abs(silu * up.value)});
  }
  std::vector<Bounded> out;
  for (std::size_t i = 0; i < w.down.rows(); ++i) out.push_back(LinearInDouble(w.down, i, hidden, w.down_bias));
  return out;
}

class ExpertBackendContract : public testing::TestWithParam<ExpertBackendContractParam> {
 protected:
  static constexpr std::size_t kGap = 3;  // rows lie further apart than they are long
  static constexpr float kUntouched = 12345.0f;

  struct Run {
    std::vector<float> in;
    std::vector<float> out;
  };

  std::unique_ptr<ExpertBackend> Make(ThreadPool& pool, const ExpertBackendLimits& limits) {
    return GetParam().make(pool, limits);
  }

  static std::vector<std::uint32_t> OffsetsOf(const Counts& counts) {
    std::vector<std::uint32_t> offsets(1, 0);
    for (const std::size_t count : counts) offsets.push_back(offsets.back() + static_cast<std::uint32_t>(count));
    return offsets;
  }

  /// The rows of `in` (rows, hidden) through the backend, counts[s] of them in slot s; tightly packed results. Fails
  /// when anything but the result was written.
  static std::vector<float> RunRows(ExpertBackend& backend, const ExpertShard::Layer& layer, const Counts& counts,
                                    std::span<const float> in, std::size_t hidden) {
    const std::vector<std::uint32_t> offsets = OffsetsOf(counts);
    const std::size_t rows = offsets.back();
    const std::size_t stride = hidden + kGap;
    std::vector<float> spaced_in(rows * stride, kUntouched);
    std::vector<float> spaced_out(rows * stride, kUntouched);
    for (std::size_t row = 0; row < rows; ++row)
      std::copy_n(in.begin() + static_cast<std::ptrdiff_t>(row * hidden), hidden,
                  spaced_in.begin() + static_cast<std::ptrdiff_t>(row * stride));
    const std::vector<float> before = spaced_in;
    backend.Run(layer, {.offsets = offsets,
                        .in = MatrixView<const float>(spaced_in.data(), rows, hidden, stride),
                        .out = MatrixView<float>(spaced_out.data(), rows, hidden, stride)});
    EXPECT_TRUE(SameBits(spaced_in, before)) << "the input was written to";
    std::vector<float> out;
    for (std::size_t row = 0; row < rows; ++row) {
      const auto begin = spaced_out.begin() + static_cast<std::ptrdiff_t>(row * stride);
      out.insert(out.end(), begin, begin + static_cast<std::ptrdiff_t>(hidden));
      for (std::size_t i = 0; i < kGap; ++i) EXPECT_EQ(spaced_out[row * stride + hidden + i], kUntouched);
    }
    return out;
  }

  void ExpectNearDouble(const ExpertLayerCase& c, const Counts& counts) {
    const ExpertShard::Layer layer = MakeExpertLayer(c);
    const std::size_t rows = std::accumulate(counts.begin(), counts.end(), std::size_t{0});
    ThreadPool pool(2);
    const auto backend = Make(pool, {.max_rows = std::max<std::size_t>(1, rows), .intermediate = 100});
    const std::vector<float> in = RandomValues(rows * c.hidden, 9);
    const std::vector<float> out = RunRows(*backend, layer, counts, in, c.hidden);
    std::size_t row = 0;
    for (std::size_t slot = 0; slot < counts.size(); ++slot) {
      for (std::size_t i = 0; i < counts[slot]; ++i, ++row) {
        const auto expected = ExpertInDouble(layer.weights[slot], std::span(in).subspan(row * c.hidden, c.hidden));
        for (std::size_t j = 0; j < c.hidden; ++j)
          ASSERT_NEAR(out[row * c.hidden + j], expected[j].value, expected[j].error)
              << Name(c.type) << ", slot " << slot << " of width " << c.intermediates[slot] << ", row " << i;
      }
    }
  }
};

TEST_P(ExpertBackendContract, NamesItsDevice) {
  ThreadPool pool(1);
  EXPECT_FALSE(Make(pool, {.max_rows = 1, .intermediate = 16})->device().empty());
}

TEST_P(ExpertBackendContract, AgreesWithPlainLoopsForEveryWeightTypeAndWidth) {
  for (const WeightType type : {WeightType::kF32, WeightType::kBf16, WeightType::kF16}) {
    for (const std::size_t hidden : Counts{56, 60, 64}) {
      for (const std::size_t width : Counts{44, 72, 100})
        ExpectNearDouble({.hidden = hidden, .intermediates = {width, width, width}, .type = type}, {2, 1, 5});
    }
  }
}

TEST_P(ExpertBackendContract, AddsTheBiases) {
  for (const std::size_t width : Counts{44, 72, 100}) {
    ExpectNearDouble({.hidden = 60, .intermediates = {width, width}, .bias = true}, {3, 4});
    ExpectNearDouble({.hidden = 70, .intermediates = {width, width}, .type = WeightType::kBf16, .bias = true}, {1, 18});
  }
}

TEST_P(ExpertBackendContract, SlotsMayDifferInWidth) {
  ExpectNearDouble({.hidden = 56, .intermediates = {44, 100, 16, 72, 1}}, {2, 3, 1, 2, 2});
  ExpectNearDouble({.hidden = 56, .intermediates = {100, 1, 17}, .bias = true}, {7, 7, 7});
}

TEST_P(ExpertBackendContract, SlotsMayBeEmpty) {
  const ExpertLayerCase c{.hidden = 56, .intermediates = {44, 44, 44, 44, 44}};
  for (const Counts& counts :
       {Counts{0, 0, 3, 0, 0}, Counts{2, 0, 0, 0, 0}, Counts{0, 0, 0, 0, 1}, Counts{0, 4, 0, 4, 0}})
    ExpectNearDouble(c, counts);
}

TEST_P(ExpertBackendContract, OneExpertMayTakeAllRows) {
  ExpectNearDouble({.hidden = 56, .intermediates = {72, 72, 72}}, {0, 97, 0});
  ExpectNearDouble({.hidden = 56, .intermediates = {72}}, {97});
}

TEST_P(ExpertBackendContract, NothingIsARunToo) {
  ThreadPool pool(2);
  const auto backend = Make(pool, {.max_rows = 4, .intermediate = 44});
  const ExpertShard::Layer layer = MakeExpertLayer({.hidden = 56, .intermediates = {44, 44}});
  EXPECT_TRUE(RunRows(*backend, layer, {0, 0}, {}, 56).empty());
  const ExpertShard::Layer idle{.layer = 5};  // of a worker without a slot in this layer
  EXPECT_TRUE(RunRows(*backend, idle, {}, {}, 56).empty());
}

TEST_P(ExpertBackendContract, ARowsBitsDoNotDependOnTheRowsBesideIt) {
  constexpr std::size_t kHidden = 60;
  constexpr std::size_t kRows = 61;
  for (const bool bias : {false, true}) {
    const ExpertShard::Layer layer =
        MakeExpertLayer({.hidden = kHidden, .intermediates = {72, 44}, .type = WeightType::kBf16, .bias = bias});
    ThreadPool pool(2);
    const auto backend = Make(pool, {.max_rows = 2 * kRows, .intermediate = 100});
    const std::vector<float> in = RandomValues(kRows * kHidden, 3);
    const auto row_of = [](const std::vector<float>& rows, std::size_t row) {
      return std::span(rows).subspan(row * kHidden, kHidden);
    };
    std::vector<float> alone;  // in slot 0
    for (std::size_t row = 0; row < kRows; ++row) {
      const std::vector<float> out = RunRows(*backend, layer, {1, 0}, row_of(in, row), kHidden);
      alone.insert(alone.end(), out.begin(), out.end());
    }
    for (std::size_t count = 1; count <= kRows; count += count < 20 ? 1 : 7) {
      const std::vector<float> out =
          RunRows(*backend, layer, {count, 0}, std::span(in).first(count * kHidden), kHidden);
      EXPECT_TRUE(SameBits(out, std::span(alone).first(count * kHidden))) << count << " rows";
    }
    // Behind others, and with the other expert at work.
    std::vector<float> both(in.begin() + 7 * kHidden, in.end());
    both.insert(both.end(), in.begin(), in.end());
    const std::vector<float> out = RunRows(*backend, layer, {kRows - 7, kRows}, both, kHidden);
    for (std::size_t row = 7; row < kRows; ++row)
      EXPECT_TRUE(SameBits(row_of(out, row - 7), row_of(alone, row))) << "row " << row;
  }
}

TEST_P(ExpertBackendContract, ThreadsDoNotChangeTheBits) {
  constexpr std::size_t kHidden = 96;
  const ExpertShard::Layer layer = MakeExpertLayer({.hidden = kHidden, .intermediates = {200, 136, 200}, .bias = true});
  const Counts counts = {40, 1, 90};  // over 10^6 multiply-adds: worth sharing out
  const std::vector<float> in = RandomValues(131 * kHidden, 4);
  std::vector<float> expected;
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    const auto backend = Make(pool, {.max_rows = 131, .intermediate = 200});
    for (int repeat = 0; repeat < 5; ++repeat) {
      const std::vector<float> out = RunRows(*backend, layer, counts, in, kHidden);
      if (expected.empty()) expected = out;
      EXPECT_TRUE(SameBits(out, expected)) << threads << " threads";
    }
  }
}

TEST_P(ExpertBackendContract, ARunLeavesNoTraceInTheNext) {
  constexpr std::size_t kHidden = 64;
  const ExpertShard::Layer wide = MakeExpertLayer({.hidden = kHidden, .intermediates = {100, 72}, .bias = true});
  const ExpertShard::Layer narrow = MakeExpertLayer({.hidden = kHidden, .intermediates = {44}});
  ThreadPool pool(1);
  const auto fresh = Make(pool, {.max_rows = 30, .intermediate = 100});
  const auto used = Make(pool, {.max_rows = 30, .intermediate = 100});
  const std::vector<float> in = RandomValues(30 * kHidden, 8);
  RunRows(*used, wide, {10, 20}, in, kHidden);
  const std::span<const float> few = std::span(in).first(4 * kHidden);
  EXPECT_TRUE(SameBits(RunRows(*used, narrow, {4}, few, kHidden), RunRows(*fresh, narrow, {4}, few, kHidden)));
}

TEST_P(ExpertBackendContract, TheSteadyStateAllocatesNothing) {
  constexpr std::size_t kHidden = 96;
  const ExpertShard::Layer layer = MakeExpertLayer({.hidden = kHidden, .intermediates = {200, 136}, .bias = true});
  const std::vector<std::uint32_t> offsets = {0, 60, 100};
  const std::vector<float> in = RandomValues(100 * kHidden, 4);
  std::vector<float> out(100 * kHidden);
  ThreadPool pool(2);
  const auto backend = Make(pool, {.max_rows = 100, .intermediate = 200});
  const GroupedRows rows{.offsets = offsets,
                         .in = MatrixView<const float>(in.data(), 100, kHidden),
                         .out = MatrixView<float>(out.data(), 100, kHidden)};
  backend->Run(layer, rows);
  const std::uint64_t before = AllocationCount();
  for (int i = 0; i < 20; ++i) backend->Run(layer, rows);
  EXPECT_EQ(AllocationCount(), before);
  EXPECT_GT(before, 0u) << "operator new is not being counted";
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ExpertBackendContract);

}  // namespace moe
