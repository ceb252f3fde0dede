// What every transport promises, as one set of test bodies. A binary instantiates it with a way to make a transport
// whose workers run RunScriptedWorker, wherever they live.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/contract/allocation_count.h"
#include "tests/contract/transport_extremes_contract.h"
#include "tests/contract/transport_harness.h"

namespace moe {

TEST_P(TransportContract, EchoesEverySizeUpToTheLimit) {
  const auto exchange = transport().MakeExchange();
  for (std::size_t bytes = 1; bytes <= kLimit; ++bytes) {
    ASSERT_NO_FATAL_FAILURE(EchoOnce(*exchange, Everyone(bytes), bytes));
  }
}

TEST_P(TransportContract, RepliesMayBeOfAnySizeFromNothingToTheLimit) {
  const auto exchange = transport().MakeExchange();
  std::vector<std::byte> expected(kLimit);
  for (std::size_t bytes = 0; bytes <= kLimit; ++bytes) {
    ASSERT_NO_FATAL_FAILURE(RunCommand(*exchange, {.command = Command::kReplyBytes, .argument = bytes, .seed = bytes}));
    FillPattern(bytes, std::span(expected).first(bytes));
    for (std::size_t w = 0; w < num_workers(); ++w) {
      const auto reply = exchange->reply(Worker(w));
      ASSERT_EQ(reply.size(), bytes);
      ASSERT_TRUE(std::equal(reply.begin(), reply.end(), expected.begin()));
    }
  }
}

TEST_P(TransportContract, LargeFramesArriveWhole) {
  constexpr std::size_t kLarge = (std::size_t{3} << 20) + 7;
  Make({.max_request_bytes = kLarge, .max_reply_bytes = kLarge, .max_exchanges = 2});
  const auto one = transport().MakeExchange();
  const auto two = transport().MakeExchange();
  WriteEcho(*one, 1);
  WriteEcho(*two, 2);
  ASSERT_TRUE(one->Start(Everyone(kLarge)).ok());
  ASSERT_TRUE(two->Start(Everyone(kLarge - 1)).ok());
  ASSERT_TRUE(two->Wait(Generous()).ok());
  ASSERT_TRUE(one->Wait(Generous()).ok());
  ASSERT_NO_FATAL_FAILURE(ExpectEchoes(*one, Everyone(kLarge)));
  ASSERT_NO_FATAL_FAILURE(ExpectEchoes(*two, Everyone(kLarge - 1)));
}

TEST_P(TransportContract, SizesMayDifferAndWorkersMayBeLeftOut) {
  const auto exchange = transport().MakeExchange();
  for (std::size_t round = 0; round < 60; ++round) {
    Sizes sizes;
    for (std::size_t w = 0; w < num_workers(); ++w)
      sizes.push_back((round + w) % 3 == 0 ? 0 : (round * 37 + w * 113) % kLimit + 1);
    ASSERT_NO_FATAL_FAILURE(EchoOnce(*exchange, sizes, round));
  }
}

TEST_P(TransportContract, AnExchangeWithNobodyIsCompleteAtOnce) {
  const auto exchange = transport().MakeExchange();
  ASSERT_TRUE(exchange->Start(Everyone(0)).ok());
  const Result<bool> done = exchange->Poll();
  ASSERT_TRUE(done.ok());
  EXPECT_TRUE(*done);
  EXPECT_TRUE(exchange->Wait(Clock::now()).ok());
  EXPECT_TRUE(exchange->reply(WorkerId(0)).empty());
}

TEST_P(TransportContract, PollSaysWhetherEveryReplyIsThere) {
  const auto held = transport().MakeExchange();
  const auto other = transport().MakeExchange();
  WriteEcho(*held, 1);
  WriteEcho(*other, 2);
  Sizes sizes = Everyone(40);
  sizes[1] = WriteCommand(*held, 1, {.command = Command::kHold});
  ASSERT_TRUE(held->Start(sizes).ok());
  for (int i = 0; i < 200; ++i) {
    const Result<bool> done = held->Poll();
    ASSERT_TRUE(done.ok()) << done.status().message();
    ASSERT_FALSE(*done) << "worker 1 has not replied";
  }
  ASSERT_TRUE(other->Start(Only(1, 8)).ok());  // makes worker 1 let go
  const Deadline deadline = Generous();
  while (true) {
    const Result<bool> done = held->Poll();
    ASSERT_TRUE(done.ok()) << done.status().message();
    if (*done) break;
    ASSERT_LT(Clock::now(), deadline);
  }
  EXPECT_TRUE(*held->Poll()) << "complete stays complete";
  ASSERT_NO_FATAL_FAILURE(ExpectEchoes(*held, sizes));
  ASSERT_TRUE(other->Wait(Generous()).ok());
}

TEST_P(TransportContract, ExchangesInFlightMayEndInAnyOrder) {
  const auto first = transport().MakeExchange();
  const auto second = transport().MakeExchange();
  const auto third = transport().MakeExchange();
  for (std::uint64_t round = 0; round < 50; ++round) {
    WriteEcho(*third, round);
    for (std::size_t w = 0; w < num_workers(); ++w) {
      WriteCommand(*first, w, {.command = Command::kHold, .seed = 2 * round});
      WriteCommand(*second, w, {.command = Command::kHold, .seed = 2 * round + 1});
    }
    ASSERT_TRUE(first->Start(Everyone(100)).ok());
    ASSERT_TRUE(second->Start(Everyone(200)).ok());
    ASSERT_TRUE(third->Start(Everyone(300)).ok());
    ASSERT_TRUE(third->Wait(Generous()).ok());
    ASSERT_TRUE(second->Wait(Generous()).ok());
    ASSERT_TRUE(first->Wait(Generous()).ok());
    ASSERT_NO_FATAL_FAILURE(ExpectEchoes(*third, Everyone(300)));
    ASSERT_NO_FATAL_FAILURE(ExpectEchoes(*second, Everyone(200)));
    ASSERT_NO_FATAL_FAILURE(ExpectEchoes(*first, Everyone(100)));
  }
}

TEST_P(TransportContract, AReplyStaysValidWhileOtherExchangesRun) {
  const auto kept = transport().MakeExchange();
  const auto busy = transport().MakeExchange();
  ASSERT_NO_FATAL_FAILURE(EchoOnce(*kept, Everyone(kLimit), 1));
  for (std::uint64_t round = 0; round < 20; ++round) {
    ASSERT_NO_FATAL_FAILURE(EchoOnce(*busy, Everyone(kLimit), 2 + round));
  }
  ASSERT_NO_FATAL_FAILURE(ExpectEchoes(*kept, Everyone(kLimit)));
}

TEST_P(TransportContract, ASilentWorkerEndsInADeadlineThatNamesItAndNobodyElse) {
  const auto exchange = transport().MakeExchange();
  const auto after = transport().MakeExchange();
  WriteEcho(*exchange, 1);
  WriteEcho(*after, 2);
  Sizes sizes = Everyone(8);
  sizes[1] = WriteCommand(*exchange, 1, {.command = Command::kSilent});
  ASSERT_TRUE(exchange->Start(sizes).ok());
  ASSERT_TRUE(after->Start(Everyone(8)).ok());
  ASSERT_TRUE(after->Wait(Generous()).ok());  // so the others have replied to the first as well
  const Status status = exchange->Wait(TimePoint::min());
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(), testing::HasSubstr(RankName(1) + " "));
  for (std::size_t w = 0; w < sizes.size(); ++w)
    EXPECT_EQ(exchange->completed_at(Worker(w)) == TimePoint(), w == 1) << "worker " << w;
}

