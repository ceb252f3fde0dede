// The worker's loop over the in-process transport, with real experts behind it.
#include "experts/worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/experts/worker_harness.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST_F(WorkerTest, AnswersOneRowPerPairInTheOrderOfThePairs) {
  Start();
  for (const ExchangeType type : {ExchangeType::kF32, ExchangeType::kBf16}) {
    ExpectServed({.pairs = {{.row = 0, .slot = 0}}, .type = type});
    ExpectServed({.pairs = {{0, 2, 0}, {0, 0, 0}, {0, 1, 0}}, .type = type});
    ExpectServed(
        {.pairs = {{3, 2, 0}, {0, 0, 0}, {1, 2, 0}, {0, 2, 0}, {2, 1, 0}, {3, 0, 0}}, .rows = 4, .type = type});
    ExpectServed({.pairs = {{1, 1, 0}, {1, 1, 0}}, .rows = 2, .type = type});  // the same twice, and a row unasked for
  }
}

TEST_F(WorkerTest, ServesEveryLayerThatItHasAPartOf) {
  Start();
  ExpectServed({.pairs = {{0, 0, 0}, {1, 0, 0}}, .rows = 2, .layer = 2});
  ExpectServed({.pairs = {{0, 1, 0}}, .layer = 1});
}

TEST_F(WorkerTest, RandomDispatchesUpToTheLimitAreAllRight) {
  Start();
  std::mt19937 random(3);
  for (std::uint32_t i = 0; i < 200; ++i) {
    Request request{.rows = 1 + static_cast<std::uint32_t>(random() % 20), .seed = i};
    const std::size_t pairs = i % 10 == 0 ? kMaxPairs : random() % (kMaxPairs + 1);
    for (std::size_t p = 0; p < pairs; ++p)
      request.pairs.push_back({.row = static_cast<std::uint32_t>(random() % request.rows),
                               .slot = static_cast<std::uint32_t>(random() % 3)});
    ASSERT_NO_FATAL_FAILURE(ExpectServed(request));
  }
}

TEST_F(WorkerTest, GateWeightsDoNotScaleTheRows) {
  Start();
  ExpectServed({.pairs = {{.row = 0, .slot = 1, .weight = 0.25f}, {.row = 0, .slot = 1, .weight = -3}}});
}

/// Llama 4, whose gate weighs what an expert reads: experts 2 and 0 of layer 1.
class InputScalingWorker : public WorkerTest {
 protected:
  InputScalingWorker()
      : WorkerTest("llama4_text",
                   {.generation = kGeneration, .num_experts = 4, .workers = 1, .layers = {{1, {{2, 0}}}, {3, {{}}}}}) {}
};

TEST_F(InputScalingWorker, GateWeightsScaleWhatTheExpertReads) {
  ASSERT_TRUE(shard_.Find(kLayer)->scales_input);
  Start();
  for (const ExchangeType type : {ExchangeType::kF32, ExchangeType::kBf16}) {
    const Request request{
        .pairs = {{0, 1, 0.25f}, {0, 0, 1.0f}, {1, 1, 0.75f}, {0, 1, -3}}, .rows = 2, .hidden = 64, .type = type};
    EXPECT_FALSE(SameBits(Expected(request, request.pairs[0]), Expected(request, request.pairs[3])));
    ExpectServed(request);
  }
}

TEST_F(WorkerTest, AnUnknownGenerationIsNamed) {
  Start();
  EXPECT_THAT(Refusal({.pairs = {{0, 0, 0}}, .generation = 8}),
              AllOf(HasSubstr("generation 8"), HasSubstr("unknown"), HasSubstr("7")));
  EXPECT_THAT(Refusal({.pairs = {{0, 0, 0}}, .generation = 0}), HasSubstr("generation 0"));
}

TEST_F(WorkerTest, ALayerWithoutExpertsIsNamed) {
  Start();
  EXPECT_THAT(Refusal({.pairs = {{0, 0, 0}}, .layer = 3}), HasSubstr("layer 3"));
  EXPECT_THAT(Refusal({.pairs = {{0, 0, 0}}, .layer = 0xffffffff}), HasSubstr("layer 4294967295"));
}

TEST_F(WorkerTest, ASlotThatIsNotThereIsNamed) {
  Start();
  EXPECT_THAT(Refusal({.pairs = {{0, 2, 0}, {0, 3, 0}}}),
              AllOf(HasSubstr("layer 1"), HasSubstr("slot 3"), HasSubstr("there are 3")));
  EXPECT_THAT(Refusal({.pairs = {{0, 0xffffffff, 0}}}), HasSubstr("slot 4294967295"));
  EXPECT_THAT(Refusal({.pairs = {{0, 0, 0}}, .layer = 0}), HasSubstr("there are 0")) << "idle in this layer";
}

