#include "router/expert_exchange.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "tests/router/exchange_harness.h"

namespace moe {
namespace {

using testing::HasSubstr;

TEST_F(ExpertExchangeTest, CombineIsThePlainSumInTopKOrderWhereverExpertsAre) {
  for (const Arrangement& arrangement :
       {Arrangement{.workers = 1}, Arrangement{.workers = 3}, Arrangement{.workers = 3, .round_robin = true},
        Arrangement{.workers = 4, .redundant = 6, .threads = 3}, Arrangement{.workers = 9}}) {
    ASSERT_NO_FATAL_FAILURE(Make(arrangement));
    for (const std::size_t tokens : {std::size_t{1}, std::size_t{2}, kTokens}) {
      Fill(tokens, tokens);
      const std::vector<float> expected = Expected(Unchanged);
      const Status status = Run();
      ASSERT_TRUE(status.ok()) << status.message();
      ExpectResidual(expected);
    }
  }
}

TEST_F(ExpertExchangeTest, TheOrderOfTheSumShowsInTheLastBits) {
  // Guards the test above: a sum in another order would not have passed it.
  Fill(9, kTokens);
  const std::vector<float> in_order = Expected(Unchanged);
  for (std::size_t token = 0; token < kTokens; ++token) {
    std::swap(ids_[token * kTopK], ids_[token * kTopK + 2]);
    std::swap(weights_[token * kTopK], weights_[token * kTopK + 2]);
  }
  EXPECT_NE(Expected(Unchanged), in_order);
}

TEST_F(ExpertExchangeTest, PairsOfWeightZeroAreNotSentAndAddNothing) {
  ASSERT_NO_FATAL_FAILURE(Make({.workers = 3}));
  Fill(12, kTokens);
  std::size_t sent = 0;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    if (i % 3 != 0 || i < kTopK) weights_[i] = 0;  // the first token goes nowhere
    sent += weights_[i] != 0;
  }
  ids_[kTopK + 1] = ids_[kTopK];  // two pairs of one expert, of which one is not wanted
  const std::vector<float> expected = Expected(Unchanged);
  ASSERT_TRUE(Run().ok());
  ExpectResidual(expected);
  std::uint64_t rows = 0;
  std::uint64_t counted = 0;
  for (std::size_t w = 0; w < 3; ++w) rows += exchange_->workers()[w].rows;
  for (const std::uint32_t tokens : exchange_->expert_tokens()) counted += tokens;
  EXPECT_EQ(rows, sent);
  EXPECT_EQ(counted, sent);
}

TEST_F(ExpertExchangeTest, ADroppedPairReadsNobodysRow) {
  // The second exchange has infinities where the pairs of token 0 came back in the first: 0 * inf would be NaN.
  ASSERT_NO_FATAL_FAILURE(Make({.workers = 2}));
  Fill(13, 2);
  std::copy_n(ids_.begin(), kTopK, ids_.begin() + kTopK);
  ASSERT_TRUE(Run().ok());
  std::fill(weights_.begin(), weights_.begin() + kTopK, 0.0f);
  std::fill(in_.begin() + kHidden, in_.end(), std::numeric_limits<float>::infinity());
  const std::vector<float> before = residual_;
  ASSERT_TRUE(Run().ok());
  EXPECT_TRUE(std::equal(before.begin(), before.begin() + kHidden, residual_.begin()));
}

TEST_F(ExpertExchangeTest, WeightsThatScaleInputsDoNotWeighOutputs) {
  for (const Arrangement& arrangement :
       {Arrangement{.workers = 1, .scales_input = true}, Arrangement{.workers = 3, .scales_input = true},
        Arrangement{.workers = 4, .redundant = 6, .scales_input = true, .threads = 2},
        Arrangement{.workers = 2, .scales_input = true, .type = ExchangeType::kBf16}}) {
    ASSERT_NO_FATAL_FAILURE(Make(arrangement));
    Fill(14, kTokens);
    for (std::size_t i = 0; i < weights_.size(); i += 4) weights_[i] = 0;
    const auto travel = arrangement.type == ExchangeType::kBf16 ? ThroughBf16 : Unchanged;
    const std::vector<float> expected = Expected(travel);
    ASSERT_TRUE(Run().ok());
    ExpectResidual(expected);
  }
}

TEST_F(ExpertExchangeTest, SharedRowsJoinAfterTheExpertsAndTheScaleLast) {
  for (const int threads : {1, 3}) {
    ASSERT_NO_FATAL_FAILURE(Make({.workers = 3, .threads = threads}));
    for (const float scale : {1.0f, 0.22f}) {
      Fill(15, kTokens);
      scale_ = scale;
      shared_ = in_;
      std::reverse(shared_.begin(), shared_.end());
      const std::vector<float> expected = Expected(Unchanged);
      ASSERT_TRUE(Run().ok());
      ExpectResidual(expected);
    }
  }
}

TEST_F(ExpertExchangeTest, TheOrderOfSharedPartAndScaleShowsInTheLastBits) {
  // Guards the test above: the other orders would not have passed it.
  Fill(16, kTokens);
  scale_ = 0.22f;
  const std::vector<float> experts = Expected(Unchanged);
  shared_ = in_;
  const std::vector<float> together = Expected(Unchanged);
  std::vector<float> one_by_one(experts.size());
  for (std::size_t i = 0; i < experts.size(); ++i) one_by_one[i] = std::fma(scale_, shared_[i], experts[i]);
  EXPECT_NE(together, one_by_one);
}

TEST_F(ExpertExchangeTest, TheRouterMayComputeBetweenStartAndFinish) {
  ASSERT_NO_FATAL_FAILURE(Make({.workers = 3}));
  for (std::uint64_t layer = 0; layer < 10; ++layer) {
    Fill(layer, kTokens);
    ASSERT_TRUE(Start().ok());
    const std::vector<float> before = residual_;
    shared_ = in_;  // made while the workers are at it
    const std::vector<float> expected = Expected(Unchanged);
    EXPECT_EQ(residual_, before) << "nothing is added before Finish";
    ASSERT_TRUE(Finish().ok());
    ExpectResidual(expected);
  }
}

TEST_F(ExpertExchangeTest, MicroBatchesInFlightAddUpToTheWholeLayer) {
  for (const Arrangement& arrangement :
       {Arrangement{.micro_batches = 3}, Arrangement{.workers = 4, .redundant = 6, .micro_batches = 3, .threads = 2}}) {
    ASSERT_NO_FATAL_FAILURE(Make(arrangement));
    const std::vector<Part> parts = {{0, 0, 9}, {1, 9, 1}, {2, 10, kTokens - 10}};
    for (std::uint64_t layer = 0; layer < 5; ++layer) {
      Fill(layer, kTokens);
      weights_[11 * kTopK] = 0;
      shared_ = in_;
      const std::vector<float> expected = Expected(Unchanged);
      const std::vector<WorkerStep> before(exchange_->workers().begin(), exchange_->workers().end());
      for (const Part& part : parts) ASSERT_TRUE(Start(part).ok());
      for (const std::size_t part : {1u, 0u, 2u}) ASSERT_TRUE(Finish(parts[part]).ok());
      ExpectResidual(expected);

      // The counts are those of one exchange of all tokens, and so are the workers' rows where nobody has a choice.
      const std::vector<std::uint32_t> tokens(exchange_->expert_tokens().begin(), exchange_->expert_tokens().end());
      const std::vector<WorkerStep> between(exchange_->workers().begin(), exchange_->workers().end());
      ASSERT_TRUE(Run().ok());
      EXPECT_THAT(exchange_->expert_tokens(), testing::ElementsAreArray(tokens));
      std::uint64_t in_parts = 0, whole = 0;
      for (std::size_t w = 0; w < before.size(); ++w) {
        const std::uint64_t rows = between[w].rows - before[w].rows;
        if (arrangement.redundant == 0) {
          EXPECT_EQ(exchange_->workers()[w].rows, between[w].rows + rows) << "worker " << w;
        }
        in_parts += rows;
        whole += exchange_->workers()[w].rows - between[w].rows;
      }
      EXPECT_EQ(in_parts, whole);
    }
  }
}

TEST_F(ExpertExchangeTest, AWorkersFailureInOneOfTwoLeavesTheTransportSound) {
  ASSERT_NO_FATAL_FAILURE(Make({.micro_batches = 2}));
  const Part first{0, 0, 20};
  const Part second{1, 20, kTokens - 20};
  workers_->Fail(1, Internal("out of memory"));
  Fill(3, kTokens);
  const std::vector<float> before = residual_;
  ASSERT_TRUE(Start(first).ok());
  ASSERT_TRUE(Start(second).ok());
  const Status status = Finish(first);
  EXPECT_THAT(status.message(), HasSubstr("rank 2"));
  EXPECT_THAT(status.message(), HasSubstr("out of memory"));
  EXPECT_EQ(residual_, before);
  // Nothing is in flight any more: the workers can be spoken to.
  exchange_.reset();
  workers_->Fail(~std::size_t{0}, Status::Ok());
  exchange_ = MakeExchange();
  const std::vector<float> expected = Expected(Unchanged);
  const Status later = Run();
  ASSERT_TRUE(later.ok()) << later.message();
  ExpectResidual(expected);
}

TEST_F(ExpertExchangeTest, Bf16RoundsRowsInBothDirections) {
  ASSERT_NO_FATAL_FAILURE(Make({.type = ExchangeType::kBf16}));
  Fill(21, kTokens);
  const std::vector<float> rounded = Expected(ThroughBf16);
  ASSERT_NE(rounded, Expected(Unchanged));
  ASSERT_TRUE(Run().ok());
  ExpectResidual(rounded);
}

TEST_F(ExpertExchangeTest, AnExchangeWithoutTokensAsksNobody) {
  ASSERT_NO_FATAL_FAILURE(Make({}));
  Fill(1, 0);
  EXPECT_TRUE(Run().ok());
  EXPECT_EQ(observer_.calls, std::vector<int>(16));
}

TEST_F(ExpertExchangeTest, WorkersAreCountedByTheirPairsAndTimed) {
  ASSERT_NO_FATAL_FAILURE(Make({.workers = 7}));  // 6 experts: the last worker has none
  Fill(2, kTokens);
  ASSERT_TRUE(Run().ok());
  ASSERT_TRUE(Run().ok());
  std::uint64_t rows = 0;
  for (std::size_t w = 0; w < 7; ++w) {
    rows += exchange_->workers()[w].rows;
    EXPECT_EQ(observer_.calls[w], w < 6 ? 2 : 0);
    EXPECT_DOUBLE_EQ(exchange_->workers()[w].busy_seconds, w < 6 ? 2e-9 * static_cast<double>(1000 + w) : 0);
  }
  EXPECT_EQ(rows, 2 * kTokens * kTopK);
  EXPECT_GT(exchange_->times().experts, 0);
  EXPECT_LE(exchange_->times().experts, 2e-9 * 1005 * (1 + 1e-12)) << "the longest of each exchange";
  for (std::size_t e = 0; e < kExperts; ++e)
    EXPECT_EQ(exchange_->expert_tokens()[e], std::count(ids_.begin(), ids_.end(), static_cast<std::int32_t>(e)));
  exchange_->BeginStep();
  EXPECT_EQ(exchange_->workers()[0].rows, 0u);
  EXPECT_EQ(exchange_->times().experts, 0);
}

TEST_F(ExpertExchangeTest, WorkersComputeNoLongerThanTheRouterWaits) {
  ASSERT_NO_FATAL_FAILURE(Make({.workers = 2}));
  workers_->ClaimBusy(3'600'000'000'000);  // an hour: clocks of two machines need not agree
  Fill(2, kTokens);
  ASSERT_TRUE(Run().ok());
  EXPECT_GT(exchange_->times().experts, 0);
  EXPECT_LE(exchange_->times().experts, exchange_->times().wait);
  EXPECT_GE(exchange_->workers()[0].busy_seconds, 3600) << "as the worker says";
}

TEST_F(ExpertExchangeTest, AWorkersOwnWordsComeWithItsRank) {
  ASSERT_NO_FATAL_FAILURE(Make({}));
  workers_->Fail(1, Internal("placement generation 2 is unknown here (1)"));
  Fill(3, kTokens);
  const std::vector<float> before = residual_;
  const Status status = Run();
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_THAT(status.message(), HasSubstr("rank 2"));
  EXPECT_THAT(status.message(), HasSubstr("placement generation 2 is unknown here (1)"));
  EXPECT_EQ(residual_, before) << "half a layer was added";
}

// A fault at worker 1, rank 2, in the third exchange.
struct FaultCase {
  const char* name = "";
  FaultKind kind = FaultKind::kDropReply;
  bool silent = false;  // the deadline ends it
};

class ExpertExchangeFault : public ExpertExchangeTest, public testing::WithParamInterface<FaultCase> {};

TEST_P(ExpertExchangeFault, FailsNamingTheRankAddsNothingAndStaysFailed) {
  const FaultCase& fault = GetParam();
  // Short only where the deadline is what must end it, and then longer than a busy machine takes for two exchanges.
  const std::chrono::milliseconds timeout(fault.silent ? 2'000 : 120'000);
  ASSERT_NO_FATAL_FAILURE(
      Make({.timeout = timeout, .faults = {{.kind = fault.kind, .worker = WorkerId(1), .exchange = 2}}}));
  Fill(4, kTokens);
  ASSERT_TRUE(Run().ok());
  ASSERT_TRUE(Run().ok());
  const std::vector<float> before = residual_;
  const auto expect_failure = [&] {
    const Status status = Run();
    EXPECT_THAT(status.code(),
                testing::AnyOf(StatusCode::kDeadlineExceeded, StatusCode::kUnavailable, StatusCode::kInternal));
    EXPECT_EQ(status.code() == StatusCode::kDeadlineExceeded, fault.silent) << status.message();
    EXPECT_THAT(status.message(), HasSubstr("rank 2"));
    EXPECT_THAT(status.message(), testing::Not(HasSubstr("rank 1")));
    EXPECT_EQ(residual_, before);
  };
  expect_failure();
  EXPECT_EQ(exchange_->blame().certain, fault.silent);
  EXPECT_EQ(exchange_->blame().workers[1], 1);
  if (fault.silent) {
    EXPECT_EQ(exchange_->blame().workers, (WorkerMask{0, 1, 0}));
  }
  // Others on the transport too. (The first one's buffers may still be read by a worker that is late.)
  const std::unique_ptr<ExpertExchange> first = std::exchange(exchange_, MakeExchange());
  expect_failure();
}

INSTANTIATE_TEST_SUITE_P(Faults, ExpertExchangeFault,
                         testing::Values(FaultCase{"DroppedRequest", FaultKind::kDropRequest, true},
                                         FaultCase{"DroppedReply", FaultKind::kDropReply, true},
                                         FaultCase{"DeadPeer", FaultKind::kDeadPeer, true},
                                         FaultCase{"CorruptReplyLength", FaultKind::kCorruptReplyLength},
                                         FaultCase{"CorruptRequestLength", FaultKind::kCorruptRequestLength},
                                         FaultCase{"OversizeReply", FaultKind::kOversizeReplyLength}),
                         [](const auto& test) { return test.param.name; });

TEST_F(ExpertExchangeTest, LateAndReorderedRepliesChangeNothing) {
  ASSERT_NO_FATAL_FAILURE(Make({.faults = RandomDelays(17, 3, 50, 20)}));
  for (std::uint64_t round = 0; round < 50; ++round) {
    Fill(round, kTokens);
    const std::vector<float> expected = Expected(Unchanged);
    ASSERT_TRUE(Run().ok());
    ExpectResidual(expected);
  }
}

TEST_F(ExpertExchangeTest, GoesOnOverAnotherTransportWithoutALostWorker) {
  ASSERT_NO_FATAL_FAILURE(Make({.redundant = 6,
                                .micro_batches = 2,
                                .timeout = std::chrono::milliseconds(2'000),
                                .faults = {{.kind = FaultKind::kDeadPeer, .worker = WorkerId(1), .exchange = 1}}}));
  Fill(3, kTokens);
  const std::vector<float> expected = Expected(Unchanged);
  const Part first{.micro_batch = 0, .first = 0, .tokens = 20};
  const Part second{.micro_batch = 1, .first = 20, .tokens = kTokens - 20};
  ASSERT_TRUE(Start(first).ok());
  ASSERT_TRUE(Start(second).ok());
  const std::vector<float> before = residual_;
  ASSERT_TRUE(Finish(first).ok());
  EXPECT_FALSE(Finish(second).ok());
  residual_ = before;

  exchange_->Unbind();
  transport_.reset();
  workers_.reset();
  Result<InProcessEnds> ends = MakeInProcess({.limits = ExpertExchange::Limits(options_), .num_workers = 3});
  ASSERT_TRUE(ends.ok());
  transport_ = std::move(ends->routers.front());
  ends->workers[1].reset();
  workers_ = std::make_unique<FakeWorkers>(placement_, std::move(ends->workers), false);
  exchange_->Rebind(&*transport_, {1, 0, 1});
  exchange_->BeginStep();
  ASSERT_TRUE(Start(first).ok());
  ASSERT_TRUE(Start(second).ok());
  ASSERT_TRUE(Finish(first).ok());
  ASSERT_TRUE(Finish(second).ok());
  ExpectResidual(expected);
  EXPECT_EQ(exchange_->workers()[1].rows, 0u);
}

TEST_F(ExpertExchangeTest, WithoutAnyWorkerEveryTokenIsUnservedAndTheRestIsLeftAlone) {
  ASSERT_NO_FATAL_FAILURE(Make({}));
  exchange_->NameWorkers({"rank 1 (a)", "rank 2 (b)", "rank 3 (c)"});
  exchange_->Rebind(nullptr, NoWorkers(3));
  Fill(5, 4);
  ids_ = {0, 1, 2, 1, 2, 3, 2, 3, 4, 5, 4, 3};
  weights_[9] = 0;  // what is not wanted is not missed
  const std::vector<float> before = residual_;
  ASSERT_TRUE(Start().ok());
  ASSERT_EQ(exchange_->unserved().size(), 4u);
  EXPECT_EQ(exchange_->unserved()[3].token, 3u);
  EXPECT_EQ(exchange_->unserved()[3].expert, 4u);
  const Status why = exchange_->WhyUnserved(1, 4);
  EXPECT_EQ(why.code(), StatusCode::kUnavailable);
  EXPECT_THAT(why.message(), HasSubstr("layer 4 needs expert 4, which only rank 3 (c) could compute"));
  ASSERT_TRUE(Finish().ok());
  ExpectResidual(before);
}

TEST_F(ExpertExchangeTest, LimitsHoldTheLargestDispatchOfAStep) {
  const ExpertExchange::Options options{.max_tokens = 5000, .hidden = 64, .num_experts = 8, .experts_per_token = 8};
  const TransportLimits limits = ExpertExchange::Limits(options);
  const DispatchShape all{.rows = 5000, .pairs = 40000, .hidden = 64};
  EXPECT_GE(limits.max_request_bytes, DispatchBytes(all));
  EXPECT_GE(limits.max_reply_bytes, DispatchReplyBytes(all));
}

}  // namespace
}  // namespace moe
