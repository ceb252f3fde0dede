// What every expert backend promises, as one set of test bodies. A binary instantiates it with ways to make a backend.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "experts/expert_backend.h"
#include "kernels/weight_type.h"
#include "tests/contract/allocation_count.h"
#include "tests/contract/expert_in_double.h"
#include "tests/kernels/kernel_cases.h"

namespace moe {

inline constexpr WeightType kWeightTypes[] = {WeightType::kF32, WeightType::kBf16, WeightType::kF16, WeightType::kInt8,
                                              WeightType::kInt4};

struct ExpertBackendContractParam {
  std::string name;
  std::function<std::unique_ptr<ExpertBackend>(ThreadPool&, const CpuMlpLimits&)> make;
  std::vector<WeightType> types{std::begin(kWeightTypes), std::end(kWeightTypes)};  // the first is not quantized
  ExpertRoundings roundings;
  std::string no_backend = {};             // why it cannot be made here: everything is skipped
  std::string counts_no_allocations = {};  // why they cannot be told from others'
  std::string uses_no_threads = {};        // what it computes with instead of the pool
  bool slow = false;                       // emulated: fewer sizes and kinds where there are hundreds
  std::string rows_depend = {};            // why a row's bits may depend on the rows beside it
};

inline void PrintTo(const ExpertBackendContractParam& param, std::ostream* out) { *out << param.name; }

/// A layer of random experts, one a slot.
struct ExpertLayerCase {
  std::size_t hidden = 0;
  std::size_t slots = 1;
  MlpSpec mlp;
  WeightType type = WeightType::kF32;
};

/// Every kind of expert that is served, with and without biases. The clamp binds: half of the values lie outside.
inline std::vector<MlpSpec> ExpertKinds(int intermediate) {
  std::vector<MlpSpec> kinds;
  for (const bool bias : {false, true}) {
    kinds.push_back({.intermediate = intermediate, .bias = bias});
    kinds.push_back(
        {.intermediate = intermediate, .bias = bias, .activation = Activation::kClampedSwiGlu, .limit = 0.7f});
    kinds.push_back({.intermediate = intermediate, .bias = bias, .activation = Activation::kRelu});
  }
  return kinds;
}

/// All of them at one width, in one weight type that is not quantized and in both that are.
inline std::vector<ExpertLayerCase> EachKind(ExpertLayerCase c, int intermediate, WeightType plain) {
  std::vector<ExpertLayerCase> cases;
  for (const WeightType type : {plain, WeightType::kInt8, WeightType::kInt4}) {
    c.type = type;
    for (const MlpSpec& mlp : ExpertKinds(intermediate)) {
      c.mlp = mlp;
      cases.push_back(c);
    }
  }
  return cases;
}

inline PackedMatrix RandomMatrix(std::size_t rows, std::size_t cols, WeightType type, std::uint32_t seed) {
  std::vector<float> values = RandomValues(rows * cols, seed);
  const float scale = 1 / std::sqrt(static_cast<float>(cols));  // outputs as large as inputs
  for (float& value : values) value *= scale;
  return PackedMatrix::Pack(
      {.type = WeightType::kF32, .data = reinterpret_cast<const std::byte*>(values.data()), .rows = rows, .cols = cols},
      type);
}

inline ExpertShard::Layer MakeExpertLayer(const ExpertLayerCase& c) {
  ExpertShard::Layer layer{.layer = 5, .mlp = c.mlp};
  const auto intermediate = static_cast<std::size_t>(c.mlp.intermediate);
  std::uint32_t seed = 40;
  for (std::size_t slot = 0; slot < c.slots; ++slot) {
    MlpWeights weights{.up = RandomMatrix(intermediate, c.hidden, c.type, ++seed),
                       .down = RandomMatrix(c.hidden, intermediate, c.type, ++seed)};
    if (c.mlp.gated()) weights.gate = RandomMatrix(intermediate, c.hidden, c.type, ++seed);
    if (c.mlp.bias) {
      if (c.mlp.gated()) weights.gate_bias = RandomValues(intermediate, ++seed);
      weights.up_bias = RandomValues(intermediate, ++seed);
      weights.down_bias = RandomValues(c.hidden, ++seed);
    }
    layer.experts.push_back(static_cast<int>(slot));
    layer.weights.push_back(std::make_shared<const MlpWeights>(std::move(weights)));
  }
  return layer;
}

/// Room for whatever the suite asks of a backend.
inline CpuMlpLimits Limits(std::size_t rows, std::size_t intermediate, WeightType type = WeightType::kF32) {
  return {.rows = rows, .mlps = 8, .hidden = 128, .intermediate = intermediate, .type = type};
}

class ExpertBackendContract : public testing::TestWithParam<ExpertBackendContractParam> {
 protected:
  static constexpr std::size_t kGap = 3;  // rows lie further apart than they are long
  static constexpr float kUntouched = 12345.0f;
  static constexpr std::size_t kWidest = 200;  // intermediate