TEST_F(WorkerTest, ARowThatIsNotThereIsNamed) {
  Start();
  EXPECT_THAT(Refusal({.pairs = {{0, 0, 0}, {2, 0, 0}}, .rows = 2}), AllOf(HasSubstr("2 rows"), HasSubstr("row 2")));
}

TEST_F(WorkerTest, RowsOfAnotherWidthAreNamed) {
  Start();
  EXPECT_THAT(Refusal({.pairs = {{0, 0, 0}}, .hidden = 64}), AllOf(HasSubstr("64"), HasSubstr("56")));
}

TEST_F(WorkerTest, MorePairsThanTheLimitAreNamed) {
  Start();
  EXPECT_THAT(Refusal({.pairs = Pairs(kMaxPairs + 1)}), AllOf(HasSubstr("33 pairs"), HasSubstr("limit of 32")));
}

TEST_F(WorkerTest, AReplyThatDoesNotFitIsNamed) {
  TransportLimits limits = kLimits;
  limits.max_reply_bytes = 1000;  // 4 rows of 224 bytes and a header
  Start(1, limits);
  ExpectServed({.pairs = Pairs(4)});
  EXPECT_THAT(Refusal({.pairs = Pairs(5)}), AllOf(HasSubstr("reply of 1184 bytes"), HasSubstr("limit of 1000")));
}

TEST_F(WorkerTest, GarbledPayloadsAreAnsweredWithAFailure) {
  Start();
  const Request good{.pairs = {{0, 0, 0}, {1, 1, 0}}, .rows = 2};
  const auto put = [](std::size_t offset, std::uint32_t word) {
    return [offset, word](std::span<std::byte> buffer, std::size_t bytes) {
      std::memcpy(buffer.data() + offset, &word, sizeof(word));
      return bytes;
    };
  };
  EXPECT_THAT(Refusal(good, put(0, 99)), HasSubstr("version 99"));
  EXPECT_THAT(Refusal(good, put(4, 17)), HasSubstr("kind 17"));
  EXPECT_THAT(Refusal(good, put(24, 3)), HasSubstr("type 3"));
  EXPECT_THAT(Refusal(good, put(12, 1'000'000)), HasSubstr("1000000 rows"));
  for (const std::size_t cut : {std::size_t{1}, std::size_t{39}, std::size_t{41}, std::size_t{100}})
    Refusal(good, [cut](std::span<std::byte>, std::size_t) { return cut; });
  std::mt19937 random(5);
  for (int i = 0; i < 500; ++i) {
    const std::span<std::byte> buffer = exchange_->request(WorkerId(0));
    const std::size_t bytes = good.Write(buffer);
    for (int flips = 0; flips < 3; ++flips) buffer[random() % 64] ^= static_cast<std::byte>(1 + random() % 255);
    if (buffer[4] == std::byte{3} && buffer[5] == std::byte{0}) continue;  // a right shutdown
    if (buffer[4] == std::byte{7} && buffer[5] == std::byte{0}) continue;  // or a drop of what is served next
    EXPECT_FALSE(Ask(*exchange_, bytes).empty());
  }
  ExpectServed(good);
}

