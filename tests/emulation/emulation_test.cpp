// The emulation itself: it runs what is right, whatever the order of threads, and finds what is planted wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cuda/execution.cuh"
#include "kernels/cuda/tile_mma.cuh"
#include "tests/emulation/findings.h"

namespace moe::cuda {
namespace {

using emulation::kThreadOrders;
using emulation::ScopedThreadOrder;
using emulation::TakeFindings;
using emulation::ThreadOrder;
using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

using Values = std::vector<std::uint32_t>;

/// Runs a kernel of one array at once and gives the array back.
Values RunNow(void (*kernel)(std::uint32_t*), std::size_t size, Grid blocks, unsigned threads,
              std::size_t shared_bytes = 0) {
  Values values(size);
  Launch("Planted", kernel, {.blocks = blocks, .threads = threads, .shared_bytes = shared_bytes, .stream = {}},
         values.data());
  return values;
}

MOE_KERNEL void WritePlace(std::uint32_t* out) {
  const Grid block = BlockIndex();
  const Grid grid = GridBlocks();
  const unsigned number = (block.z * grid.y + block.y) * grid.x + block.x;
  out[number * BlockThreads() + ThreadIndex()] = number * 1000 + ThreadIndex();
}

TEST(Emulation, RunsEveryThreadOfEveryBlockOnce) {
  const Values values = RunNow(WritePlace, 2 * 3 * 4 * 64, {2, 3, 4}, 64);
  for (std::uint32_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], i / 64 * 1000 + i % 64);
  EXPECT_THAT(TakeFindings(), IsEmpty());
}

/// Reverses a block's values by way of shared memory.
MOE_KERNEL void Reverse(std::uint32_t* values) {
  MOE_SHARED(std::uint32_t, shared, 64);
  const unsigned i = ThreadIndex();
  shared[i] = i * i;
  Barrier();
  values[BlockIndex().x * 64 + i] = shared[63 - i];
}

MOE_KERNEL void ReverseWithoutBarrier(std::uint32_t* values) {
  MOE_SHARED(std::uint32_t, shared, 64);
  const unsigned i = ThreadIndex();
  shared[i] = i * i;
  values[i] = shared[63 - i];
}

TEST(Emulation, ABarrierMakesWritesSeenInEveryOrder) {
  for (const ThreadOrder order : kThreadOrders) {
    const ScopedThreadOrder scope(order);
    const Values values = RunNow(Reverse, 192, {3}, 64);
    for (std::uint32_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], (63 - i % 64) * (63 - i % 64));
  }
  EXPECT_THAT(TakeFindings(), IsEmpty());
}

TEST(Emulation, AMissingBarrierIsFoundAndShowsInTheResults) {
  std::vector<Values> results;
  for (const ThreadOrder order : {ThreadOrder::kAscending, ThreadOrder::kDescending}) {
    const ScopedThreadOrder scope(order);
    results.push_back(RunNow(ReverseWithoutBarrier, 64, {1}, 64));
    const std::vector<std::string> findings = TakeFindings();
    EXPECT_THAT(findings,
                Contains(AllOf(HasSubstr("kernel Planted, block (0,0,0), thread"), HasSubstr("shared shared["),
                               HasSubstr("between the same two barriers: a race"))));
  }
  EXPECT_NE(results[0], results[1]);
}

MOE_KERNEL void AllWriteOne(std::uint32_t* values) {
  MOE_SHARED(std::uint32_t, winner, 1);
  winner[0] = ThreadIndex();
  Barrier();
  values[ThreadIndex()] = winner[0];
}

TEST(Emulation, TwoWritersRace) {
  RunNow(AllWriteOne, 32, {1}, 32);
  EXPECT_THAT(TakeFindings(), Contains(HasSubstr("shared winner[0], writes it, and thread 0 writes it")));
}

MOE_KERNEL void ReadThenOverwrite(std::uint32_t* values) {
  MOE_SHARED(std::uint32_t, shared, 32);
  const unsigned i = ThreadIndex();
  shared[i] = i;
  Barrier();
  values[i] = shared[(i + 1) % 32];
  shared[i] = values[i];  // the neighbour may not have read it yet
}

