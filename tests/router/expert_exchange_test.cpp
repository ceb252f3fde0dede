#include "router/expert_exchange.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/weight_type.h"
#include "transport/fault_injection.h"
#include "transport/in_process.h"

namespace moe {
namespace {

using testing::HasSubstr;

constexpr std::size_t kHidden = 20;
constexpr std::size_t kExperts = 6;
constexpr std::size_t kTopK = 3;
constexpr std::size_t kTokens = 37;
constexpr std::uint32_t kLayer = 4;  // absolute; the second sparse layer

// A stand-in for an expert, cheap, and different for each expert and element.
float ExpertOutput(int expert, std::size_t element, float in) {
  return in * (1.0f + 0.37f * static_cast<float>(expert)) +
         static_cast<float>(element) / (3.0f + static_cast<float>(expert));
}

// Workers that compute ExpertOutput, until the transport goes.
class FakeWorkers {
 public:
  FakeWorkers(const Placement& placement, std::vector<std::unique_ptr<WorkerEndpoint>> ends) {
    for (std::size_t w = 0; w < ends.size(); ++w)
      threads_.emplace_back([this, w, slots = placement.layers[1].slots[w], end = std::move(ends[w])] {
        while (true) {
          const Result<std::optional<IncomingRequest>> request = end->Receive(kNoDeadline);
          if (!request.ok() && request.status().code() == StatusCode::kUnavailable) return;
          if (!request.ok()) continue;  // one wrong frame
          const std::span<std::byte> buffer = end->reply_buffer(**request);
          const std::size_t bytes = Answer(w, slots, (*request)->payload, buffer);
          MOE_CHECK(end->Reply(**request, bytes).ok());
        }
      });
  }
  ~FakeWorkers() {
    for (std::thread& thread : threads_) thread.join();
  }

  /// From the next exchange on, this worker answers with a failure. To be set between exchanges.
  void Fail(std::size_t worker, Status why) {
    failing_ = worker;
    why_ = std::move(why);
  }

 private:
  std::size_t Answer(std::size_t worker, const std::vector<int>& slots, std::span<const std::byte> payload,
                     std::span<std::byte> buffer) const {
    if (worker == failing_) return WriteFailure(buffer, why_);
    const Result<DispatchReader> dispatch = DispatchReader::Parse(payload);
    if (!dispatch.ok()) return WriteFailure(buffer, dispatch.status());
    if (dispatch->shape().layer != kLayer) return WriteFailure(buffer, Internal("another layer was meant"));
    const DispatchReplyWriter writer(buffer, dispatch->shape());
    std::vector<float> row(kHidden);
    for (std::size_t i = 0; i < dispatch->pairs().size(); ++i) {
      const DispatchPair& pair = dispatch->pairs()[i];
      dispatch->GetRow(pair.row, row);
      for (std::size_t e = 0; e < kHidden; ++e) row[e] = ExpertOutput(slots[pair.slot], e, row[e]);
      writer.SetRow(i, row);
    }
    return writer.Finish(1000 + worker);
  }

  std::size_t failing_ = ~std::size_t{0};
  Status why_;
  std::vector<std::thread> threads_;
};

struct Arrangement {
  int workers = 3;
  int redundant = 0;
  bool round_robin = false;
  ExchangeType type = ExchangeType::kF32;
  int threads = 1;
  std::chrono::milliseconds timeout{120'000};
  FaultScript faults;
};

class CountingObserver final : public ExchangeObserver {
 public:
  void OnExchange(WorkerId worker, double seconds) override {
    EXPECT_GE(seconds, 0);
    ++calls[worker.index()];
  }
  std::vector<int> calls = std::vector<int>(16);
};

class ExpertExchangeTest : public testing::Test {
 protected:
  void Make(const Arrangement& arrangement) {
    exchange_.reset();
    transport_.reset();
    workers_.reset();
    const PlacementShape shape{.num_experts = static_cast<int>(kExperts),
                               .workers = arrangement.workers,
                               .layers = {1, static_cast<int>(kLayer)},
                               .redundant_experts = arrangement.redundant};
    Result<Placement> placed = arrangement.round_robin ? RoundRobinPlacement(shape) : LinearPlacement(shape);
    ASSERT_TRUE(placed.ok()) << placed.status().message();
    placement_ = *std::move(placed);
    options_ = {.max_tokens = kTokens,
                .hidden = kHidden,
                .num_experts = kExperts,
                .experts_per_token = kTopK,
                .type = arrangement.type,
                .timeout = arrangement.timeout};
    injector_ = std::make_unique<FaultInjector>(arrangement.faults);
    Result<InProcessEnds> ends = MakeInProcess(
        {.limits = ExpertExchange::Limits(options_), .num_workers = arrangement.workers, .tap = injector_.get()});
    ASSERT_TRUE(ends.ok()) << ends.status().message();
    transport_ = MakeFaultyTransport(std::move(ends->routers.front()), *injector_);
    workers_ = std::make_unique<FakeWorkers>(placement_, std::move(ends->workers));
    pool_ = std::make_unique<ThreadPool>(arrangement.threads);
    exchange_ = MakeExchange();
    exchange_->BeginStep();
  }
  std::unique_ptr<ExpertExchange> MakeExchange() {
    return std::make_unique<ExpertExchange>(options_, *transport_, placement_, SimdKernels(), *pool_, &observer_);
  }
  void TearDown() override {
    exchange_.reset();
    transport_.reset();  // ends the workers
    workers_.reset();
  }