  struct Run {
    std::vector<float> in;
    std::vector<float> out;
  };

  void SetUp() override {
    if (!GetParam().no_backend.empty()) GTEST_SKIP() << GetParam().no_backend;
  }

  static std::unique_ptr<ExpertBackend> Make(ThreadPool& pool, const CpuMlpLimits& limits) {
    return GetParam().make(pool, limits);
  }
  /// The same, ready for `layer`.
  static std::unique_ptr<ExpertBackend> Make(ThreadPool& pool, const CpuMlpLimits& limits,
                                             const ExpertShard::Layer& layer) {
    auto backend = Make(pool, limits);
    ExpectOk(backend->Prepare(layer));
    return backend;
  }
  static void ExpectOk(const Status& status) { EXPECT_TRUE(status.ok()) << status.message(); }

  static WeightType plain() { return GetParam().types.front(); }
  /// One of each kind of kernel.
  static std::vector<WeightType> KindsOfWeights() { return {plain(), WeightType::kInt8, WeightType::kInt4}; }

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
    ExpectOk(backend.Run(layer, {.offsets = offsets,
                                 .in = MatrixView<const float>(spaced_in.data(), rows, hidden, stride),
                                 .out = MatrixView<float>(spaced_out.data(), rows, hidden, stride)}));
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
    const auto backend = Make(pool, Limits(std::max<std::size_t>(1, rows), kWidest, c.type), layer);
    const std::vector<float> in = RandomValues(rows * c.hidden, 9);
    const std::vector<float> out = RunRows(*backend, layer, counts, in, c.hidden);
    std::size_t row = 0;
    for (std::size_t slot = 0; slot < counts.size(); ++slot) {
      for (std::size_t i = 0; i < counts[slot]; ++i, ++row) {
        const auto expected = ExpertInDouble(c.mlp, *layer.weights[slot],
                                             std::span(in).subspan(row * c.hidden, c.hidden), GetParam().roundings);
        for (std::size_t j = 0; j < c.hidden; ++j)
          ASSERT_NEAR(out[row * c.hidden + j], expected[j].value, expected[j].error)
              << Name(c.type) << ", slot " << slot << " of width " << c.mlp.intermediate << ", row " << i
              << ", activation " << static_cast<int>(c.mlp.activation);
      }
    }
  }
};

TEST_P(ExpertBackendContract, NamesItsDevice) {
  ThreadPool pool(1);
  EXPECT_FALSE(Make(pool, Limits(1, 32, plain()))->device().empty());
}

TEST_P(ExpertBackendContract, AgreesWithPlainLoopsForEveryWeightTypeAndWidth) {
  for (const WeightType type : GetParam().types) {
    for (const std::size_t hidden : Counts{56, 60, 64}) {
      for (const int width : {44, 72, 100})
        ExpectNearDouble({.hidden = hidden, .slots = 3, .mlp = {.intermediate = width}, .type = type}, {2, 1, 5});
    }
  }
}

TEST_P(ExpertBackendContract, ComputesEveryKindOfExpert) {
  for (const int width : {1, 16, 44, 100}) {
    for (const MlpSpec& mlp : ExpertKinds(width)) {
      ExpectNearDouble({.hidden = 60, .slots = 2, .mlp = mlp, .type = plain()}, {3, 4});
      for (const WeightType type : {WeightType::kBf16, WeightType::kInt8, WeightType::kInt4})
        ExpectNearDouble({.hidden = 70, .slots = 2, .mlp = mlp, .type = type}, {1, 18});
    }
  }
}