TEST_P(TransportContract, TheDeadlineNamesEveryRankThatIsSilent) {
  const auto exchange = transport().MakeExchange();
  Sizes sizes = Everyone(0);
  for (const std::size_t w : {std::size_t{0}, std::size_t{2}})
    sizes[w] = WriteCommand(*exchange, w, {.command = Command::kSilent});
  ASSERT_TRUE(exchange->Start(sizes).ok());
  const Status status = exchange->Wait(Short());
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(), testing::HasSubstr(Cat("ranks ", transport().rank(WorkerId(0)), ", ",
                                                       transport().rank(WorkerId(2)), " ")));
}

TEST_P(TransportContract, AnErrorIsTerminalForTheWholeTransport) {
  const auto exchange = transport().MakeExchange();
  const auto other = transport().MakeExchange();
  const Status status = FailBySilence(*exchange, 2);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(exchange->Start(Everyone(8)).message(), status.message());
  EXPECT_EQ(exchange->Wait(Generous()).message(), status.message());
  EXPECT_EQ(other->Start(Everyone(8)).message(), status.message());
  EXPECT_EQ(other->Start(Everyone(8)).code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(other->Poll().status().message(), status.message());
  // Buffers stay alive: writing to them is harmless.
  other->request(WorkerId(0))[kLimit - 1] = std::byte{1};
}

TEST_P(TransportContract, ANewTransportWorksAfterOneHasFailed) {
  {
    const auto exchange = transport().MakeExchange();
    ASSERT_FALSE(FailBySilence(*exchange, 0).ok());
  }
  Make({.max_request_bytes = kLimit, .max_reply_bytes = kLimit, .max_exchanges = 1});
  const auto exchange = transport().MakeExchange();
  ASSERT_NO_FATAL_FAILURE(EchoOnce(*exchange, Everyone(kLimit), 5));
}

TEST_P(TransportContract, ACompleteExchangeIsOkWhateverTheDeadline) {
  const auto exchange = transport().MakeExchange();
  ASSERT_NO_FATAL_FAILURE(EchoOnce(*exchange, Everyone(8), 1));
  EXPECT_TRUE(exchange->Wait(TimePoint::min()).ok());
}

TEST_P(TransportContract, AnExchangeGivenUpInFlightIsAnErrorThatNamesWhoOwesAReply) {
  const auto other = transport().MakeExchange();
  {
    const auto exchange = transport().MakeExchange();
    WriteCommand(*exchange, 1, {.command = Command::kSilent});
    ASSERT_TRUE(exchange->Start(Only(1, sizeof(CommandHeader))).ok());
  }
  const Status status = other->Start(Everyone(8));
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), testing::HasSubstr(RankName(1)));
}