  // Random rows and choices of `tokens` tokens.
  void Fill(std::uint64_t seed, std::size_t tokens) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    const auto draw = [&](std::size_t count) {
      std::vector<float> values(count);
      for (float& value : values) value = normal(random);
      return values;
    };
    in_ = draw(tokens * kHidden);
    residual_ = draw(tokens * kHidden);
    weights_ = draw(tokens * kTopK);
    ids_.clear();
    std::vector<std::int32_t> all = {0, 1, 2, 3, 4, 5};
    for (std::size_t token = 0; token < tokens; ++token) {
      std::shuffle(all.begin(), all.end(), random);
      ids_.insert(ids_.end(), all.begin(), all.begin() + kTopK);
    }
  }
  Status Run() {
    const std::size_t tokens = in_.size() / kHidden;
    return exchange_->Run({.layer = kLayer,
                           .sparse_index = 1,
                           .in = {in_.data(), tokens, kHidden},
                           .ids = {ids_.data(), tokens, kTopK},
                           .weights = {weights_.data(), tokens, kTopK}},
                          {residual_.data(), tokens, kHidden});
  }
  // The plain sum: in the order of the top-k list, in fp32, then onto the residual.
  std::vector<float> Expected(const std::function<float(float)>& travel) const {
    std::vector<float> out = residual_;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const std::size_t token = i / kHidden;
      float sum = 0;
      for (std::size_t j = 0; j < kTopK; ++j) {
        const float row = travel(ExpertOutput(ids_[token * kTopK + j], i % kHidden, travel(in_[i])));
        sum = std::fma(weights_[token * kTopK + j], row, sum);
      }
      out[i] = residual_[i] + sum;
    }
    return out;
  }
  void ExpectResidual(const std::vector<float>& expected) const {
    for (std::size_t i = 0; i < expected.size(); ++i)
      ASSERT_EQ(std::bit_cast<std::uint32_t>(residual_[i]), std::bit_cast<std::uint32_t>(expected[i]))
          << "token " << i / kHidden << ", element " << i % kHidden;
  }

  ExpertExchange::Options options_;
  Placement placement_;
  std::unique_ptr<FaultInjector> injector_;
  std::unique_ptr<FakeWorkers> workers_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<ThreadPool> pool_;
  CountingObserver observer_;
  std::unique_ptr<ExpertExchange> exchange_;
  std::vector<float> in_, residual_, weights_;
  std::vector<std::int32_t> ids_;
};

float Unchanged(float value) { return value; }
float ThroughBf16(float value) { return Bf16ToF32(F32ToBf16(value)); }

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
  EXPECT_DOUBLE_EQ(exchange_->times().experts, 2e-9 * 1005) << "the longest of each exchange";
  for (std::size_t e = 0; e < kExperts; ++e)
    EXPECT_EQ(exchange_->expert_tokens()[e], std::count(ids_.begin(), ids_.end(), static_cast<std::int32_t>(e)));
  exchange_->BeginStep();
  EXPECT_EQ(exchange_->workers()[0].rows, 0u);
  EXPECT_EQ(exchange_->times().experts, 0);
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

TEST_F(ExpertExchangeTest, LimitsHoldTheLargestDispatchOfAStep) {
  const ExpertExchange::Options options{.max_tokens = 5000, .hidden = 64, .num_experts = 8, .experts_per_token = 8};
  const TransportLimits limits = ExpertExchange::Limits(options);
  const DispatchShape all{.rows = 5000, .pairs = 40000, .hidden = 64};
  EXPECT_GE(limits.max_request_bytes, DispatchBytes(all));
  EXPECT_GE(limits.max_reply_bytes, DispatchReplyBytes(all));
}

}  // namespace
}  // namespace moe
