#include "router/balancer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <mutex>

#include "tests/router/engine_harness.h"

namespace moe {
namespace {

using testing::HasSubstr;

/// Two workers, and routing that favours some experts.
HarnessOptions Skewed() { return {.workers = 2, .routing = "zipf:1.2"}; }

/// Gains of a model this small are noise; what counts here is what is done about them.
VerdictOptions AnyGain() { return {.least_gain = 1e-9, .migration_bytes_per_s = 1e9}; }

Balancer::Options OptionsOf(const EngineHarness& harness, RebalanceMode mode) {
  return {.mode = mode,
          .interval = std::chrono::milliseconds(5),
          .verdict = AnyGain(),
          .policy = {.confirmations = 2, .cooldown = {}, .least_drift = 0.5},
          .slots = harness.config().num_experts(),
          .bytes_per_expert = 1000,
          .in_force = [&harness] { return harness.placement(); }};
}

Result<BalanceAdvice> Ask(Balancer& balancer) {
  std::promise<Result<BalanceAdvice>> told;
  balancer.Ask([&](const Result<BalanceAdvice>& advice) { told.set_value(advice); });
  return told.get_future().get();
}

/// Sequences enough for a verdict.
void Serve(EngineHarness& harness) {
  std::vector<Client> clients;
  for (std::uint32_t token = 1; token <= 8; ++token) clients.push_back(harness.Submit(Greedy({token, 3}, 60)));
  for (const Client& client : clients) client.watcher->WaitFinished();
}

TEST(Balancer, AnswersWhoAsksAndMovesNothing) {
  EngineHarness harness(Skewed());
  Balancer balancer(OptionsOf(harness, RebalanceMode::kOff), harness.router());
  harness.Start();
  balancer.Start();
  EXPECT_EQ(balancer.last(), nullptr);
  const Result<BalanceAdvice> early = Ask(balancer);
  ASSERT_TRUE(early.ok()) << early.status().message();
  EXPECT_EQ(early->verdict.reason, VerdictReason::kFewRows);
  Serve(harness);
  const Result<BalanceAdvice> advice = Ask(balancer);
  ASSERT_TRUE(advice.ok()) << advice.status().message();
  EXPECT_EQ(advice->generation, 1u);
  EXPECT_GT(advice->window_steps, 32u);
  EXPECT_LT(advice->verdict.balancedness, 1);
  EXPECT_TRUE(advice->verdict.step_seconds) << "the steps were measured";
  ASSERT_EQ(advice->verdict.candidates.size(), 4u);
  EXPECT_GE(advice->verdict.best_candidate()->balancedness, advice->verdict.balancedness);
  EXPECT_EQ(advice->placement.generation, 2u);
  EXPECT_TRUE(CheckPlacement(advice->placement, {.num_experts = 6, .workers = 2, .layers = {0, 1, 2}}).ok());
  EXPECT_EQ(balancer.last()->verdict.sentence, advice->verdict.sentence);
}

TEST(Balancer, LooksByItself) {
  EngineHarness harness(Skewed());
  std::atomic<int> looks{0};
  Balancer::Options options = OptionsOf(harness, RebalanceMode::kAdvise);
  options.on_advice = [&](const BalanceAdvice&) {
    ++looks;
    looks.notify_all();
  };
  Balancer balancer(std::move(options), harness.router());
  harness.Start();
  balancer.Start();
  for (int seen = 0; seen < 3; seen = looks) looks.wait(seen);
  EXPECT_NE(balancer.last(), nullptr);
}

TEST(Balancer, MovesOnceForALoadThatStays) {
  EngineHarness harness(Skewed());
  std::mutex mutex;
  Placement in_force = harness.placement();
  std::vector<std::uint64_t> moves;
  std::atomic<int> looks_since{0};
  Balancer::Options options = OptionsOf(harness, RebalanceMode::kAuto);
  options.in_force = [&] {
    const std::lock_guard lock(mutex);
    return in_force;
  };
  options.move = [&](const BalanceAdvice& advice) {
    const std::lock_guard lock(mutex);
    in_force = advice.placement;
    moves.push_back(advice.placement.generation);
    return Status::Ok();
  };
  options.on_advice = [&](const BalanceAdvice& advice) {
    if (advice.generation > 1) ++looks_since;
  };
  Balancer balancer(std::move(options), harness.router());
  harness.Start();
  balancer.Start();
  while (looks_since < 20) Serve(harness);
  balancer.Stop();
  EXPECT_THAT(moves, testing::ElementsAre(2u));
}

TEST(Balancer, TellsOfAMoveThatFails) {
  EngineHarness harness(Skewed());
  Balancer::Options options = OptionsOf(harness, RebalanceMode::kAuto);
  options.move = [](const BalanceAdvice&) { return Unavailable("rank 2 is out of memory"); };
  std::promise<Status> failed;
  std::once_flag once;
  options.on_moved = [&](const BalanceAdvice&, const Status& status) {
    std::call_once(once, [&] { failed.set_value(status); });
  };
  Balancer balancer(std::move(options), harness.router());
  harness.Start();
  balancer.Start();
  std::future<Status> told = failed.get_future();
  while (told.wait_for(std::chrono::seconds(0)) != std::future_status::ready) Serve(harness);
  EXPECT_THAT(told.get().message(), HasSubstr("rank 2"));
}

TEST(Balancer, SaysWhyItCannotAnswer) {
  EngineHarness harness(Skewed());
  {
    Balancer balancer(OptionsOf(harness, RebalanceMode::kOff), harness.router());
    std::vector<StatusCode> codes;
    const auto note = [&](const Result<BalanceAdvice>& advice) { codes.push_back(advice.status().code()); };
    // Nobody answers before Start.
    for (std::size_t i = 0; i <= Balancer::kMaxAsked; ++i) balancer.Ask(note);
    EXPECT_THAT(codes, testing::ElementsAre(StatusCode::kResourceExhausted));
    balancer.Stop();
    EXPECT_EQ(codes.size(), Balancer::kMaxAsked + 1);
    EXPECT_EQ(codes.back(), StatusCode::kUnavailable);
    balancer.Ask(note);
    EXPECT_EQ(codes.size(), Balancer::kMaxAsked + 2);
    EXPECT_EQ(codes.back(), StatusCode::kUnavailable);
  }
  Balancer balancer(OptionsOf(harness, RebalanceMode::kOff), harness.router());
  harness.Start();
  balancer.Start();
  ASSERT_TRUE(harness.Stop().ok());
  EXPECT_THAT(Ask(balancer).status().message(), HasSubstr("the router has stopped"));
}

}  // namespace
}  // namespace moe