TEST(Emulation, AWriteRacesWithReadsBeforeIt) {
  RunNow(ReadThenOverwrite, 32, {1}, 32);
  EXPECT_THAT(TakeFindings(), Contains(HasSubstr("a race")));
}

MOE_KERNEL void ReadUnwritten(std::uint32_t* values) {
  MOE_SHARED(std::uint32_t, shared, 2);
  if (BlockIndex().x == 0 && ThreadIndex() == 0) shared[1] = 7;
  Barrier();
  if (ThreadIndex() == 0) values[BlockIndex().x] = shared[1];  // block 1 has a memory of its own
}

TEST(Emulation, WhatABlockHasNotWrittenIsNotThere) {
  RunNow(ReadUnwritten, 2, {2}, 32);
  EXPECT_THAT(TakeFindings(), ElementsAre(AllOf(HasSubstr("block (1,0,0)"), HasSubstr("shared shared[1]"),
                                                HasSubstr("which no thread of the block has written"))));
}

MOE_KERNEL void PastTheEnd(std::uint32_t* values) {
  MOE_SHARED(std::uint32_t, shared, 31);
  auto dynamic = DynamicShared<std::uint32_t>(1);
  shared[ThreadIndex()] = 1;
  dynamic[ThreadIndex()] = 1;
  values[0] = 0;
}

TEST(Emulation, SharedMemoryHasAnEnd) {
  RunNow(PastTheEnd, 1, {1}, 32, 32 * sizeof(std::uint32_t));
  const std::vector<std::string> findings = TakeFindings();
  EXPECT_THAT(findings, Contains(HasSubstr("thread 31 uses shared shared[31] of 31 elements")));
  EXPECT_THAT(findings, Contains(HasSubstr("thread 31 uses shared (dynamic)[31] of 31 elements")));
}

MOE_KERNEL void HalfAtABarrier(std::uint32_t* values) {
  if (ThreadIndex() < 32) Barrier();
  values[ThreadIndex()] = 1;
}

MOE_KERNEL void TwoBarriers(std::uint32_t* values) {
  if (ThreadIndex() < 32) {
    Barrier();
  } else {
    Barrier();
  }
  values[ThreadIndex()] = 1;
}

TEST(Emulation, ADivergentBarrierIsFound) {
  RunNow(HalfAtABarrier, 64, {1}, 64);
  EXPECT_THAT(TakeFindings(), Contains(AllOf(HasSubstr("thread 0 waits at"), HasSubstr("(barrier) for thread 32"),
                                             HasSubstr("which has ended: divergent"))));
  RunNow(TwoBarriers, 64, {1}, 64);
  EXPECT_THAT(TakeFindings(), Contains(AllOf(HasSubstr("for thread 32, which waits at"), HasSubstr(": divergent"))));
  RunNow(Reverse, 64, {1}, 64);  // the next launch is a new one
  EXPECT_THAT(TakeFindings(), IsEmpty());
}

MOE_KERNEL void Shuffles(std::uint32_t* values) {
  const std::uint32_t lane = LaneIndex();
  const std::uint32_t up = ShuffleUp(lane, 3u);
  const std::uint32_t other = ShuffleXor(lane, 5u);
  const std::uint32_t fixed = Shuffle(lane * 2, 9u);
  const std::uint32_t votes = Ballot(lane % 3 == 0);
  values[ThreadIndex()] = up + 100 * other + 10'000 * fixed + (votes == 0x49249249u ? 1'000'000u : 0u);
}

