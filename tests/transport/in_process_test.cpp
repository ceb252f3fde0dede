#include "transport/in_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/contract/transport_contract.h"
#include "tests/transport/thread_harness.h"

namespace moe {
namespace {

// Threads of this process under a fault script. The injector outlives the ends.
class InProcessHarness final : public TransportHarness {
 public:
  InProcessHarness(const HarnessOptions& options, std::chrono::microseconds spin)
      : injector_(options.faults),
        inner_(
            MakeEnds({.limits = options.limits, .num_workers = options.num_workers, .spin = spin, .tap = &injector_})) {
  }
  Transport& transport() override { return inner_.transport(); }

 private:
  FaultInjector injector_;
  ThreadHarness inner_;
};

HarnessFactory WithSpin(std::chrono::microseconds spin) {
  return [spin](const HarnessOptions& options) { return std::make_unique<InProcessHarness>(options, spin); };
}

MOE_INSTANTIATE_TRANSPORT_CONTRACT(InProcess, TransportContractParam{"parking", WithSpin(std::chrono::microseconds(0))},
                                   TransportContractParam{"spinning", WithSpin(std::chrono::microseconds(20))});

constexpr TransportLimits kLimits{.max_request_bytes = 256, .max_reply_bytes = 256, .max_exchanges = 2};

Deadline Generous() { return After(std::chrono::minutes(2)); }

// Starts an exchange of one worker whose request is `text`.
void StartText(Exchange& exchange, const std::string& text) {
  std::memcpy(exchange.request(WorkerId(0)).data(), text.data(), text.size());
  const std::size_t bytes[] = {text.size()};
  ASSERT_TRUE(exchange.Start(bytes).ok());
}

std::string TextOf(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

IncomingRequest MustReceive(WorkerEndpoint& endpoint) {
  Result<std::optional<IncomingRequest>> request = endpoint.Receive(Generous());
  MOE_CHECK(request.ok() && request->has_value());
  return **request;
}

void ReplyText(WorkerEndpoint& endpoint, const IncomingRequest& request, const std::string& text) {
  std::memcpy(endpoint.reply_buffer(request).data(), text.data(), text.size());
  ASSERT_TRUE(endpoint.Reply(request, text.size()).ok());
}

TEST(InProcess, WorkersAreRanksFromOneAndEmbeddedFromZero) {
  const InProcessEnds apart = MakeEnds({.limits = kLimits, .num_workers = 2});
  EXPECT_EQ(apart.routers[0]->rank(WorkerId(0)), Rank(1));
  EXPECT_EQ(apart.routers[0]->rank(WorkerId(1)), Rank(2));
  const InProcessEnds embedded = MakeEnds({.limits = kLimits, .embedded = true});
  EXPECT_EQ(embedded.routers[0]->rank(WorkerId(0)), Rank(0));
  EXPECT_EQ(embedded.routers[0]->name(), "inprocess");
  EXPECT_EQ(embedded.routers[0]->memory_space(), MemorySpace::kHost);
}

TEST(InProcess, UnusableOptionsAreRefused) {
  EXPECT_EQ(MakeInProcess({.limits = kLimits, .num_workers = 0}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeInProcess({.limits = kLimits, .num_routers = 0}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeInProcess({.limits = {.max_reply_bytes = 1}}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeInProcess({.limits = {.max_request_bytes = 1, .max_exchanges = 0}}).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(InProcess, AWorkerReadsTheRequestWhereTheRouterWroteIt) {
  InProcessEnds ends = MakeEnds({.limits = kLimits});
  const auto exchange = ends.routers[0]->MakeExchange();
  StartText(*exchange, "hello");
  const IncomingRequest request = MustReceive(*ends.workers[0]);
  EXPECT_EQ(request.payload.data(), exchange->request(WorkerId(0)).data());
  const std::byte* const reply = ends.workers[0]->reply_buffer(request).data();
  ReplyText(*ends.workers[0], request, "there");
  ASSERT_TRUE(exchange->Wait(Generous()).ok());
  EXPECT_EQ(exchange->reply(WorkerId(0)).data(), reply);
  EXPECT_EQ(TextOf(exchange->reply(WorkerId(0))), "there");
}

TEST(InProcess, RoutersAreServedInTurn) {
  InProcessEnds ends = MakeEnds({.limits = kLimits, .num_routers = 3});
  std::vector<std::unique_ptr<Exchange>> exchanges;
  for (const std::string text : {"a1", "a2", "b1", "b2", "c1"}) {
    exchanges.push_back(ends.routers[static_cast<std::size_t>(text[0] - 'a')]->MakeExchange());
    StartText(*exchanges.back(), text);
  }
  std::vector<std::string> order;
  for (std::size_t i = 0; i < exchanges.size(); ++i) {
    const IncomingRequest request = MustReceive(*ends.workers[0]);
    EXPECT_EQ(request.router, request.payload[0] == std::byte{'a'} ? 0 : request.payload[0] == std::byte{'b'} ? 1 : 2);
    order.push_back(TextOf(request.payload));
    ReplyText(*ends.workers[0], request, order.back());
  }
  EXPECT_THAT(order, testing::ElementsAre("a1", "b1", "c1", "a2", "b2"));
  for (const auto& exchange : exchanges) EXPECT_TRUE(exchange->Wait(Generous()).ok());
  exchanges.clear();
}

TEST(InProcess, OneRoutersRequestsComeInTheOrderOfTheirStart) {
  InProcessEnds ends = MakeEnds({.limits = kLimits});
  const auto slot0 = ends.routers[0]->MakeExchange();
  const auto slot1 = ends.routers[0]->MakeExchange();
  StartText(*slot1, "first");
  StartText(*slot0, "second");
  for (const std::string expected : {"first", "second"}) {
    const IncomingRequest request = MustReceive(*ends.workers[0]);
    EXPECT_EQ(TextOf(request.payload), expected);
    ReplyText(*ends.workers[0], request, expected);
  }
  EXPECT_TRUE(slot0->Wait(Generous()).ok());
  EXPECT_TRUE(slot1->Wait(Generous()).ok());
}

TEST(InProcess, TheOrderOfStartHoldsWhileTheWorkerIsLooking) {
  constexpr std::uint64_t kRounds = 3'000;
  constexpr int kSlots = 500;  // of which the first and the last are used: many make a look take long
  InProcessEnds ends = MakeEnds({.limits = {.max_request_bytes = 8, .max_reply_bytes = 8, .max_exchanges = kSlots}});
  std::uint64_t out_of_order = 0;
  std::thread worker([&, endpoint = std::move(ends.workers[0])] {
    std::uint64_t last = 0;
    while (true) {
      const Result<std::optional<IncomingRequest>> request = endpoint->Receive(TimePoint::min());  // looks all the time
      if (!request.ok()) return;
      if (!request->has_value()) continue;
      std::uint64_t number = 0;
      std::memcpy(&number, (*request)->payload.data(), sizeof(number));
      out_of_order += number == last + 1 ? 0 : 1;
      last = number;
      MOE_CHECK(endpoint->Reply(**request, 0).ok());
    }
  });
  std::vector<std::unique_ptr<Exchange>> exchanges;
  for (int i = 0; i < kSlots; ++i) exchanges.push_back(ends.routers[0]->MakeExchange());
  const std::size_t bytes[] = {8};
  for (std::uint64_t n = 1; n <= 2 * kRounds; n += 2) {
    std::memcpy(exchanges.front()->request(WorkerId(0)).data(), &n, sizeof(n));
    const std::uint64_t next = n + 1;
    std::memcpy(exchanges.back()->request(WorkerId(0)).data(), &next, sizeof(next));
    EXPECT_TRUE(exchanges.front()->Start(bytes).ok());
    EXPECT_TRUE(exchanges.back()->Start(bytes).ok());
    EXPECT_TRUE(exchanges.front()->Wait(Generous()).ok());
    EXPECT_TRUE(exchanges.back()->Wait(Generous()).ok());
  }
  exchanges.clear();
  ends.routers.clear();
  worker.join();
  EXPECT_EQ(out_of_order, 0u);
}

TEST(InProcess, ReceiveReturnsNothingAfterItsDeadline) {
  InProcessEnds ends = MakeEnds({.limits = kLimits});
  const Result<std::optional<IncomingRequest>> request = ends.workers[0]->Receive(After(std::chrono::milliseconds(1)));
  ASSERT_TRUE(request.ok());
  EXPECT_FALSE(request->has_value());
}

TEST(InProcess, WorkersGoOnWhileAnyRouterIsLeft) {
  InProcessEnds ends = MakeEnds({.limits = kLimits, .num_routers = 2});
  ends.routers[0].reset();
  {
    const auto exchange = ends.routers[1]->MakeExchange();
    StartText(*exchange, "still here");
    const IncomingRequest request = MustReceive(*ends.workers[0]);
    ReplyText(*ends.workers[0], request, "yes");
    EXPECT_TRUE(exchange->Wait(Generous()).ok());
  }
  ends.routers[1].reset();
  EXPECT_EQ(ends.workers[0]->Receive(Generous()).status().code(), StatusCode::kUnavailable);
}

TEST(InProcess, AReplyToARouterThatIsGoneIsHarmless) {
  InProcessEnds ends = MakeEnds({.limits = kLimits});
  auto exchange = ends.routers[0]->MakeExchange();
  StartText(*exchange, "bye");
  const IncomingRequest request = MustReceive(*ends.workers[0]);
  exchange.reset();
  ends.routers.clear();
  EXPECT_EQ(TextOf(request.payload), "bye");
  ReplyText(*ends.workers[0], request, "too late");
  EXPECT_EQ(ends.workers[0]->Receive(Generous()).status().code(), StatusCode::kUnavailable);
}

TEST(InProcess, ALateReplyDoesNotReviveAFailedTransport) {
  InProcessEnds ends = MakeEnds({.limits = kLimits});
  const auto exchange = ends.routers[0]->MakeExchange();
  StartText(*exchange, "slow");
  const IncomingRequest request = MustReceive(*ends.workers[0]);
  ASSERT_EQ(exchange->Wait(TimePoint::min()).code(), StatusCode::kDeadlineExceeded);
  ReplyText(*ends.workers[0], request, "too late");
  EXPECT_EQ(exchange->Poll().status().code(), StatusCode::kDeadlineExceeded);
}

TEST(InProcess, ARequestToAWorkerThatIsGoneNamesIt) {
  InProcessEnds ends = MakeEnds({.limits = kLimits});
  const auto exchange = ends.routers[0]->MakeExchange();
  ends.workers.clear();
  StartText(*exchange, "anyone?");
  const Status status = exchange->Wait(Generous());
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), testing::HasSubstr("rank 1"));
}

TEST(InProcess, AReplyGivenBeforeTheWorkerWentStillCounts) {
  InProcessEnds ends = MakeEnds({.limits = kLimits});
  const auto exchange = ends.routers[0]->MakeExchange();
  StartText(*exchange, "last words?");
  ReplyText(*ends.workers[0], MustReceive(*ends.workers[0]), "these");
  ends.workers.clear();
  ASSERT_TRUE(exchange->Wait(Generous()).ok());
  EXPECT_EQ(TextOf(exchange->reply(WorkerId(0))), "these");
}

TEST(InProcess, ManyRoutersShareTheWorkersWithoutMixingReplies) {
  constexpr int kRouters = 4;
  constexpr std::uint64_t kExchanges = 500;
  ThreadHarness harness(MakeEnds({.limits = kLimits, .num_routers = kRouters, .num_workers = 2}));
  std::vector<int> wrong(kRouters);
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < kRouters; ++r) {
    threads.emplace_back([&, r] {
      const auto exchange = harness.router(r).MakeExchange();
      const std::vector<std::size_t> sizes = {100 + r, 200 + r};
      for (std::uint64_t n = 0; n < kExchanges; ++n) {
        for (std::size_t w = 0; w < sizes.size(); ++w) {
          const std::span<std::byte> request = exchange->request(WorkerId(static_cast<int>(w)));
          FillPattern(n * 100 + r * 10 + w, request);
          request[0] = static_cast<std::byte>(Command::kEcho);
        }
        bool right = exchange->Start(sizes).ok() && exchange->Wait(Generous()).ok();
        for (std::size_t w = 0; right && w < sizes.size(); ++w) {
          const WorkerId worker(static_cast<int>(w));
          right = TextOf(exchange->reply(worker)) == TextOf(exchange->request(worker).first(sizes[w]));
        }
        wrong[r] += right ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, testing::Each(0));
}

}  // namespace
}  // namespace moe