TEST_P(TransportContract, AnOversizeRequestIsRefusedBeforeAnythingIsSent) {
  const auto exchange = transport().MakeExchange();
  Sizes sizes = Everyone(8);
  sizes[2] = kLimit + 1;
  for (int i = 0; i < 3; ++i) {
    const Status status = exchange->Start(sizes);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), testing::HasSubstr(RankName(2)));
    EXPECT_THAT(status.message(), testing::HasSubstr(Cat(kLimit + 1)));
    EXPECT_THAT(status.message(), testing::HasSubstr(Cat(kLimit)));
  }
  // Had anything been sent, its echo of 8 bytes would come first.
  ASSERT_NO_FATAL_FAILURE(EchoOnce(*exchange, Everyone(16), 3));
}

TEST_P(TransportContract, AnOversizeReplyIsRefusedAndTheRequestStaysOpen) {
  const auto exchange = transport().MakeExchange();
  ASSERT_NO_FATAL_FAILURE(RunCommand(*exchange, {.command = Command::kOversize}));
  for (std::size_t w = 0; w < num_workers(); ++w) {
    EXPECT_EQ(ReplyAs<StatusCode>(*exchange, w), StatusCode::kInvalidArgument);
  }
}

TEST_P(TransportContract, CompletedAtLiesBetweenStartAndTheEndOfWait) {
  const auto exchange = transport().MakeExchange();
  for (std::uint64_t round = 0; round < 20; ++round) {
    WriteEcho(*exchange, round);
    const TimePoint before = Clock::now();
    ASSERT_TRUE(exchange->Start(Everyone(64)).ok());
    ASSERT_TRUE(exchange->Wait(Generous()).ok());
    const TimePoint after = Clock::now();
    for (std::size_t w = 0; w < num_workers(); ++w) {
      EXPECT_GE(exchange->completed_at(Worker(w)), before);
      EXPECT_LE(exchange->completed_at(Worker(w)), after);
    }
  }
}

