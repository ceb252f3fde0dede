// What a worker hosts of several generations and routers: experts are in memory once, for as long as anybody has them.
#include "experts/expert_views.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <semaphore>
#include <string>
#include <thread>
#include <vector>

#include "model/mlp_checksum.h"
#include "test_folders.h"

namespace moe {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::chrono_literals;

constexpr int kRouter = 0;
constexpr std::uint64_t kExpertParameters = 3 * 56 * 44;
constexpr std::uint64_t kExpertBytes = 4 * (2 * 48 * 56 + 64 * 44);  // f32, in whole panels

class ExpertViewsTest : public testing::Test {
 protected:
  ExpertViewsTest() { views_.Hold(kRouter, 1, First()); }

  /// Experts 3, 0 and 5 of layer 1 of a golden model, one slot of layer 2, none of layer 0.
  ExpertViews::Shard First() {
    const Placement placement{
        .generation = 1, .num_experts = 6, .workers = 1, .layers = {{0, {{}}}, {1, {{3, 0, 5}}}, {2, {{1}}}}};
    return std::make_shared<const ExpertShard>(
        *ExpertShard::Load(config_, checkpoint_, placement, WorkerId(0), WeightType::kF32, pool_));
  }
  std::uint64_t SumOf(int layer, int expert) const {
    return Checksum(*LoadExpertWeights(config_, checkpoint_, layer, expert, WeightType::kF32));
  }
  Result<MlpWeights> Load(int layer, int expert) {
    if (hold_loads_) may_load_.acquire();
    ++loads_;
    if (!load_failure_.ok()) return load_failure_;
    return LoadExpertWeights(config_, checkpoint_, layer, expert, WeightType::kF32);
  }
  PreparationStatus Wait(int router, std::uint64_t generation) {
    while (true) {
      const Result<PreparationStatus> status = views_.StatusOf(router, {.generation = generation});
      MOE_CHECK(status.ok(), status.status().message());
      if (status->state != PreparationState::kLoading) return *status;
      std::this_thread::sleep_for(1ms);
    }
  }
  /// Layer 1 with expert 4 in place of 0, and two more slots in layer 0.
  static WorkerPreparation Second() {
    return {.generation = 2,
            .from = 1,
            .layers = {{.layer = 0, .slots = {2, 1}}, {.layer = 1, .slots = {5, 4, 3}}},
            .checks = {{.layer = 0, .experts = {1}}, {.layer = 1, .experts = {4, 0}}, {.layer = 2, .experts = {1}}}};
  }
  std::string Refusal(const WorkerPreparation& wanted, StatusCode code = StatusCode::kInvalidArgument) {
    const Status status = views_.Prepare(kRouter, wanted);
    EXPECT_EQ(status.code(), code) << status.message();
    return status.message();
  }

