#include "bench/engine/roofs.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "bench/engine/roof_kernels.h"
#include "kernels/kernels.h"

namespace moe {
namespace {

TEST(SumOf, AddsEveryWordAndTheBytesBehindThem) {
  for (const std::size_t size : {0u, 1u, 15u, 16u, 64u, 1003u, 5000u}) {
    std::vector<std::byte> memory(size);
    for (std::size_t i = 0; i < size; ++i) memory[i] = static_cast<std::byte>(i % 251);
    std::uint32_t expected = 0;
    for (std::size_t i = 0; i < size; ++i)
      expected += static_cast<std::uint32_t>(memory[i]) << (i < size / 4 * 4 ? 8 * (i % 4) : 0);
    EXPECT_EQ(SumOf(memory), expected) << size;
  }
}

TEST(MultiplyAdd, DoesTheOperationsThatItCounts) {
  float sink = 1;
  const double operations = MultiplyAdd(1, sink);
  const double lanes = operations / (2 * 12);
  EXPECT_EQ(lanes, std::floor(lanes));
  // Chain c begins at c and becomes 0.999 c + 1, in every lane.
  const double chains = 0.999 * (12 * 13 / 2) + 12;
  EXPECT_NEAR(sink, lanes * chains, 1e-5 * lanes * chains);
  EXPECT_EQ(MultiplyAdd(100, sink), 100 * operations);
}

TEST(ReadRoof, ReadsAllThatWasAdded) {
  ThreadPool pool(2);
  std::vector<std::byte> some(5 << 20 | 3, std::byte{1}), more(7, std::byte{2});
  ReadRoof roof;
  roof.Add(some);
  roof.Add(more);
  const ReadRoof::Reading reading = roof.Pass(pool);
  EXPECT_EQ(reading.sum, (5u << 20) / 4 * 0x01010101u + 3 * 1 + 0x02020202u + 3 * 2);
  EXPECT_TRUE(std::isfinite(reading.bytes_per_s));
  EXPECT_GT(reading.bytes_per_s, 0);
}

TEST(MachineProbe, MeasuresWhatTheKernelsUse) {
  MachineProbe probe({.threads = 2, .buffer_bytes = (1 << 20) + 1, .seconds = 1e-3}, SimdKernels().name());
  const MachineRates rates = probe.Measure();
  EXPECT_TRUE(std::isfinite(rates.read_bytes_per_s));
  EXPECT_GT(rates.read_bytes_per_s, 0);
  for (const auto& [format, rate] :
       {std::pair("fp32", rates.fp32_operations_per_s), std::pair("int8", rates.int8_operations_per_s)}) {
    EXPECT_EQ(rate.has_value(), InstructionOf(SimdKernels().name(), format) != nullptr) << format;
    EXPECT_GT(rate.value_or(1), 0) << format;
  }
}

TEST(MachineProbe, KnowsNoPeakOfKernelsWithoutALoop) {
  MachineProbe probe({.threads = 1, .buffer_bytes = 1 << 16, .seconds = 0}, "reference");
  const MachineRates rates = probe.Measure();
  EXPECT_FALSE(rates.fp32_operations_per_s);
  EXPECT_FALSE(rates.int8_operations_per_s);
}

TEST(Mean, IsOfEachRate) {
  const MachineRates mean = Mean({.read_bytes_per_s = 10, .fp32_operations_per_s = 1, .int8_operations_per_s = 4},
                                 {.read_bytes_per_s = 20, .fp32_operations_per_s = 3});
  EXPECT_EQ(mean.read_bytes_per_s, 15);
  EXPECT_EQ(mean.fp32_operations_per_s, 2);
  EXPECT_FALSE(mean.int8_operations_per_s);
}

}  // namespace
}  // namespace moe
