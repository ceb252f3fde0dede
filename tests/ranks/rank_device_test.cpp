#include "ranks/rank_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "tests/device/fake_device.h"

namespace moe {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// A machine with so many devices; -1: a build without CUDA.
DeviceLibraries Machine(int devices) {
  return {.open_device = [devices]() -> Result<std::unique_ptr<DeviceApi>> {
            if (devices < 0) return Unavailable("this build has no CUDA");
            return std::unique_ptr<DeviceApi>(std::make_unique<FakeDevice>(FakeDeviceOptions{.devices = devices}));
          },
          .open_nccl = []() -> Result<std::unique_ptr<NcclApi>> { return Unavailable("NCCL is not here: no file"); }};
}

RankOptions With(BackendChoice backend, TransportChoice transport = TransportChoice::kAuto) {
  return {.transport = transport, .backend = backend};
}

// Rank `rank` of a router and `workers` workers, all on one machine.
RankPlace OnOneMachine(int rank, int workers) {
  return {.topology = {.workers = workers, .embedded = false},
          .rank = Rank(rank),
          .node_local_rank = rank,
          .node_local_size = workers + 1};
}

constexpr RankPlace kEmbedded{.topology = {.workers = 1, .embedded = true}};

TEST(RankDevice, WorkersGetOneEachAndARouterOnTheProcessorsNone) {
  const DeviceLibraries machine = Machine(3);
  EXPECT_EQ(*BindDevice(With(BackendChoice::kCuda), OnOneMachine(0, 3), machine), nullptr);
  for (int rank = 1; rank <= 3; ++rank) {
    const auto device = BindDevice(With(BackendChoice::kCuda), OnOneMachine(rank, 3), machine);
    ASSERT_TRUE(device.ok()) << device.status().message();
    EXPECT_EQ((*device)->index, rank - 1);
    EXPECT_EQ((*device)->name, "Fake GPU");
    EXPECT_TRUE((*device)->for_experts);
  }
}

TEST(RankDevice, OnAMachineWithoutTheRouterTheFirstRankIsAWorkerToo) {
  RankPlace place = OnOneMachine(4, 7);
  place.node_local_rank = 0;
  place.node_local_size = 4;
  place.router_is_here = false;
  EXPECT_EQ((*BindDevice(With(BackendChoice::kCuda), place, Machine(4)))->index, 0);
}

TEST(RankDevice, AnEmbeddedRankTakesTheFirst) {
  const auto device = BindDevice(With(BackendChoice::kCuda), kEmbedded, Machine(1));
  ASSERT_TRUE(device.ok()) << device.status().message();
  EXPECT_EQ((*device)->index, 0);
}

TEST(RankDevice, MoreRanksThanDevicesIsAnErrorThatNamesBoth) {
  const Status status = BindDevice(With(BackendChoice::kCuda), OnOneMachine(1, 7), Machine(2)).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "--backend cuda: 7 ranks of this machine need a device each, and 2 are visible");
}

TEST(RankDevice, NcclNeedsOneForTheRouterToo) {
  const Status status =
      BindDevice(With(BackendChoice::kCpu, TransportChoice::kNccl), OnOneMachine(0, 3), Machine(3)).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "--transport nccl: 4 ranks of this machine need a device each, and 3 are visible");
}

TEST(RankDevice, WhatIsAskedForAndNotThereIsOneSentenceWithTheFlag) {
  const RankPlace worker = OnOneMachine(1, 1);
  EXPECT_EQ(BindDevice(With(BackendChoice::kCuda), kEmbedded, Machine(-1)).status().message(),
            "--backend cuda: this build has no CUDA");
  EXPECT_THAT(BindDevice(With(BackendChoice::kCuda), worker, Machine(0)).status().message(),
              AllOf(HasSubstr("--backend cuda: "), HasSubstr("cudaErrorNoDevice")));
  EXPECT_EQ(BindDevice(With(BackendChoice::kCpu, TransportChoice::kNccl), worker, Machine(-1)).status().message(),
            "--transport nccl: this build has no CUDA");
  EXPECT_EQ(BindDevice(With(BackendChoice::kCpu, TransportChoice::kNccl), worker, Machine(2)).status().message(),
            "--transport nccl: NCCL is not here: no file");
}

TEST(RankDevice, AutoTakesADeviceWhereEveryRankHasOneAndElseNone) {
  EXPECT_NE(*BindDevice(With(BackendChoice::kAuto), kEmbedded, Machine(1)), nullptr);
  EXPECT_EQ(*BindDevice(With(BackendChoice::kAuto), kEmbedded, Machine(-1)), nullptr);
  EXPECT_EQ(*BindDevice(With(BackendChoice::kAuto), kEmbedded, Machine(0)), nullptr);
  EXPECT_EQ(*BindDevice(With(BackendChoice::kAuto), OnOneMachine(1, 3), Machine(2)), nullptr);
  EXPECT_EQ(*BindDevice(With(BackendChoice::kCpu), kEmbedded, Machine(1)), nullptr);
}

TEST(RankDevice, BackendsAreNamedByTheirDevice) {
  EXPECT_EQ(BackendName("cpu"), "cpu");
  EXPECT_EQ(BackendName("NVIDIA H100 80GB HBM3"), "cuda");
}

}  // namespace
}  // namespace moe