TEST_P(ExpertBackendContract, SlotsMayBeEmpty) {
  for (const MlpSpec& mlp : ExpertKinds(44)) {
    for (const Counts& counts :
         {Counts{0, 0, 3, 0, 0}, Counts{2, 0, 0, 0, 0}, Counts{0, 0, 0, 0, 1}, Counts{0, 4, 0, 4, 0}})
      for (const WeightType type : KindsOfWeights())
        ExpectNearDouble({.hidden = 56, .slots = 5, .mlp = mlp, .type = type}, counts);
  }
}

TEST_P(ExpertBackendContract, OneExpertMayTakeAllRows) {
  for (const WeightType type : KindsOfWeights()) {
    ExpectNearDouble({.hidden = 56, .slots = 3, .mlp = {.intermediate = 72}, .type = type}, {0, 97, 0});
    ExpectNearDouble({.hidden = 56, .slots = 1, .mlp = {.intermediate = 72}, .type = type}, {97});
    // More than one block of rows.
    ExpectNearDouble({.hidden = 48, .slots = 2, .mlp = {.intermediate = 70}, .type = type}, {1, 133});
  }
}

TEST_P(ExpertBackendContract, NothingIsARunToo) {
  ThreadPool pool(2);
  const ExpertShard::Layer layer =
      MakeExpertLayer({.hidden = 56, .slots = 2, .mlp = {.intermediate = 44}, .type = plain()});
  const auto backend = Make(pool, Limits(4, 88, plain()), layer);
  EXPECT_TRUE(RunRows(*backend, layer, {0, 0}, {}, 56).empty());
  const ExpertShard::Layer idle{.layer = 5, .mlp = {.intermediate = 44}};  // of a worker without a slot in this layer
  ExpectOk(backend->Prepare(idle));
  EXPECT_TRUE(RunRows(*backend, idle, {}, {}, 56).empty());
}

TEST_P(ExpertBackendContract, ARowsBitsDoNotDependOnTheRowsBesideIt) {
  if (!GetParam().rows_depend.empty()) GTEST_SKIP() << GetParam().rows_depend;
  constexpr std::size_t kHidden = 60;
  constexpr std::size_t kRows = 43;  // more than any tile, of the CPU or of a device, has
  for (const ExpertLayerCase& c : EachKind({.hidden = kHidden, .slots = 2}, 72, WeightType::kBf16)) {
    if (GetParam().slow && c.mlp.bias) continue;
    const ExpertShard::Layer layer = MakeExpertLayer(c);
    ThreadPool pool(2);
    const auto backend = Make(pool, Limits(2 * kRows, kWidest, c.type), layer);
    const std::vector<float> in = RandomValues(kRows * kHidden, 3);
    const auto row_of = [](const std::vector<float>& rows, std::size_t row) {
      return std::span(rows).subspan(row * kHidden, kHidden);
    };
    std::vector<float> alone;  // in slot 0
    for (std::size_t row = 0; row < kRows; ++row) {
      const std::vector<float> out = RunRows(*backend, layer, {1, 0}, row_of(in, row), kHidden);
      alone.insert(alone.end(), out.begin(), out.end());
    }
    for (std::size_t count = 1; count <= kRows; count += GetParam().slow ? 6u : count < 20 ? 1u : 7u) {
      const std::vector<float> out =
          RunRows(*backend, layer, {count, 0}, std::span(in).first(count * kHidden), kHidden);
      EXPECT_TRUE(SameBits(out, std::span(alone).first(count * kHidden))) << Name(c.type) << ", " << count << " rows";
    }
    // Before and behind others, and with the other expert at work.
    std::vector<float> both(in.begin() + 7 * kHidden, in.end());
    both.insert(both.end(), in.begin(), in.end());
    const std::vector<float> out = RunRows(*backend, layer, {kRows - 7, kRows}, both, kHidden);
    for (std::size_t row = 7; row < kRows; ++row)
      EXPECT_TRUE(SameBits(row_of(out, row - 7), row_of(alone, row))) << "row " << row;
  }
}

TEST_P(ExpertBackendContract, ThreadsDoNotChangeTheBits) {
  if (!GetParam().uses_no_threads.empty()) GTEST_SKIP() << GetParam().uses_no_threads;
  constexpr std::size_t kHidden = 96;
  for (const ExpertLayerCase& c : EachKind({.hidden = kHidden, .slots = 3}, 200, plain())) {
    const ExpertShard::Layer layer = MakeExpertLayer(c);
    const Counts counts = {14, 1, 30};  // over 10^6 multiply-adds: worth sharing out
    const std::vector<float> in = RandomValues(45 * kHidden, 4);
    std::vector<float> expected;
    for (const int threads : {1, 2, 4}) {
      ThreadPool pool(threads);
      const auto backend = Make(pool, Limits(45, kWidest, c.type), layer);
      for (int repeat = 0; repeat < (threads == 1 ? 1 : 3); ++repeat) {
        const std::vector<float> out = RunRows(*backend, layer, counts, in, kHidden);
        if (expected.empty()) expected = out;
        EXPECT_TRUE(SameBits(out, expected)) << Name(c.type) << ", " << threads << " threads";
      }
    }
  }
}

