#include "transport/fault_injection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/contract/transport_contract.h"
#include "tests/transport/thread_harness.h"
#include "transport/in_process.h"

namespace moe {
namespace {

using testing::HasSubstr;

// In-process ends under a fault script. The injector outlives the ends.
class FaultyHarness final : public TransportHarness {
 public:
  explicit FaultyHarness(const HarnessOptions& options) : injector_(options.faults) {
    InProcessEnds ends = MakeEnds({.limits = options.limits, .num_workers = options.num_workers, .tap = &injector_});
    std::vector<std::unique_ptr<Transport>> routers;
    routers.push_back(MakeFaultyTransport(std::move(ends.routers[0]), injector_));
    inner_ = std::make_unique<ThreadHarness>(std::move(routers), std::move(ends.workers));
  }
  Transport& transport() override { return inner_->transport(); }

 private:
  FaultInjector injector_;
  std::unique_ptr<ThreadHarness> inner_;
};

HarnessFactory WithScript(FaultScript script) {
  return [script = std::move(script)](HarnessOptions options) {
    options.faults.insert(options.faults.end(), script.begin(), script.end());
    return std::make_unique<FaultyHarness>(options);
  };
}

// Without faults, and with replies that are only late, every promise is kept.
MOE_INSTANTIATE_TRANSPORT_CONTRACT(FaultInjection, TransportContractParam{"no_faults", WithScript({})},
                                   TransportContractParam{"late_replies", WithScript(RandomDelays(3, 3, 40, 4))});

constexpr TransportLimits kLimits{.max_request_bytes = 128, .max_reply_bytes = 128, .max_exchanges = 2};

class Faults : public testing::Test {
 protected:
  static Deadline Generous() { return After(std::chrono::minutes(2)); }
  static Deadline Short() { return After(std::chrono::milliseconds(30)); }

  void Make(FaultScript script) {
    harness_ = std::make_unique<FaultyHarness>(HarnessOptions{.limits = kLimits, .faults = std::move(script)});
    exchange_ = harness_->transport().MakeExchange();
  }
  static void StartEcho(Exchange& exchange) {
    for (int w = 0; w < 3; ++w) exchange.request(WorkerId(w))[0] = static_cast<std::byte>(Command::kEcho);
    const std::vector<std::size_t> sizes = {16, 32, 48};
    ASSERT_TRUE(exchange.Start(sizes).ok());
  }
  // Of one worker alone: where the deadline is short, a busy machine may delay the others beyond it.
  Status EchoOf(std::size_t worker, Deadline deadline) {
    std::vector<std::size_t> sizes(3);
    sizes[worker] = 32;
    EXPECT_TRUE(exchange_->Start(sizes).ok());
    return exchange_->Wait(deadline);
  }
  std::unique_ptr<FaultyHarness> harness_;
  std::unique_ptr<Exchange> exchange_;

  void TearDown() override {
    exchange_.reset();
    harness_.reset();
  }
};

TEST_F(Faults, ADelayedReplyShowsAfterItsPolls) {
  Make({{.kind = FaultKind::kDelayReply, .worker = WorkerId(2), .polls = 3}});
  StartEcho(*exchange_);
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(*exchange_->Poll());
  EXPECT_TRUE(exchange_->Wait(Generous()).ok());
  EXPECT_EQ(exchange_->reply(WorkerId(2)).size(), 48u);
  EXPECT_GE(exchange_->completed_at(WorkerId(2)), exchange_->completed_at(WorkerId(0)));
}

TEST_F(Faults, ADelayBeyondTheDeadlineNamesTheRankAndIsTerminal) {
  Make({{.kind = FaultKind::kDelayReply, .worker = WorkerId(2), .duration = std::chrono::hours(1)}});
  exchange_->request(WorkerId(2))[0] = static_cast<std::byte>(Command::kEcho);
  const Status status = EchoOf(2, Short());
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(), HasSubstr("no reply from rank 3 before"));
  EXPECT_EQ(exchange_->Start(std::vector<std::size_t>(3)).message(), status.message());
  EXPECT_EQ(exchange_->Poll().status().message(), status.message());
}

TEST_F(Faults, DelaysMakeALaterExchangeEndFirst) {
  Make({{.kind = FaultKind::kDelayReply, .worker = WorkerId(0), .exchange = 0, .duration = std::chrono::hours(1)}});
  const auto second = harness_->transport().MakeExchange();
  StartEcho(*exchange_);
  StartEcho(*second);
  EXPECT_TRUE(second->Wait(Generous()).ok());
  EXPECT_FALSE(*exchange_->Poll());
  EXPECT_EQ(exchange_->Wait(TimePoint::min()).code(), StatusCode::kDeadlineExceeded);
}

TEST(RandomDelays, DependOnTheSeedAlone) {
  const auto polls = [](std::uint64_t seed) {
    std::vector<int> all;
    for (const Fault& fault : RandomDelays(seed, 4, 50, 9)) all.push_back(fault.polls);
    return all;
  };
  EXPECT_EQ(polls(1), polls(1));
  EXPECT_NE(polls(1), polls(2));
  EXPECT_EQ(polls(1).size(), 200u);
  EXPECT_THAT(polls(1), testing::Each(testing::AllOf(testing::Ge(0), testing::Le(9))));
  EXPECT_THAT(polls(1), testing::Contains(0));
  EXPECT_THAT(polls(1), testing::Contains(9));
}

}  // namespace
}  // namespace moe