TEST(Emulation, ShufflesAndVotesExchangeAmongTheLanesOfAWarp) {
  for (const ThreadOrder order : kThreadOrders) {
    const ScopedThreadOrder scope(order);
    const Values values = RunNow(Shuffles, 96, {1}, 96);
    for (std::uint32_t i = 0; i < values.size(); ++i) {
      const std::uint32_t lane = i % 32;
      ASSERT_EQ(values[i], (lane < 3 ? lane : lane - 3) + 100 * (lane ^ 5u) + 10'000 * 18 + 1'000'000) << i;
    }
  }
  EXPECT_THAT(TakeFindings(), IsEmpty());
}

MOE_KERNEL void ShuffleFromOutside(std::uint32_t* values) { values[ThreadIndex()] = Shuffle(ThreadIndex(), 40u); }

MOE_KERNEL void ShuffleFromOutsideOfTheMask(std::uint32_t* values) {
  if (LaneIndex() < 16) values[ThreadIndex()] = Shuffle(ThreadIndex(), 20u, 0xffffu);
}

MOE_KERNEL void ShuffleOfAStranger(std::uint32_t* values) {
  values[ThreadIndex()] = Shuffle(ThreadIndex(), 1u, 0xffffu);
}

MOE_KERNEL void ShuffleOfHalfAWarp(std::uint32_t* values) {
  if (LaneIndex() < 16) values[ThreadIndex()] = Shuffle(ThreadIndex(), 1u);
}

MOE_KERNEL void WarpAtTwoPlaces(std::uint32_t* values) {
  values[ThreadIndex()] = LaneIndex() < 16 ? Shuffle(1u, 0u) : ShuffleXor(1u, 1u);
}

TEST(Emulation, WrongLanesAndMasksAreFound) {
  RunNow(ShuffleFromOutside, 32, {1}, 32);
  EXPECT_THAT(TakeFindings(), Contains(HasSubstr("asks lane 40 for a value, which does not take part")));
  RunNow(ShuffleFromOutsideOfTheMask, 32, {1}, 32);
  EXPECT_THAT(TakeFindings(), Contains(HasSubstr("asks lane 20 for a value, which does not take part")));
  RunNow(ShuffleOfAStranger, 32, {1}, 32);
  EXPECT_THAT(TakeFindings(), Contains(HasSubstr("is not in the mask of its own warp operation")));
  RunNow(ShuffleOfHalfAWarp, 32, {1}, 32);
  EXPECT_THAT(TakeFindings(), Contains(AllOf(HasSubstr("(warp) for thread 16, which has ended: divergent"))));
  RunNow(WarpAtTwoPlaces, 32, {1}, 32);
  EXPECT_THAT(TakeFindings(), Contains(HasSubstr("while others of its warp are at")));
}

MOE_KERNEL void CountAll(std::uint32_t* values) {
  auto counts = DynamicShared<std::uint32_t>();
  if (ThreadIndex() < 4) counts[ThreadIndex()] = 0;
  Barrier();
  AtomicAdd(counts, ThreadIndex() % 4, ThreadIndex());
  Barrier();
  if (ThreadIndex() < 4) values[ThreadIndex()] = counts[ThreadIndex()];
}

MOE_KERNEL void CountWhileReading(std::uint32_t* values) {
  auto counts = DynamicShared<std::uint32_t>();
  if (ThreadIndex() == 0) counts[0] = 0;
  Barrier();
  AtomicAdd(counts, 0, 1u);
  values[ThreadIndex()] = counts[0];
}

TEST(Emulation, AtomicsDoNotRaceWithOneAnotherButWithTheRest) {
  EXPECT_EQ(RunNow(CountAll, 4, {1}, 64, 16), (Values{480, 496, 512, 528}));
  EXPECT_THAT(TakeFindings(), IsEmpty());
  RunNow(CountWhileReading, 64, {1}, 64, 4);
  EXPECT_THAT(TakeFindings(), Contains(HasSubstr("a race")));
}

TEST(Emulation, ImpossibleLaunchesAreFoundAndDoNotRun) {
  for (const auto& [blocks, threads, bytes] : {std::tuple<Grid, unsigned, std::size_t>{{1}, 33, 0},
                                               {{1}, 1056, 0},
                                               {{0}, 32, 0},
                                               {{1}, 32, 49 << 10},
                                               {{1, 65536}, 32, 0}}) {
    const std::uint64_t before = emulation::BlocksRun();
    RunNow(WritePlace, 64, blocks, threads, bytes);
    EXPECT_THAT(TakeFindings(), Contains(HasSubstr("is not possible")));
    EXPECT_EQ(emulation::BlocksRun(), before);
  }
}

TEST(Emulation, LaunchesGoToTheStreamOfWhoeverPlaysTheDevice) {
  std::vector<std::function<void()>> queue;
  Values values(1, 5);
  {
    const emulation::ScopedLaunchSink sink([&](DeviceStream, const char* kernel, std::function<void()> work) {
      EXPECT_STREQ(kernel, "Planted");
      queue.push_back(std::move(work));
    });
    void (*kernel)(std::uint32_t*) = [](std::uint32_t* to) { to[0] += ThreadIndex() == 0 ? 1u : 0u; };
    Launch("Planted", kernel, {.threads = 32}, values.data());
    EXPECT_EQ(values[0], 5u);
  }
  ASSERT_EQ(queue.size(), 1u);
  queue[0]();
  queue[0]();
  EXPECT_EQ(values[0], 7u);
}

/// One warp's D = A B, given as (16, 8) and (16, 8) words.
template <TileFormat kFormat, typename Sum>
MOE_KERNEL void TileKernel(const std::uint32_t* a, const std::uint32_t* b, Sum* d) {
  const unsigned g = LaneIndex() / 4;
  const unsigned t = LaneIndex() % 4;
  const auto pair = [&](const std::uint32_t* words, unsigned row) {
    return WordPair{words[row * 8 + 2 * t], words[row * 8 + 2 * t + 1]};
  };
  TileD<Sum> sums = {};
  MultiplyTile<kFormat>({pair(a, g), pair(a, g + 8)}, {pair(b, g), pair(b, g + 8)}, sums);
  for (unsigned half = 0; half < 2; ++half)
    for (unsigned i = 0; i < 4; ++i) d[TileRow(i) * 16 + TileOutput(half, i)] = sums.sums[half][i];
}

template <TileFormat kFormat, typename Sum>
std::vector<Sum> MultiplyTiles(const Values& a, const Values& b) {
  std::vector<Sum> d(256);
  Launch("Tile", TileKernel<kFormat, Sum>, {.threads = 32}, a.data(), b.data(), d.data());
  return d;
}

TEST(Emulation, TilesMultiplyByTheirLayout) {
  Values a(128);
  Values b(128);
  std::vector<std::int8_t> bytes_a(512);
  std::vector<std::int8_t> bytes_b(512);
  for (int i = 0; i < 512; ++i) {
    bytes_a[static_cast<std::size_t>(i)] = static_cast<std::int8_t>(i * 37 % 255 - 127);
    bytes_b[static_cast<std::size_t>(i)] = static_cast<std::int8_t>(i * 91 % 253 - 126);
  }
  std::memcpy(a.data(), bytes_a.data(), 512);
  std::memcpy(b.data(), bytes_b.data(), 512);
  const auto integers = MultiplyTiles<TileFormat::kInt8, std::int32_t>(a, b);
  for (std::size_t row = 0; row < 16; ++row) {
    for (std::size_t output = 0; output < 16; ++output) {
      std::int32_t sum = 0;
      for (std::size_t k = 0; k < 32; ++k) sum += bytes_a[row * 32 + k] * bytes_b[output * 32 + k];
      ASSERT_EQ(integers[row * 16 + output], sum) << row << "," << output;
    }
  }
  std::vector<std::uint16_t> floats_a(256);
  std::vector<std::uint16_t> floats_b(256);
  for (std::size_t i = 0; i < 256; ++i) {
    floats_a[i] = F32ToBf16(static_cast<float>(i * 37 % 31) - 15);
    floats_b[i] = F32ToBf16(static_cast<float>(i * 11 % 29) - 14);
  }
  std::memcpy(a.data(), floats_a.data(), 512);
  std::memcpy(b.data(), floats_b.data(), 512);
  const auto floats = MultiplyTiles<TileFormat::kBf16, float>(a, b);
  for (std::size_t row = 0; row < 16; ++row) {
    for (std::size_t output = 0; output < 16; ++output) {
      float sum = 0;  // small integers: exact
      for (std::size_t k = 0; k < 16; ++k)
        sum += Bf16ToF32(floats_a[row * 16 + k]) * Bf16ToF32(floats_b[output * 16 + k]);
      ASSERT_EQ(floats[row * 16 + output], sum) << row << "," << output;
    }
  }
  EXPECT_THAT(TakeFindings(), IsEmpty());
}

}  // namespace
}  // namespace moe::cuda
