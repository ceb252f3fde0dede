#include "placement/rebalance_policy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace moe {
namespace {

using Decision = RebalancePolicy::Decision;
using Loads = std::vector<LayerLoad>;

constexpr auto kInterval = std::chrono::seconds(30);

/// Of one layer.
Loads LayerOf(std::vector<double> rows) { return {{.layer = 0, .mean = std::move(rows), .samples = {}}}; }

const Loads kA = LayerOf({4000, 3000, 2000, 1000, 1000, 1000, 1000, 1000});
const Loads kB = LayerOf({1000, 1000, 1000, 1000, 1000, 2000, 3000, 4000});

/// A sample of a load, by as many rows.
Loads SampleOf(const Loads& loads, std::mt19937& random) {
  Loads sample = loads;
  for (LayerLoad& load : sample) {
    std::discrete_distribution<std::size_t> expert(load.mean.begin(), load.mean.end());
    double rows = 0;
    for (const double tokens : load.mean) rows += tokens;
    std::fill(load.mean.begin(), load.mean.end(), 0);
    for (int i = 0; i < static_cast<int>(rows); ++i) ++load.mean[expert(random)];
  }
  return sample;
}

Loads Between(const Loads& from, const Loads& to, double share) {
  Loads loads = from;
  for (std::size_t e = 0; e < loads[0].mean.size(); ++e)
    loads[0].mean[e] = (1 - share) * from[0].mean[e] + share * to[0].mean[e];
  return loads;
}

/// A server whose moves succeed at once, looking every kInterval.
class Server {
 public:
  explicit Server(RebalancePolicy::Options options = {}) : policy_(options) {}

  Decision Look(bool says_yes, const Loads& loads) {
    now_ += kInterval;
    const Decision decision = policy_.Look(now_, says_yes, loads);
    if (decision == Decision::kMove) {
      ++moves_;
      policy_.OnMoved(now_, loads);
    }
    return decision;
  }
  RebalancePolicy& policy() { return policy_; }
  TimePoint now() const { return now_; }
  int moves() const { return moves_; }

 private:
  RebalancePolicy policy_;
  TimePoint now_{};
  int moves_ = 0;
};

TEST(LoadDrift, IsTheShareOfRowsThatWentElsewhere) {
  EXPECT_DOUBLE_EQ(LoadDrift(kA, kA), 0);
  EXPECT_DOUBLE_EQ(LoadDrift(LayerOf({10, 0}), LayerOf({0, 70})), 1);
  EXPECT_DOUBLE_EQ(LoadDrift(LayerOf({10, 10}), LayerOf({60, 40})), 0.1);
  EXPECT_DOUBLE_EQ(LoadDrift(LayerOf({0, 0}), LayerOf({60, 40})), 0);
}

TEST(LoadDrift, ChanceIsWhatSamplesOfOneLoadShow) {
  std::mt19937 random(1);
  double drift = 0;
  constexpr int kPairs = 50;
  for (int i = 0; i < kPairs; ++i) drift += LoadDrift(SampleOf(kA, random), SampleOf(kA, random)) / kPairs;
  EXPECT_NEAR(drift / ChanceDrift(kA, kA), 1, 0.1);
}

TEST(RebalancePolicy, AStableLoadIsMovedOnce) {
  Server server;
  std::mt19937 random(2);
  EXPECT_EQ(server.Look(true, SampleOf(kA, random)), Decision::kUnconfirmed);
  EXPECT_EQ(server.Look(true, SampleOf(kA, random)), Decision::kMove);
  // Even if every verdict from here on were wrong.
  for (int look = 0; look < 2000; ++look) EXPECT_EQ(server.Look(true, SampleOf(kA, random)), Decision::kSameLoad);
  EXPECT_EQ(server.moves(), 1);
}

TEST(RebalancePolicy, SmallWindowsAreNoisierAndStillTheSame) {
  Server server;
  std::mt19937 random(3);
  Loads small = kA;
  for (double& rows : small[0].mean) rows /= 50;  // 280 rows
  while (server.moves() == 0) server.Look(true, SampleOf(small, random));
  for (int look = 0; look < 500; ++look) server.Look(true, SampleOf(small, random));
  EXPECT_EQ(server.moves(), 1);
}

TEST(RebalancePolicy, AYesThatDoesNotLastMovesNothing) {
  Server server;
  for (int look = 0; look < 100; ++look) EXPECT_NE(server.Look(look % 2 == 0, kA), Decision::kMove);
  EXPECT_EQ(server.moves(), 0);
}

TEST(RebalancePolicy, ANewLoadIsMovedForAfterTheCooldown) {
  Server server;
  while (server.moves() == 0) server.Look(true, kA);
  int looks = 1;
  while (server.Look(true, kB) != Decision::kMove) ++looks;
  EXPECT_EQ(looks, 10) << "300 s, by 30";
}

TEST(RebalancePolicy, ASlowDriftIsFollowedInSteps) {
  Server server;
  constexpr int kLooks = 2000;
  for (int look = 0; look < kLooks; ++look) server.Look(true, Between(kA, kB, look / double{kLooks}));
  EXPECT_GT(server.moves(), 3);
  EXPECT_LE(server.moves(), 1 + static_cast<int>(LoadDrift(kA, kB) / 0.05)) << "each for a load of its own";
}

TEST(RebalancePolicy, WhatSwingsToAndFroIsFollowedEverMoreSlowly) {
  Server server;
  constexpr int kSwings = 100;
  std::vector<int> moves_after;
  for (int swing = 0; swing < kSwings; ++swing) {
    // Each lasts longer than the cool-down, so that without a memory every swing would move.
    for (int look = 0; look < 15; ++look) server.Look(true, swing % 2 == 0 ? kA : kB);
    moves_after.push_back(server.moves());
  }
  EXPECT_EQ(moves_after[1], 2) << "both are new at first";
  EXPECT_LT(server.moves(), kSwings / 4);
  EXPECT_LE(moves_after.back() - moves_after[moves_after.size() / 2], 8) << "at most one in sixteen cool-downs";
}

TEST(RebalancePolicy, ALoadThatComesBackForGoodIsMovedForAgain) {
  Server server;
  for (const Loads* loads : {&kA, &kB, &kA})
    for (int look = 0; look < 100; ++look) server.Look(true, *loads);
  EXPECT_EQ(server.moves(), 3);
}

TEST(RebalancePolicy, AMoveThatFailsIsTriedAgainLater) {
  RebalancePolicy policy({});
  TimePoint now{};
  std::vector<int> tries;
  for (int look = 0; look < 400; ++look) {
    now += kInterval;
    if (policy.Look(now, true, kA) != Decision::kMove) continue;
    tries.push_back(look);
    policy.OnFailed(now);
  }
  ASSERT_GE(tries.size(), 4u);
  EXPECT_EQ(tries[1] - tries[0], 20) << "twice the cool-down";
  EXPECT_EQ(tries[2] - tries[1], 40);
  EXPECT_EQ(tries[3] - tries[2], 80);
}

}  // namespace
}  // namespace moe