TEST_F(WorkerTest, AnswersTwoGenerationsAtATime) {
  Start(2);
  const WorkerPreparation wanted{.generation = 8,
                                 .from = kGeneration,
                                 .layers = {{.layer = static_cast<int>(kLayer), .slots = {2, 3}}},
                                 .checks = {{.layer = static_cast<int>(kLayer), .experts = {2, 0}}}};
  const auto ask = [&](const std::function<std::size_t(std::span<std::byte>)>& write) {
    return Ask(*exchange_, write(exchange_->request(WorkerId(0))));
  };
  const auto prepare = [&](std::span<std::byte> buffer) { return *WritePreparation(buffer, wanted); };
  ASSERT_TRUE(ParseControlReply(ask(prepare)).ok());
  const auto query = [](std::span<std::byte> buffer) { return WritePreparationQuery(buffer, {.generation = 8}); };
  PreparationStatus status;
  while (status.state == PreparationState::kLoading) status = *ParsePreparationStatus(ask(query));
  ASSERT_EQ(status.state, PreparationState::kReady) << status.failure.message();
  EXPECT_EQ(status.loaded_experts, 1u);
  EXPECT_EQ(status.checksums.size(), 2u);

  // One of them and the other, in turns; slot 1 is expert 0 here and expert 3 there.
  const Request before{.pairs = {{0, 1, 0}, {0, 0, 0}}};
  Request after = before;
  after.generation = 8;
  for (int i = 0; i < 2; ++i) {
    ExpectServed(before);
    const auto payload = ask([&](std::span<std::byte> buffer) { return after.Write(buffer); });
    const Result<DispatchReplyReader> reply = DispatchReplyReader::Parse(payload, after.shape());
    ASSERT_TRUE(reply.ok()) << reply.status().message();
    std::vector<float> row(hidden_);
    reply->GetRow(0, row);
    EXPECT_TRUE(SameBits(row, Expected(before, {.row = 0, .slot = 0}))) << "expert 3, in slot 0 of the first";
    reply->GetRow(1, row);
    EXPECT_FALSE(SameBits(row, Expected(before, {.row = 0, .slot = 0}))) << "expert 2, which the first has not";
  }

  const auto drop = [](std::span<std::byte> buffer) { return WriteControl(buffer, MessageKind::kDrop, kGeneration); };
  const Result<WorkerDescription> described = ParseDescription(ask(drop));
  ASSERT_TRUE(described.ok()) << described.status().message();
  EXPECT_EQ(described->host, "here");
  EXPECT_EQ(described->generation, 8u);
  EXPECT_EQ(described->slots, 3u);
  const auto gone = ask([&](std::span<std::byte> buffer) { return before.Write(buffer); });
  EXPECT_THAT(DispatchReplyReader::Parse(gone, before.shape()).status().message(),
              HasSubstr("generation 7 is unknown"));
}

TEST_F(WorkerTest, SaysWhoItIs) {
  Start();
  const auto reply = Ask(*exchange_, WriteControl(exchange_->request(WorkerId(0)), MessageKind::kDescribe));
  const Result<WorkerDescription> description = ParseDescription(reply);
  ASSERT_TRUE(description.ok()) << description.status().message();
  EXPECT_EQ(description->host, "here");
  EXPECT_EQ(description->pid, 42u);
  EXPECT_EQ(description->kernel_target, "avx9");
  EXPECT_EQ(description->threads, 2u);
  ExpectServed({.pairs = {{0, 0, 0}}});
}

TEST_F(WorkerTest, ShutdownIsAnsweredAndEndsTheLoop) {
  Start();
  EXPECT_TRUE(
      ParseControlReply(Ask(*exchange_, WriteControl(exchange_->request(WorkerId(0)), MessageKind::kShutdown))).ok());
  EXPECT_TRUE(Join().ok()) << "while its router is still attached";
}

TEST_F(WorkerTest, EndsWellWhenNoRouterIsLeft) {
  Start(2);
  ExpectServed({.pairs = {{0, 0, 0}}});
  EXPECT_TRUE(Stop().ok());
}

TEST_F(WorkerTest, CountsWhatItHasDone) {
  Start();
  const Request request{.pairs = {{0, 0, 0}, {1, 1, 0}, {1, 2, 0}}, .rows = 2};
  ExpectServed(request);
  ExpectServed(request);
  EXPECT_EQ(totals_.exchanges, 2u);
  EXPECT_EQ(totals_.rows, 6u) << "(token, expert) pairs";
  EXPECT_EQ(totals_.received_bytes, 2 * DispatchBytes(request.shape()));
  EXPECT_EQ(totals_.sent_bytes, 2 * DispatchReplyBytes(request.shape()));
  const std::uint64_t busy_ns = totals_.busy_ns;
  EXPECT_GT(busy_ns, 0u);
  // What is refused, or only asks who it is, is no exchange of rows.
  Ask(*exchange_, WriteControl(exchange_->request(WorkerId(0)), MessageKind::kDescribe));
  const Request bad{.pairs = {{0, 9, 0}}};
  Ask(*exchange_, bad.Write(exchange_->request(WorkerId(0))));
  EXPECT_EQ(totals_.exchanges, 2u);
  EXPECT_EQ(totals_.rows, 6u);
  EXPECT_EQ(totals_.received_bytes, 2 * DispatchBytes(request.shape()));

  ASSERT_TRUE(Stop().ok());
  ASSERT_EQ(observed_.size(), 2u);
  double busy_seconds = 0;
  for (const DispatchFigures& figures : observed_) {
    EXPECT_EQ(figures.rows, 3u);
    EXPECT_GT(figures.ffn_seconds, 0);
    EXPECT_GE(figures.busy_seconds, figures.ffn_seconds * 0.999) << "counted in whole nanoseconds";
    busy_seconds += figures.busy_seconds;
  }
  EXPECT_NEAR(busy_seconds, static_cast<double>(busy_ns) * 1e-9, 1e-12);
}