TEST_P(ExpertBackendContract, ARunLeavesNoTraceInTheNext) {
  constexpr std::size_t kHidden = 64;
  ThreadPool pool(1);
  const std::vector<float> in = RandomValues(30 * kHidden, 8);
  for (const ExpertLayerCase& c : EachKind({.hidden = kHidden}, 44, plain())) {
    const ExpertShard::Layer wide =
        MakeExpertLayer({.hidden = kHidden, .slots = 2, .mlp = {.intermediate = 100, .bias = true}, .type = c.type});
    const ExpertShard::Layer narrow = MakeExpertLayer(c);
    const auto fresh = Make(pool, Limits(30, kWidest, c.type), narrow);
    const auto used = Make(pool, Limits(30, kWidest, c.type), narrow);
    ExpectOk(used->Prepare(wide));
    RunRows(*used, wide, {10, 20}, in, kHidden);
    const std::span<const float> few = std::span(in).first(4 * kHidden);
    EXPECT_TRUE(SameBits(RunRows(*used, narrow, {4}, few, kHidden), RunRows(*fresh, narrow, {4}, few, kHidden)))
        << Name(c.type);
  }
}

TEST_P(ExpertBackendContract, ARowThatIsNotFiniteSpoilsItselfOnly) {
  constexpr std::size_t kHidden = 70;
  constexpr std::size_t kBadRow = 5;
  for (const ExpertLayerCase& c : EachKind({.hidden = kHidden, .slots = 2}, 72, plain())) {
    const ExpertShard::Layer layer = MakeExpertLayer(c);
    ThreadPool pool(2);
    const auto backend = Make(pool, Limits(20, kWidest, c.type), layer);
    std::vector<float> in = RandomValues(20 * kHidden, 3);
    const std::vector<float> clean = RunRows(*backend, layer, {9, 11}, in, kHidden);
    in[kBadRow * kHidden + 66] = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> out = RunRows(*backend, layer, {9, 11}, in, kHidden);
    for (std::size_t i = kBadRow * kHidden; i < (kBadRow + 1) * kHidden; ++i) {
      ASSERT_TRUE(std::isnan(out[i])) << Name(c.type) << ", output " << i - kBadRow * kHidden;
      out[i] = clean[i];
    }
    EXPECT_TRUE(SameBits(out, clean)) << Name(c.type);
  }
}

TEST_P(ExpertBackendContract, TheSteadyStateAllocatesNothing) {
  if (!GetParam().counts_no_allocations.empty()) GTEST_SKIP() << GetParam().counts_no_allocations;
  constexpr std::size_t kHidden = 96;
  for (const ExpertLayerCase& c : EachKind({.hidden = kHidden, .slots = 2}, 200, plain())) {
    const ExpertShard::Layer layer = MakeExpertLayer(c);
    const std::vector<std::uint32_t> offsets = {0, 20, 33};  // over 10^6 multiply-adds: worth sharing out
    const std::vector<float> in = RandomValues(33 * kHidden, 4);
    std::vector<float> out(33 * kHidden);
    ThreadPool pool(2);
    const auto backend = Make(pool, Limits(33, kWidest, c.type), layer);
    const GroupedRows rows{.offsets = offsets,
                           .in = MatrixView<const float>(in.data(), 33, kHidden),
                           .out = MatrixView<float>(out.data(), 33, kHidden)};
    ExpectOk(backend->Run(layer, rows));
    const std::uint64_t before = AllocationCount();
    bool ok = true;
    for (int i = 0; i < 3; ++i) ok = backend->Run(layer, rows).ok() && ok;
    EXPECT_EQ(AllocationCount(), before);
    EXPECT_TRUE(ok);
    EXPECT_GT(before, 0u) << "operator new is not being counted";
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ExpertBackendContract);

}  // namespace moe
