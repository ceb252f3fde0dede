#include "bench/engine/roofs.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "bench/engine/roof_kernels.h"

namespace moe {
namespace {

TEST(SumOf, AddsEveryElement) {
  for (const std::size_t size : {0u, 1u, 15u, 16u, 64u, 1003u}) {
    std::vector<float> values(size);
    for (std::size_t i = 0; i < size; ++i) values[i] = static_cast<float>(i % 7);
    double expected = 0;
    for (const float value : values) expected += value;
    EXPECT_EQ(SumOf(values), expected) << size;  // small whole numbers: exact in any order
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

TEST(MeasureRoofs, GivesFiguresOfWhatWasAskedFor) {
  const Roofs roofs = MeasureRoofs({.threads = 2, .buffer_bytes = 1 << 20, .seconds = 1e-3});
  EXPECT_EQ(roofs.threads, 2);
  EXPECT_EQ(roofs.buffer_bytes, std::size_t{1} << 20);
  EXPECT_TRUE(std::isfinite(roofs.read_bandwidth_bytes_per_s));
  EXPECT_GT(roofs.read_bandwidth_bytes_per_s, 0);
  EXPECT_TRUE(std::isfinite(roofs.peak_flops));
  EXPECT_GT(roofs.peak_flops, 0);
}

}  // namespace
}  // namespace moe