TEST_F(WorkerTest, TheReplyCarriesTheBusyTimeThatIsCounted) {
  Start();
  const Request request{.pairs = {{0, 0, 0}}};
  const auto reply = Ask(*exchange_, request.Write(exchange_->request(WorkerId(0))));
  EXPECT_EQ(DispatchReplyReader::Parse(reply, request.shape())->busy_ns(), totals_.busy_ns);
}

TEST_F(WorkerTest, SeveralRoutersGetTheirOwnRows) {
  constexpr std::uint32_t kRouters = 3;
  Start(kRouters);
  std::vector<std::vector<float>> replies[kRouters];
  std::vector<std::thread> threads;
  for (std::uint32_t r = 0; r < kRouters; ++r) {
    threads.emplace_back([&, r] {
      std::unique_ptr<Exchange> own = r == 0 ? nullptr : router(r).MakeExchange();
      Exchange& exchange = r == 0 ? *exchange_ : *own;
      for (std::uint32_t i = 0; i < 60; ++i) {
        const Request request{.pairs = {{1, i % 3, 0}, {0, (i + r) % 3, 0}}, .rows = 2, .seed = 1 + 100 * r + i};
        const auto payload = Ask(exchange, request.Write(exchange.request(WorkerId(0))));
        const Result<DispatchReplyReader> reply = DispatchReplyReader::Parse(payload, request.shape());
        ASSERT_TRUE(reply.ok());
        replies[r].push_back(std::vector<float>(2 * kHidden));
        for (std::size_t p = 0; p < 2; ++p)
          reply->GetRow(p, std::span(replies[r].back()).subspan(p * kHidden, kHidden));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::uint32_t r = 0; r < kRouters; ++r) {
    ASSERT_EQ(replies[r].size(), 60u);
    for (std::uint32_t i = 0; i < 60; ++i) {
      const Request request{.pairs = {{1, i % 3, 0}, {0, (i + r) % 3, 0}}, .rows = 2, .seed = 1 + 100 * r + i};
      for (std::size_t p = 0; p < 2; ++p)
        EXPECT_TRUE(
            SameBits(std::span(replies[r][i]).subspan(p * kHidden, kHidden), Expected(request, request.pairs[p])));
    }
  }
  EXPECT_EQ(totals_.exchanges, kRouters * 60);
}

// The transport refuses the frame and tells its router, whose end fails; the worker has other routers to serve.
TEST_F(WorkerTest, AWrongFrameOfOneRouterDoesNotEndTheService) {
  FaultInjector injector({{.kind = FaultKind::kCorruptRequestLength, .worker = WorkerId(0), .exchange = 1}});
  Start(2, kLimits, {}, &injector);
  const Request request{.pairs = {{0, 2, 0}}};
  ExpectServed(request);
  const std::size_t sizes[] = {request.Write(exchange_->request(WorkerId(0)))};
  ASSERT_TRUE(exchange_->Start(sizes).ok());
  EXPECT_EQ(exchange_->Wait(Generous()).code(), StatusCode::kUnavailable);

  const auto other = router(1).MakeExchange();
  const std::size_t bytes[] = {request.Write(other->request(WorkerId(0)))};
  ASSERT_TRUE(other->Start(bytes).ok());
  const Status status = other->Wait(Generous());
  ASSERT_TRUE(status.ok()) << status.message();
  ExpectRightReply(other->reply(WorkerId(0)), request);
}

TEST_F(WorkerTest, OneThatCouldNotLoadTellsEveryoneWhyUntilShutdown) {
  Start(2, kLimits, NotFound("tensor x is missing"));
  const auto expect_why = [](const Status& status) {
    EXPECT_EQ(status.code(), StatusCode::kNotFound);
    EXPECT_EQ(status.message(), "tensor x is missing");
  };
  const auto other = router(1).MakeExchange();
  for (Exchange* exchange : {exchange_.get(), other.get(), exchange_.get()}) {
    const std::span<std::byte> buffer = exchange->request(WorkerId(0));
    expect_why(ParseDescription(Ask(*exchange, WriteControl(buffer, MessageKind::kDescribe))).status());
    const Request request{.pairs = {{0, 0, 0}}};
    expect_why(DispatchReplyReader::Parse(Ask(*exchange, request.Write(buffer)), request.shape()).status());
  }
  EXPECT_TRUE(
      ParseControlReply(Ask(*exchange_, WriteControl(exchange_->request(WorkerId(0)), MessageKind::kShutdown))).ok());
  EXPECT_TRUE(Join().ok());
}

}  // namespace
}  // namespace moe
