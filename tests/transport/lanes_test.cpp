// Both ends of shared memory under a peer that writes what it likes: nothing outside the memory is touched, and what is
// wrong is refused by name. What the ends do with peers that behave is in the contract.
#include "transport/lanes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "transport/frame.h"

namespace moe {
namespace {

using testing::HasSubstr;

constexpr LaneTerms kTerms{
    .limits = {.max_request_bytes = 100, .max_reply_bytes = 50, .max_exchanges = 2}, .epoch = 3, .worker = WorkerId(4)};

// Each lane in memory of its own, so that a step beyond it is noticed under the address sanitizer.
struct Memory {
  Memory() {
    for (int slot = 0; slot < kTerms.limits.max_exchanges; ++slot) {
      requests.emplace_back(kFrameHeaderBytes + kTerms.limits.max_request_bytes);
      replies.emplace_back(kFrameHeaderBytes + kTerms.limits.max_reply_bytes);
      controls.emplace_back();
      lanes.push_back({.control = &controls.back(), .request = requests.back().span(), .reply = replies.back().span()});
    }
  }
  std::deque<LaneControl> controls;
  std::vector<AlignedBuffer<std::byte>> requests, replies;
  std::vector<Lane> lanes;
  Doorbell router_bell, worker_bell;
};

class LanesTest : public ::testing::Test {
 protected:
  LaneControl& control(std::size_t slot) { return memory_.controls[slot]; }
  std::vector<std::byte> Answer(const WorkerLanes::Request& request) {
    std::ranges::copy(request.payload, worker_.reply_buffer(request.slot).begin());
    EXPECT_TRUE(worker_.Reply(request.slot, request.payload.size()).ok());
    return {request.payload.begin(), request.payload.end()};
  }

  Memory memory_;
  RouterLanes router_{memory_.lanes, kTerms, Rank(5), memory_.worker_bell};
  WorkerLanes worker_{memory_.lanes, kTerms, Rank(0), memory_.router_bell};
};

TEST_F(LanesTest, ARequestIsSeenOnceAndSoIsItsReply) {
  EXPECT_FALSE(worker_.Take()->has_value());
  router_.request(1)[0] = std::byte{7};
  router_.Send(1, 1, 3);
  EXPECT_EQ(memory_.worker_bell.count(), 1u);
  const WorkerLanes::Request request = **worker_.Take();
  EXPECT_EQ(request.slot, 1u);
  EXPECT_EQ(request.payload.size(), 3u);
  EXPECT_EQ(request.payload.data(), router_.request(1).data()) << "where the router wrote it";
  EXPECT_FALSE(worker_.Take()->has_value());
  EXPECT_EQ(worker_.open(), 1u);
  EXPECT_FALSE(*router_.TakeReply(1, 1));
  Answer(request);
  EXPECT_EQ(worker_.open(), 0u);
  EXPECT_EQ(memory_.router_bell.count(), 1u);
  EXPECT_TRUE(*router_.TakeReply(1, 1));
  EXPECT_EQ(router_.reply(1).size(), 3u);
  EXPECT_EQ(router_.reply(1)[0], std::byte{7});
  EXPECT_FALSE(*router_.TakeReply(1, 1));
}

TEST_F(LanesTest, TheOldestRequestComesFirst) {
  router_.Send(1, 1, 1);
  router_.Send(0, 2, 1);
  EXPECT_EQ((*worker_.Take())->slot, 1u);
  EXPECT_EQ((*worker_.Take())->slot, 0u);
}

TEST_F(LanesTest, AReplyOverTheLimitIsRefusedAndTheRequestStaysOpen) {
  router_.Send(0, 1, 100);
  const WorkerLanes::Request request = **worker_.Take();
  const Status status = worker_.Reply(request.slot, 51);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("a reply of 51 bytes is over the limit of 50"));
  EXPECT_TRUE(worker_.Reply(request.slot, 50).ok());
}

TEST_F(LanesTest, ARequestThatIsBeingServedIsNotTakenAgainWhateverItsState) {
  router_.Send(0, 1, 10);
  const WorkerLanes::Request request = **worker_.Take();
  router_.Send(0, 2, 10);  // which no router of ours does
  EXPECT_FALSE(worker_.Take()->has_value());
  control(0).state = LaneState::kIdle;
  Answer(request);
  EXPECT_EQ(worker_.open(), 0u);
}

TEST_F(LanesTest, LengthsBeyondTheMemoryAreRefusedAtBothEnds) {
  router_.Send(0, 1, 40);
  control(0).request_frame_bytes = std::uint64_t{1} << 60;
  const auto taken = worker_.Take();
  EXPECT_EQ(taken.status().code(), StatusCode::kInternal);
  EXPECT_THAT(taken.status().message(), HasSubstr("rank 0 sent a frame that says 40 payload bytes, but 100 arrived"));
  const auto told = router_.TakeReply(0, 1);
  EXPECT_EQ(told.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(told.status().message(), HasSubstr("rank 5 refused a request: rank 0 sent a frame that says"));

  router_.Send(1, 2, 40);
  Answer(**worker_.Take());
  control(1).reply_frame_bytes = 9;
  EXPECT_THAT(router_.TakeReply(1, 2).status().message(), HasSubstr("rank 5 sent 9 bytes, fewer than the 64"));
}

// A peer may leave any bytes in the memory, whole frames with some bits changed among them.
TEST_F(LanesTest, WhateverThePeerWritesIsTakenOrRefusedAndNothingElse) {
  std::mt19937_64 random(1);
  const auto spoil = [&](std::span<std::byte> frame, std::atomic<std::uint64_t>& bytes) {
    const std::uint64_t changes = random() % 2 == 0 ? 0 : random() % 8;
    for (std::uint64_t i = 0; i < changes; ++i) frame[random() % kFrameHeaderBytes] ^= std::byte(1 << random() % 8);
    if (random() % 4 == 0) bytes = random() % 3 == 0 ? random() : random() % 200;
  };
  int refused = 0;
  int served = 0;
  for (std::uint64_t sequence = 1; sequence <= 20'000; ++sequence) {
    const std::size_t slot = sequence % 2;
    router_.Send(slot, sequence, random() % 51);
    spoil(memory_.lanes[slot].request, control(slot).request_frame_bytes);
    const auto taken = worker_.Take();
    if (taken.ok() && taken->has_value()) {
      Answer(**taken);
      spoil(memory_.lanes[slot].reply, control(slot).reply_frame_bytes);
    }
    const Result<bool> replied = router_.TakeReply(slot, sequence);
    if (replied.ok() && *replied) {
      EXPECT_EQ(router_.reply(slot).size(), (*taken)->payload.size());
      ++served;
    } else {
      ++refused;
    }
    control(slot).state = LaneState::kIdle;
  }
  EXPECT_GT(served, 2'000);
  EXPECT_GT(refused, 10'000);
}

}  // namespace
}  // namespace moe
