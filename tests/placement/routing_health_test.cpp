#include "placement/routing_health.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

constexpr std::size_t kExperts = 8;
constexpr std::uint64_t kEnough = RoutingHealth::kEvidence;  // a step of so many tokens an expert is judged

// One layer, two experts a token; a window of 16 steps.
class RoutingHealthTest : public testing::Test {
 protected:
  std::span<const RoutingHealth::Change> Step(std::vector<std::uint64_t> tokens) {
    for (std::size_t expert = 0; expert < kExperts; ++expert) window_.Add(0, expert, tokens[expert]);
    window_.EndStep();
    return health_.Update(window_);
  }
  std::span<const RoutingHealth::Change> Even(std::uint64_t tokens) {
    return Step(std::vector<std::uint64_t>(kExperts, tokens));
  }

  LoadWindow window_{1, kExperts, 16};
  RoutingHealth health_{1, kExperts, 2};
};

TEST_F(RoutingHealthTest, SaysNothingBeforeThereIsEvidence) {
  EXPECT_TRUE(Step({1, 0, 0, 0, 0, 0, 0, 0}).empty());
  EXPECT_TRUE(Step({kEnough * kExperts - 2, 0, 0, 0, 0, 0, 0, 0}).empty());
  EXPECT_FALSE(health_.collapsed(0));
  EXPECT_EQ(health_.dead_experts(0), 0);
  EXPECT_FALSE(Step({1, 0, 0, 0, 0, 0, 0, 0}).empty());
}

TEST_F(RoutingHealthTest, RaisesOnceAndClearsOnceItIsSure) {
  const auto raised = Step({kEnough * kExperts, 0, 0, 0, 0, 0, 0, 0});
  ASSERT_EQ(raised.size(), 2u);
  EXPECT_FALSE(raised[0].collapse);
  EXPECT_EQ(raised[0].dead_experts, 7);
  EXPECT_TRUE(raised[1].collapse && raised[1].raised);
  EXPECT_TRUE(health_.collapsed(0));
  EXPECT_EQ(health_.dead_experts(0), 7);
  EXPECT_TRUE(Step({kEnough * kExperts, 0, 0, 0, 0, 0, 0, 0}).empty()) << "nobody is told twice";

  int clears = 0;
  for (int i = 0; i < 40; ++i)
    for (const RoutingHealth::Change& change : Even(kEnough)) {
      EXPECT_FALSE(change.raised);
      ++clears;
    }
  EXPECT_EQ(clears, 2) << "of the dead and of the collapse";
  EXPECT_FALSE(health_.collapsed(0));
  EXPECT_EQ(health_.dead_experts(0), 0);
}

TEST_F(RoutingHealthTest, ACollapseIsNotOverWithTheFirstGoodLook) {
  Step({kEnough * kExperts, 0, 0, 0, 0, 0, 0, 0});
  Even(50 * kEnough);  // now the window as a whole looks healthy
  EXPECT_TRUE(health_.collapsed(0));
  Even(1);
  EXPECT_TRUE(health_.collapsed(0)) << "too few more tokens";
  Even(kEnough);
  EXPECT_FALSE(health_.collapsed(0));
}

TEST_F(RoutingHealthTest, AFewTokensDoNotBringAnExpertBack) {
  const std::uint64_t n = kEnough * 4;
  EXPECT_EQ(Step({0, n, n, n, n, n, n, n}).size(), 1u);
  for (int i = 0; i < 30; ++i) EXPECT_TRUE(Step({i % 2 == 0 ? 1u : 0u, n, n, n, n, n, n, n}).empty()) << i;
  EXPECT_EQ(health_.dead_experts(0), 1);
  EXPECT_EQ(Step({16 * n, n, n, n, n, n, n, n}).size(), 1u);
  EXPECT_EQ(health_.dead_experts(0), 0);
}

TEST_F(RoutingHealthTest, UnevenIsNotCollapsed) {
  for (int i = 0; i < 40; ++i) EXPECT_TRUE(Step({400, 300, 200, 100, 100, 50, 30, 20}).empty());
}

}  // namespace
}  // namespace moe