  const std::filesystem::path folder_ = std::filesystem::path(MOE_SOURCE_DIR) / "tests/goldens/mixtral";
  const ModelConfig config_ = *ReadModelConfig(folder_);
  const Checkpoint checkpoint_ = *Checkpoint::Open(folder_);
  ThreadPool pool_{1};
  std::atomic<int> loads_{0};
  std::atomic<bool> hold_loads_{false};
  std::counting_semaphore<> may_load_{0};
  Status load_failure_;  // set before a preparation
  std::uint64_t free_memory_ = 0;
  std::vector<std::uint64_t> told_;  // bytes hosted, as the observer hears
  ExpertViews views_{{.config = config_,
                      .types = WeightType::kF32,
                      .load = [this](int layer, int expert) { return Load(layer, expert); },
                      .free_memory = [this] { return free_memory_; },
                      .on_hosted = [this](const HostedExperts& hosted) { told_.push_back(hosted.bytes); }}};
};

TEST_F(ExpertViewsTest, APreparedGenerationCostsWhatIsNew) {
  ASSERT_TRUE(views_.Prepare(kRouter, Second()).ok());
  const PreparationStatus status = Wait(kRouter, 2);
  EXPECT_EQ(status.state, PreparationState::kReady);
  EXPECT_EQ(status.loaded_experts, 3u) << "two in layer 0, one in layer 1";
  EXPECT_EQ(status.loaded_bytes, 3 * kExpertBytes);
  EXPECT_EQ(loads_, 3);
  EXPECT_THAT(status.checksums, ElementsAre(SumOf(0, 1), SumOf(1, 4), SumOf(1, 0), SumOf(2, 1)))
      << "of the new, of one that the new has not, and of one that both have";
  const HostedExperts hosted = views_.hosted();
  EXPECT_EQ(hosted.generation, 2u);
  EXPECT_EQ(hosted.slots, 6u);
  EXPECT_EQ(hosted.parameters, 7 * kExpertParameters);
  EXPECT_EQ(hosted.bytes, 7 * kExpertBytes);
  EXPECT_THAT(hosted.layers[1].experts, ElementsAre(5, 4, 3));
  const ExpertShard& first = *views_.Find(kRouter, 1);
  const ExpertShard& second = *views_.Find(kRouter, 2);
  EXPECT_EQ(first.Expert(1, 3), second.Expert(1, 3)) << "the same memory";
  EXPECT_EQ(first.Find(1)->experts, (std::vector<int>{3, 0, 5})) << "the first is as it was";
  EXPECT_EQ(Checksum(*second.Find(1)->weights[1]), SumOf(1, 4));
}

TEST_F(ExpertViewsTest, AnExpertIsFreedWithTheLastThatHasIt) {
  ASSERT_TRUE(views_.Prepare(kRouter, Second()).ok());
  (void)Wait(kRouter, 2);
  const std::weak_ptr<const MlpWeights> dropped = views_.Find(kRouter, 1)->Expert(1, 0);
  const std::weak_ptr<const MlpWeights> kept = views_.Find(kRouter, 1)->Expert(1, 3);
  views_.Drop(kRouter, 1);
  EXPECT_EQ(views_.Find(kRouter, 1), nullptr);
  EXPECT_TRUE(dropped.expired());
  EXPECT_FALSE(kept.expired());
  EXPECT_EQ(views_.hosted().bytes, 6 * kExpertBytes);
  EXPECT_EQ(told_.back(), 6 * kExpertBytes);
  views_.Drop(kRouter, 1);  // again: nothing
  EXPECT_EQ(views_.hosted().bytes, 6 * kExpertBytes);
}

TEST_F(ExpertViewsTest, AnAbandonedGenerationLeavesNothing) {
  ASSERT_TRUE(views_.Prepare(kRouter, Second()).ok());
  (void)Wait(kRouter, 2);
  views_.Drop(kRouter, 2);
  EXPECT_EQ(views_.hosted().bytes, 4 * kExpertBytes);
  EXPECT_EQ(views_.hosted().generation, 1u);
  ASSERT_TRUE(views_.Prepare(kRouter, Second()).ok()) << "and may come again";
  EXPECT_EQ(Wait(kRouter, 2).loaded_experts, 3u);
}

TEST_F(ExpertViewsTest, RoutersHaveTheirOwnGenerations) {
  views_.Hold(7, 1, views_.FindSame({{0, {}}, {1, {3, 0, 5}}, {2, {1}}}));
  ASSERT_TRUE(views_.Prepare(kRouter, Second()).ok());
  (void)Wait(kRouter, 2);
  EXPECT_EQ(views_.Find(7, 2), nullptr);
  views_.Drop(kRouter, 1);
  ASSERT_NE(views_.Find(7, 1), nullptr) << "one router's migration does not disturb another's";
  EXPECT_EQ(views_.hosted().bytes, 7 * kExpertBytes);
  WorkerPreparation other = Second();
  other.generation = 9;
  ASSERT_TRUE(views_.Prepare(7, other).ok());
  EXPECT_EQ(Wait(7, 9).loaded_experts, 0u) << "the other router has had it loaded";
  views_.Drop(7, 1);
  EXPECT_EQ(views_.hosted().bytes, 6 * kExpertBytes);
}

TEST_F(ExpertViewsTest, OneMigrationAtATimeAndADropEndsIt) {
  hold_loads_ = true;
  views_.Hold(7, 1, views_.FindSame({{0, {}}, {1, {3, 0, 5}}, {2, {1}}}));
  ASSERT_TRUE(views_.Prepare(kRouter, Second()).ok());
  WorkerPreparation third = Second();
  third.generation = 3;
  EXPECT_THAT(Refusal(third, StatusCode::kFailedPrecondition), HasSubstr("another migration is under way"));
  EXPECT_EQ(views_.Prepare(7, Second()).code(), StatusCode::kFailedPrecondition) << "of another router neither";
  EXPECT_EQ(views_.StatusOf(kRouter, {.generation = 2})->state, PreparationState::kLoading);
  views_.Drop(kRouter, 2);
  EXPECT_FALSE(views_.StatusOf(kRouter, {.generation = 2}).ok());
  hold_loads_ = false;
  may_load_.release(8);
  ASSERT_TRUE(views_.Prepare(kRouter, third).ok()) << "though the expert that was being loaded may still be";
  EXPECT_EQ(Wait(kRouter, 3).state, PreparationState::kReady);
}

TEST_F(ExpertViewsTest, AFailureToLoadIsTold) {
  load_failure_ = NotFound("tensor x is gone");
  ASSERT_TRUE(views_.Prepare(kRouter, Second()).ok());
  const PreparationStatus status = Wait(kRouter, 2);
  EXPECT_EQ(status.state, PreparationState::kFailed);
  EXPECT_EQ(status.failure.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.failure.message(), AllOf(HasSubstr("layer 0, expert 2"), HasSubstr("tensor x is gone")));
  EXPECT_EQ(views_.Find(kRouter, 2), nullptr);
  EXPECT_EQ(views_.hosted().bytes, 4 * kExpertBytes);
}

TEST_F(ExpertViewsTest, RefusesByNameWhatCannotBe) {
  const auto with = [](auto change) {
    WorkerPreparation wanted = Second();
    change(wanted);
    return wanted;
  };
  EXPECT_THAT(Refusal(with([](auto& w) { w.from = 5; })), HasSubstr("generation 5 is unknown"));
  EXPECT_THAT(Refusal(with([](auto& w) { w.generation = 1; })), HasSubstr("generation 1 does not come after 1"));
  EXPECT_THAT(Refusal(with([](auto& w) { w.layers[1].layer = 3; })), HasSubstr("layer 3 has no experts"));
  EXPECT_THAT(Refusal(with([](auto& w) { w.layers[1].slots = {6}; })), HasSubstr("layer 1: expert 6 is not in 0 … 5"));
  EXPECT_THAT(Refusal(with([](auto& w) { w.layers[1].slots = {-1}; })), HasSubstr("expert -1"));
  EXPECT_THAT(Refusal(with([](auto& w) { w.layers[0].slots = {2, 2}; })), HasSubstr("expert 2 is there twice"));
  EXPECT_THAT(Refusal(with([](auto& w) { w.checks[0].layer = -7; })), HasSubstr("layer -7"));
  EXPECT_THAT(Refusal(with([](auto& w) { w.checks[0].experts = {77}; })), HasSubstr("expert 77"));
  EXPECT_THAT(Refusal(with([](auto& w) { w.checks[2].layer = 2, w.checks[2].experts = {3}; })),
              HasSubstr("layer 2: expert 3 is to be checked and not here"));
  free_memory_ = 3 * 4 * kExpertParameters - 1;
  EXPECT_THAT(Refusal(Second(), StatusCode::kResourceExhausted),
              AllOf(HasSubstr(Cat(3 * 4 * kExpertParameters)), HasSubstr(Cat(free_memory_))));
  EXPECT_EQ(loads_, 0);
  free_memory_ = 3 * 4 * kExpertParameters;
  EXPECT_TRUE(views_.Prepare(kRouter, Second()).ok());
}

TEST_F(ExpertViewsTest, WhatAGoneRouterHeldStaysForAWhileButNotWhatItOnlyPrepared) {
  const auto nobody = [](int) { return false; };
  const TimePoint now{1h};
  ASSERT_TRUE(views_.Prepare(kRouter, Second()).ok());
  (void)Wait(kRouter, 2);
  views_.DropDetached(nobody, now, 1min);
  EXPECT_EQ(views_.Find(kRouter, 2), nullptr);
  EXPECT_NE(views_.Find(kRouter, 1), nullptr);
  ASSERT_TRUE(views_.Prepare(kRouter, Second()).ok());
  (void)Wait(kRouter, 2);
  EXPECT_NE(views_.Use(kRouter, 2), nullptr);
  views_.DropDetached(nobody, now, 1min);
  EXPECT_NE(views_.Find(kRouter, 2), nullptr) << "it is in force";
  views_.DropDetached(nobody, now + 2min, 1min);
  EXPECT_EQ(views_.hosted().bytes, 7 * kExpertBytes) << "while nobody else is there, all stays";
  views_.Hold(7, 1, views_.FindSame({{0, {}}, {1, {3, 0, 5}}, {2, {1}}}));
  const auto other = [](int router) { return router == 7; };
  views_.DropDetached(other, now + 59s, 1min);
  EXPECT_NE(views_.Find(kRouter, 2), nullptr);
  views_.DropDetached(other, now + 60s, 1min);
  EXPECT_EQ(views_.Find(kRouter, 2), nullptr);
  EXPECT_EQ(views_.hosted().bytes, 4 * kExpertBytes);
}

TEST_F(ExpertViewsTest, ANumberThatAnotherRouterTakesMeansNothingOfTheFirst) {
  ASSERT_TRUE(views_.Prepare(kRouter, Second()).ok());
  (void)Wait(kRouter, 2);
  views_.Leave(kRouter);
  EXPECT_EQ(views_.Find(kRouter, 1), nullptr);
  EXPECT_FALSE(views_.StatusOf(kRouter, {.generation = 2}).ok());
  EXPECT_EQ(views_.hosted().bytes, 4 * kExpertBytes) << "kept for its return";
  const ExpertViews::Shard kept = views_.FindSame({{0, {}}, {1, {3, 0, 5}}, {2, {1}}});
  ASSERT_NE(kept, nullptr);
  views_.Hold(5, 1, kept);
  EXPECT_EQ(views_.holdings().size(), 1u);
}

TEST_F(ExpertViewsTest, ManyChecksumsComeInPieces) {
  WorkerPreparation wanted = Second();
  wanted.checks.assign(1, {.layer = 1, .experts = {}});
  for (std::size_t i = 0; i < kMostChecksums + 5; ++i) wanted.checks[0].experts.push_back(i % 2 == 0 ? 3 : 4);
  ASSERT_TRUE(views_.Prepare(kRouter, wanted).ok());
  EXPECT_EQ(Wait(kRouter, 2).checksums.size(), kMostChecksums);
  const Result<PreparationStatus> rest = views_.StatusOf(kRouter, {.generation = 2, .first_checksum = kMostChecksums});
  EXPECT_THAT(rest->checksums, ElementsAre(SumOf(1, 3), SumOf(1, 4), SumOf(1, 3), SumOf(1, 4), SumOf(1, 3)));
  EXPECT_TRUE(views_.StatusOf(kRouter, {.generation = 2, .first_checksum = ~std::uint64_t{0}})->checksums.empty());
}

TEST(ShardLoadingPause, LeavesNoMoreThanTheLimit) {
  EXPECT_EQ(PauseAfter(1'000'000, 10ms, 0), 0ns) << "no limit";
  EXPECT_EQ(PauseAfter(1'000'000, 10ms, 10'000'000), 90ms);
  EXPECT_EQ(PauseAfter(1'000'000, 100ms, 10'000'000), 0ns);
  EXPECT_EQ(PauseAfter(1'000'000, 3h, 10'000'000), 0ns);
  EXPECT_EQ(PauseAfter(0, 1ms, 1), 0ns);
  EXPECT_EQ(PauseAfter(~std::uint64_t{0}, 0ns, 1), 24h) << "and does not overflow";
}

TEST_F(ExpertViewsTest, ALimitHoldsTheNextExpertBack) {
  WorkerPreparation wanted = Second();
  wanted.bytes_per_s = 1;  // a day an expert
  ASSERT_TRUE(views_.Prepare(kRouter, wanted).ok());
  while (views_.StatusOf(kRouter, {.generation = 2})->loaded_experts == 0) std::this_thread::sleep_for(1ms);
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(loads_, 1);
  views_.Drop(kRouter, 2);  // and this ends it at once
}

}  // namespace
}  // namespace moe