TEST_P(TransportContract, AllBuffersAreAligned) {
  const auto one = transport().MakeExchange();
  const auto two = transport().MakeExchange();
  for (Exchange* exchange : {one.get(), two.get()}) {
    ASSERT_NO_FATAL_FAILURE(RunCommand(*exchange, {.command = Command::kAlignment}));
    for (std::size_t w = 0; w < num_workers(); ++w) {
      EXPECT_EQ(ReplyAs<std::uint64_t>(*exchange, w), 0u) << "at the worker";
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(exchange->request(Worker(w)).data()) % 64, 0u);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(exchange->reply(Worker(w)).data()) % 64, 0u);
      EXPECT_EQ(exchange->request(Worker(w)).size(), kLimit);
    }
  }
}

TEST_P(TransportContract, TheEndOfTheRouterEndsTheWorkers) {
  {
    const auto exchange = transport().MakeExchange();
    ASSERT_NO_FATAL_FAILURE(EchoOnce(*exchange, Everyone(8), 1));
  }
  harness_.reset();  // returns only when every worker has ended
}

TEST_P(TransportContract, AWorkerThatGoesIsUnavailableAndNamed) {
  const auto exchange = transport().MakeExchange();
  ASSERT_NO_FATAL_FAILURE(EchoOnce(*exchange, Everyone(8), 1));
  WriteEcho(*exchange, 2);
  Sizes sizes = Everyone(8);
  sizes[1] = WriteCommand(*exchange, 1, {.command = Command::kQuit});
  const Status status = StartAndWait(*exchange, sizes, Generous());
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), testing::HasSubstr(RankName(1)));
}

TEST_P(TransportContract, TheSteadyStateAllocatesNothing) {
  if (harness_->library_allocates()) GTEST_SKIP() << "the library under this transport allocates for each message";
  const auto one = transport().MakeExchange();
  const auto two = transport().MakeExchange();
  const Sizes sizes = Everyone(kLimit);
  WriteEcho(*one, 1);
  WriteEcho(*two, 2);
  const auto run = [&](int rounds) {
    bool ok = true;
    for (int i = 0; i < rounds; ++i) {
      ok = one->Start(sizes).ok() && two->Start(sizes).ok() && ok;
      ok = two->Wait(Generous()).ok() && one->Wait(Generous()).ok() && ok;
    }
    return ok;
  };
  // The count of each worker's thread, which is all that an end runs on; asking allocates nothing either.
  const auto ask = [&](std::vector<std::uint64_t>& counts) {
    for (std::size_t w = 0; w < num_workers(); ++w) WriteCommand(*one, w, {.command = Command::kAllocations});
    bool ok = one->Start(sizes).ok() && one->Wait(Generous()).ok();
    for (std::size_t w = 0; ok && w < num_workers(); ++w) {
      std::memcpy(&counts[w], one->reply(Worker(w)).data(), sizeof(counts[w]));
      one->request(Worker(w))[0] = static_cast<std::byte>(Command::kEcho);
    }
    return ok;
  };
  std::vector<std::uint64_t> first(num_workers());
  std::vector<std::uint64_t> last(num_workers());
  const bool warm = run(10);
  const std::uint64_t own_first = ThreadAllocationCount();
  const bool asked_first = ask(first);
  const bool ran = run(300);
  const bool asked_last = ask(last);
  const std::uint64_t own_last = ThreadAllocationCount();
  ASSERT_TRUE(warm && asked_first && ran && asked_last);
  EXPECT_EQ(own_last, own_first);
  EXPECT_EQ(last, first);
  EXPECT_GT(own_first, 0u) << "operator new is not being counted";
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TransportContract);

/// Runs all of it on each of some parameters (TransportContractParam).
#define MOE_INSTANTIATE_TRANSPORT_CONTRACT(Prefix, ...)                             \
  INSTANTIATE_TEST_SUITE_P(Prefix, TransportContract, testing::Values(__VA_ARGS__), \
                           [](const auto& test) { return test.param.name; });       \
  INSTANTIATE_TEST_SUITE_P(Prefix, TransportExtremes, testing::Values(__VA_ARGS__), \
                           [](const auto& test) { return test.param.name; })

}  // namespace moe
