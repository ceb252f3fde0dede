// The fake finds what it is there to find: each kind of misuse, and work that ran before what it needs.
#include "tests/device/fake_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "device/device_handles.h"
#include "kernels/weight_type.h"

namespace moe {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class FakeDeviceTest : public testing::Test {
 protected:
  FakeDeviceTest() { EXPECT_TRUE(device_.SetDevice(0).ok()); }

  DeviceStream NewStream() {
    streams_.push_back(*MakeStream(device_));
    return streams_.back().get();
  }
  DeviceEvent NewEvent() {
    events_.push_back(*MakeEvent(device_));
    return events_.back().get();
  }
  DeviceSpan NewMemory(std::size_t bytes) {
    memory_.push_back(*DeviceBuffer::Allocate(device_, bytes));
    return memory_.back().span();
  }
  std::span<std::byte> NewPinned(std::size_t bytes) {
    pinned_.push_back(*PinnedBuffer::Allocate(device_, bytes));
    return pinned_.back().span();
  }

  FakeDevice device_;
  std::vector<Stream> streams_;
  std::vector<Event> events_;
  std::vector<DeviceBuffer> memory_;
  std::vector<PinnedBuffer> pinned_;
};

TEST_F(FakeDeviceTest, CopiesThroughTheDeviceAndBack) {
  const DeviceStream stream = NewStream();
  const DeviceSpan a = NewMemory(5), b = NewMemory(5);
  const auto in = NewPinned(5), out = NewPinned(5);
  for (std::size_t i = 0; i < 5; ++i) in[i] = static_cast<std::byte>(i);
  ASSERT_TRUE(device_.CopyToDevice(in, a, stream).ok());
  ASSERT_TRUE(device_.CopyOnDevice(a, b, stream).ok());
  ASSERT_TRUE(device_.Fill(b.subspan(1, 2), 9, stream).ok());
  ASSERT_TRUE(device_.CopyToHost(b, out, stream).ok());
  ASSERT_TRUE(device_.SynchronizeStream(stream).ok());
  EXPECT_THAT(out, ElementsAre(std::byte{0}, std::byte{9}, std::byte{9}, std::byte{3}, std::byte{4}));
}

TEST_F(FakeDeviceTest, NothingRunsBeforeItIsWaitedFor) {
  const DeviceStream stream = NewStream();
  bool ran = false;
  device_.Enqueue(stream, "mark", [&] { ran = true; });
  EXPECT_FALSE(ran);
  ASSERT_TRUE(device_.SynchronizeStream(stream).ok());
  EXPECT_TRUE(ran);
}

// Whether work on a second stream, with or without an event in between, ever comes before the first stream's.
bool EverOutOfOrder(bool with_event) {
  for (std::uint64_t seed = 0; seed < 64; ++seed) {
    FakeDevice device({.seed = seed});
    EXPECT_TRUE(device.SetDevice(0).ok());
    const Stream first = *MakeStream(device), second = *MakeStream(device);
    const Event between = *MakeEvent(device);
    std::vector<int> order;
    device.Enqueue(first.get(), "1", [&] { order.push_back(1); });
    EXPECT_TRUE(device.RecordEvent(between.get(), first.get()).ok());
    if (with_event) {
      EXPECT_TRUE(device.WaitForEvent(second.get(), between.get()).ok());
    }
    device.Enqueue(second.get(), "2", [&] { order.push_back(2); });
    EXPECT_TRUE(device.SynchronizeStream(second.get()).ok());
    EXPECT_TRUE(device.SynchronizeStream(first.get()).ok());
    if (order != std::vector{1, 2}) return true;
  }
  return false;
}

TEST(FakeDeviceOrder, AMissingEventShows) { EXPECT_TRUE(EverOutOfOrder(false)); }

TEST(FakeDeviceOrder, AnEventKeepsTheOrder) { EXPECT_FALSE(EverOutOfOrder(true)); }

TEST_F(FakeDeviceTest, AnEventThatIsAskedForHappensInTheEnd) {
  const DeviceStream stream = NewStream();
  const DeviceEvent event = NewEvent();
  EXPECT_TRUE(*device_.QueryEvent(event)) << "never recorded";
  int done = 0;
  for (int i = 0; i < 20; ++i) device_.Enqueue(stream, "count", [&] { ++done; });
  ASSERT_TRUE(device_.RecordEvent(event, stream).ok());
  int asked = 0;
  while (!*device_.QueryEvent(event)) ++asked;
  EXPECT_EQ(done, 20);
  EXPECT_GT(asked, 0);
}

TEST_F(FakeDeviceTest, WorkThatWaitsForOthersRunsWhenTheyAreReady) {
  const DeviceStream stream = NewStream();
  const DeviceEvent event = NewEvent();
  bool ready = false, ran = false;
  ASSERT_TRUE(device_
                  .EnqueueWhen(
                      stream, {}, [&] { return ready; }, [&] { ran = true; })
                  .ok());
  ASSERT_TRUE(device_.RecordEvent(event, stream).ok());
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(*device_.QueryEvent(event));
  ready = true;
  ASSERT_TRUE(device_.SynchronizeEvent(event).ok());
  EXPECT_TRUE(ran);
}

TEST_F(FakeDeviceTest, ACapturedGraphRunsAtEachLaunchOnly) {
  const DeviceStream stream = NewStream(), side = NewStream();
  const DeviceEvent fork = NewEvent(), join = NewEvent();
  std::vector<int> order;
  ASSERT_TRUE(device_.BeginCapture(stream).ok());
  device_.Enqueue(stream, "1", [&] { order.push_back(1); });
  ASSERT_TRUE(device_.RecordEvent(fork, stream).ok());
  ASSERT_TRUE(device_.WaitForEvent(side, fork).ok());
  device_.Enqueue(side, "2", [&] { order.push_back(2); });
  ASSERT_TRUE(device_.RecordEvent(join, side).ok());
  ASSERT_TRUE(device_.WaitForEvent(stream, join).ok());
  device_.Enqueue(stream, "3", [&] { order.push_back(3); });
  const Graph graph = *FinishCapture(device_, stream);
  ASSERT_TRUE(device_.SynchronizeStream(stream).ok());
  EXPECT_THAT(order, IsEmpty());
  ASSERT_TRUE(device_.LaunchGraph(graph.get(), stream).ok());
  ASSERT_TRUE(device_.LaunchGraph(graph.get(), stream).ok());
  ASSERT_TRUE(device_.SynchronizeStream(stream).ok());
  EXPECT_THAT(order, ElementsAre(1, 2, 3, 1, 2, 3));
}

TEST_F(FakeDeviceTest, ACaptureThatForgetsAStreamIsRefused) {
  const DeviceStream stream = NewStream(), side = NewStream();
  const DeviceEvent fork = NewEvent();
  ASSERT_TRUE(device_.BeginCapture(stream).ok());
  ASSERT_TRUE(device_.RecordEvent(fork, stream).ok());
  ASSERT_TRUE(device_.WaitForEvent(side, fork).ok());
  device_.Enqueue(side, "lost", [] {});
  EXPECT_THAT(device_.EndCapture(stream).status().message(), HasSubstr("Unjoined"));
  EXPECT_THAT(device_.TakeMisuse(), ElementsAre(HasSubstr("Unjoined")));
}

TEST_F(FakeDeviceTest, WhatACaptureForbidsBreaksIt) {
  const DeviceStream stream = NewStream();
  ASSERT_TRUE(device_.BeginCapture(stream).ok());
  EXPECT_FALSE(device_.SynchronizeStream(stream).ok());
  EXPECT_FALSE(device_.AllocateDevice(4).ok());
  EXPECT_THAT(device_.EndCapture(stream).status().message(), HasSubstr("Invalidated"));
  EXPECT_THAT(device_.TakeMisuse(), ElementsAre(HasSubstr("cudaStreamSynchronize: cudaErrorStreamCaptureUnsupported"),
                                                HasSubstr("cudaMalloc: cudaErrorStreamCaptureUnsupported")));
}

TEST_F(FakeDeviceTest, CopiesOfOtherMemoryAreMisuse) {
  const DeviceStream stream = NewStream();
  const DeviceSpan memory = NewMemory(8);
  std::vector<std::byte> pageable(8);
  EXPECT_FALSE(device_.CopyToDevice(pageable, memory, stream).ok());
  EXPECT_FALSE(device_.CopyToHost({pageable.data(), 8}, NewPinned(8), stream).ok());
  EXPECT_FALSE(device_.Fill({memory.address, 9}, 0, stream).ok());
  EXPECT_THAT(device_.TakeMisuse(), ElementsAre(HasSubstr("not within live pinned memory"),
                                                HasSubstr("not within live device memory"), HasSubstr("9 bytes")));
}

TEST_F(FakeDeviceTest, MemoryFreedUnderEnqueuedWorkIsMisuse) {
  const DeviceStream stream = NewStream();
  {
    const DeviceBuffer gone = *DeviceBuffer::Allocate(device_, 8);
    ASSERT_TRUE(device_.Fill(gone.span(), 1, stream).ok());
  }
  ASSERT_TRUE(device_.SynchronizeStream(stream).ok());
  EXPECT_THAT(device_.TakeMisuse(), ElementsAre(HasSubstr("ran after its memory was freed")));
}

TEST_F(FakeDeviceTest, DestroyedHandlesAreMisuse) {
  DeviceStream stream;
  DeviceEvent event;
  {
    const Stream short_lived = *MakeStream(device_);
    const Event short_event = *MakeEvent(device_);
    stream = short_lived.get();
    event = short_event.get();
  }
  EXPECT_FALSE(device_.SynchronizeStream(stream).ok());
  EXPECT_FALSE(device_.SynchronizeEvent(event).ok());
  EXPECT_FALSE(device_.DestroyGraph(DeviceGraph{event.handle}).ok());
  EXPECT_THAT(device_.TakeMisuse(), ElementsAre(HasSubstr("stream 1"), HasSubstr("event 1"), HasSubstr("graph")));
}

TEST_F(FakeDeviceTest, TheDefaultStreamIsMisuse) {
  EXPECT_FALSE(device_.SynchronizeStream({}).ok());
  EXPECT_THAT(device_.TakeMisuse(), ElementsAre(HasSubstr("default stream")));
}

TEST(FakeDeviceThreads, AThreadSetsItsDeviceFirst) {
  FakeDevice device;
  EXPECT_FALSE(device.CreateStream().ok());
  EXPECT_THAT(device.TakeMisuse(), ElementsAre(HasSubstr("SetDevice")));
}

TEST(FakeDeviceLeaks, WhatIsLeftIsNamed) {
  FakeDevice device;
  ASSERT_TRUE(device.SetDevice(0).ok());
  ASSERT_TRUE(device.AllocateDevice(7).ok());
  ASSERT_TRUE(device.AllocatePinned(9).ok());
  const DeviceStream stream = *device.CreateStream();
  ASSERT_TRUE(device.CreateEvent().ok());
  device.Enqueue(stream, "left", [] {});
  EXPECT_THAT(device.TakeLeaks(),
              ElementsAre("7 bytes of device memory not freed", "9 bytes of pinned memory not freed",
                          "stream 1 not destroyed", "stream 1: work that nobody waited for", "event 1 not destroyed"));
}

TEST_F(FakeDeviceTest, FailuresComeOnDemandAndOnce) {
  device_.FailCall(FakeCall::kAllocateDevice, 2, ResourceExhausted("no more"));
  const DeviceSpan first = NewMemory(1);
  EXPECT_FALSE(first.empty());
  EXPECT_EQ(DeviceBuffer::Allocate(device_, 1).status().code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(DeviceBuffer::Allocate(device_, 1).ok());
  const DeviceStream stream = NewStream();
  device_.FailCall(FakeCall::kLaunch, 1, Internal("cudaErrorLaunchFailure"));
  device_.Enqueue(stream, "gate", [] { FAIL() << "a failed launch ran"; });
  EXPECT_THAT(device_.LaunchStatus("gate").message(), HasSubstr("gate: cudaErrorLaunchFailure"));
  EXPECT_TRUE(device_.LaunchStatus("gate").ok());
}

TEST_F(FakeDeviceTest, MemoryHasAnEnd) {
  FakeDevice small({.memory_bytes = 100});
  ASSERT_TRUE(small.SetDevice(0).ok());
  const DeviceBuffer most = *DeviceBuffer::Allocate(small, 60);
  EXPECT_EQ(small.Properties(0)->free_bytes, 40U);
  EXPECT_EQ(DeviceBuffer::Allocate(small, 41).status().code(), StatusCode::kResourceExhausted);
}

TEST_F(FakeDeviceTest, RecordsCallsInOrder) {
  const DeviceStream stream = NewStream();
  const DeviceSpan memory = NewMemory(3);
  ASSERT_TRUE(device_.Fill(memory, 0, stream).ok());
  device_.Enqueue(stream, "gate", [] {});
  ASSERT_TRUE(device_.SynchronizeStream(stream).ok());
  const std::vector<FakeRecord> records = device_.records();
  ASSERT_EQ(records.size(), 6U);
  EXPECT_EQ(records[3].call, FakeCall::kFill);
  EXPECT_EQ(records[3].bytes, 3U);
  EXPECT_EQ(records[4].what, "gate");
  EXPECT_EQ(records[4].stream, 1);
  EXPECT_EQ(device_.count(FakeCall::kSynchronizeStream), 1U);
}

TEST_F(FakeDeviceTest, GroupedGemmMultipliesEachProblem) {
  // Two groups: one problem of (1, 3) · (2, 3)ᵀ and two of (2, 1) · (1, 1)ᵀ.
  const DeviceStream stream = NewStream();
  const std::vector<GemmGroup> groups = {{.rows = 1, .outputs = 2, .inner = 3, .count = 1},
                                         {.rows = 2, .outputs = 1, .inner = 1, .count = 2}};
  const DeviceSpan weights = NewMemory(2 * 8), in = NewMemory(2 * 7), out = NewMemory(4 * 6), pointers = NewMemory(72);
  const auto staged = NewPinned(72);
  std::uint16_t values[15];
  for (std::size_t i = 0; i < 15; ++i) values[i] = F32ToBf16(static_cast<float>(i % 8 + 1));  // weights, then rows
  std::memcpy(staged.data(), values, sizeof(values));
  ASSERT_TRUE(device_.CopyToDevice(staged.first(16), weights, stream).ok());
  ASSERT_TRUE(device_.CopyToDevice(staged.subspan(16, 14), in, stream).ok());
  ASSERT_TRUE(device_.SynchronizeStream(stream).ok());
  const void* table[9] = {weights.address, weights.subspan(12, 2).address, weights.subspan(14, 2).address,
                          in.address,      in.subspan(6, 4).address,       in.subspan(10, 4).address,
                          out.address,     out.subspan(8, 8).address,      out.subspan(16, 8).address};
  std::memcpy(staged.data(), table, sizeof(table));
  ASSERT_TRUE(device_.CopyToDevice(staged, pointers, stream).ok());
  ASSERT_TRUE(device_.PrepareGemm().ok());
  ASSERT_TRUE(device_
                  .RunGroupedGemm({.groups = groups,
                                   .weights = pointers.subspan(0, 24),
                                   .in = pointers.subspan(24, 24),
                                   .out = pointers.subspan(48, 24)},
                                  stream)
                  .ok());
  const auto result = NewPinned(24);
  ASSERT_TRUE(device_.CopyToHost(out, result, stream).ok());
  ASSERT_TRUE(device_.SynchronizeStream(stream).ok());
  float sums[6];
  std::memcpy(sums, result.data(), sizeof(sums));
  EXPECT_THAT(sums, ElementsAre(1 + 4 + 9, 4 + 10 + 18, 7 * 4, 7 * 5, 8 * 6, 8 * 7));
}

TEST_F(FakeDeviceTest, HandlesMoveAndFreeOnce) {
  DeviceBuffer a = *DeviceBuffer::Allocate(device_, 4), b = *DeviceBuffer::Allocate(device_, 5);
  a = std::move(b);
  EXPECT_EQ(a.bytes(), 5U);
  DeviceBuffer c = std::move(a);
  EXPECT_EQ(c.bytes(), 5U);
  Stream s = *MakeStream(device_);
  Stream t = std::move(s);
  EXPECT_TRUE(static_cast<bool>(t));
  EXPECT_FALSE(static_cast<bool>(s));
}

#ifdef __SANITIZE_ADDRESS__
TEST(FakeDeviceDeathTest, TheHostMayNotTouchDeviceMemory) {
  FakeDevice device;
  ASSERT_TRUE(device.SetDevice(0).ok());
  const DeviceBuffer memory = *DeviceBuffer::Allocate(device, 64);
  EXPECT_DEATH(*memory.span().as<volatile int>() = 1, "use-after-poison");
}
#endif

}  // namespace
}  // namespace moe
