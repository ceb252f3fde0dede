#include "bench/engine/replay_cost.h"

#include <gtest/gtest.h>

#include <random>

namespace moe {
namespace {

TEST(FitRelative, FindsWhatMadeTheValues) {
  std::mt19937_64 random(1);
  std::vector<double> rows, y;
  for (int i = 0; i < 50; ++i) {
    const double a = static_cast<double>(random() % 1000), b = static_cast<double>(random() % 1'000'000);
    rows.insert(rows.end(), {1, a, b});
    y.push_back(2e-6 + 3e-7 * a + 4e-10 * b);
  }
  const std::vector<double> x = FitRelative(rows, y, 3);
  EXPECT_NEAR(x[0], 2e-6, 1e-10);
  EXPECT_NEAR(x[1], 3e-7, 1e-11);
  EXPECT_NEAR(x[2], 4e-10, 1e-14);
}

TEST(FitRelative, IsNotTooLowForValuesThatScatter) {
  std::mt19937_64 random(2);
  std::vector<double> rows, y;
  double sum = 0;
  for (int i = 0; i < 2000; ++i) {
    rows.push_back(1);
    y.push_back(random() % 2 == 0 ? 0.5 : 1.5);
    sum += y.back();
  }
  EXPECT_NEAR(FitRelative(rows, y, 1)[0], sum / 2000, 1e-9);
}

TEST(FitRelative, LeavesOutWhatWouldTakeTimeAway) {
  // y = 10 − x: the best that is not negative anywhere is a constant.
  const std::vector<double> rows = {1, 1, 1, 2, 1, 3, 1, 4};
  const std::vector<double> y = {9, 8, 7, 6};
  const std::vector<double> x = FitRelative(rows, y, 2);
  EXPECT_EQ(x[1], 0);
  EXPECT_GT(x[0], 6);
  EXPECT_LT(x[0], 9);
}

TEST(FitRelative, EqualColumnsAndNothingMeasuredAreNoTrouble) {
  const std::vector<double> rows = {1, 1, 2, 2, 3, 3};
  const std::vector<double> y = {2, 4, 6};
  const std::vector<double> x = FitRelative(rows, y, 2);
  EXPECT_NEAR(x[0] + x[1], 2, 1e-9);
  EXPECT_EQ(FitRelative({}, {}, 2), (std::vector<double>{0, 0}));
}

ExchangeWork RandomWork(std::mt19937_64& random) {
  ExchangeWork work{.workers = {}, .request_bytes = random() % 100'000, .reply_bytes = random() % 200'000};
  for (int w = 0; w < 3; ++w) {
    const std::uint64_t pairs = random() % 4 == 0 ? 0 : 1 + random() % 60;
    work.workers.push_back({.pairs = pairs, .expert_bytes = pairs == 0 ? 0 : (1 + random() % 8) * 100'000});
  }
  return work;
}

TEST(CostFit, PredictsExchangesThatItHasNotSeen) {
  const CostModel truth{.worker = {5e-6, 1e-6, 1e-10},
                        .dispatch = {2e-6, 1e-10},
                        .combine = {1e-6, 2e-10},
                        .wait = {1e-5, 1e-10, 0.7, 0.2}};
  std::mt19937_64 random(3);
  CostFit fit;
  EXPECT_EQ(fit.Fit().status().code(), StatusCode::kInvalidArgument);
  for (int i = 0; i < 200; ++i) {
    const ExchangeWork work = RandomWork(random);
    ExchangeSeconds seconds{.dispatch = truth.dispatch[0] + truth.dispatch[1] * static_cast<double>(work.request_bytes),
                            .wait = 0,
                            .combine = truth.combine[0] + truth.combine[1] * static_cast<double>(work.reply_bytes)};
    for (const ExchangeWork::OfWorker& worker : work.workers) seconds.busy.push_back(truth.Worker(worker));
    seconds.wait = truth.Seconds(work) - seconds.dispatch - seconds.combine;
    fit.Add(work, seconds);
  }
  const Result<CostModel> model = fit.Fit();
  ASSERT_TRUE(model.ok());
  for (int i = 0; i < 50; ++i) {
    const ExchangeWork work = RandomWork(random);
    EXPECT_NEAR(model->Seconds(work) / truth.Seconds(work), 1, 1e-6);
  }
  EXPECT_EQ(model->Worker({}), 0) << "a worker that is not asked";
}

TEST(WorkCounter, CountsPairsDistinctExpertsAndBytes) {
  Placement placement{.num_experts = 4, .workers = 2};
  placement.layers.push_back({0, {{0, 1}, {2, 3}}});
  const ReplicaTable replicas(placement);
  DispatchPlan plan({.max_tokens = 3, .experts_per_token = 2, .num_experts = 4, .workers = 2});
  const std::vector<std::int32_t> ids = {0, 1, 0, 2, 1, 0};
  const std::vector<float> weights = {1, 1, 1, 1, 0, 1};
  WorkCounter counter(8, ExchangeType::kBf16);
  ExchangeWork work;
  for (int again = 0; again < 2; ++again) {
    plan.Build(replicas, {.ids = {ids.data(), 3, 2}, .weights = {weights.data(), 3, 2}});
    counter.Count(plan, 2, 1000, work);
    ASSERT_EQ(work.workers.size(), 2u);
    EXPECT_EQ(work.workers[0].pairs, 4u);
    EXPECT_EQ(work.workers[0].expert_bytes, 2000u);
    EXPECT_EQ(work.workers[1].pairs, 1u);
    EXPECT_EQ(work.workers[1].expert_bytes, 1000u);
    const DispatchShape first{.rows = 3, .pairs = 4, .hidden = 8, .type = ExchangeType::kBf16};
    const DispatchShape second{.rows = 1, .pairs = 1, .hidden = 8, .type = ExchangeType::kBf16};
    EXPECT_EQ(work.request_bytes, DispatchBytes(first) + DispatchBytes(second));
    EXPECT_EQ(work.reply_bytes, DispatchReplyBytes(first) + DispatchReplyBytes(second));
  }
}

}  // namespace
}  // namespace moe
