#include "router/cluster_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "tests/router/service_harness.h"

namespace moe {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;

v1::ClusterState GetCluster(ServiceHarness& harness) {
  grpc::ClientContext context;
  v1::ClusterState state;
  const grpc::Status status = harness.cluster().GetCluster(&context, {}, &state);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return state;
}

TEST(ClusterCalls, GetClusterShowsRanksAndWhatTheyHost) {
  ServiceHarness harness({.engine = {.workers = 4}});  // 6 experts on 4 workers
  const v1::ClusterState state = GetCluster(harness);
  EXPECT_EQ(state.transport(), "inprocess");
  EXPECT_EQ(state.backend(), "cpu");
  EXPECT_EQ(state.parameters().total(), 186'312u);
  EXPECT_EQ(state.placement_generation(), 1u);
  EXPECT_FALSE(state.draining());
  EXPECT_EQ(state.steps(), 0u);
  ASSERT_EQ(state.ranks_size(), 5);
  for (int rank = 0; rank < 5; ++rank) EXPECT_EQ(state.ranks(rank).rank(), static_cast<std::uint32_t>(rank));
  EXPECT_EQ(state.ranks(0).role(), "router");
  EXPECT_EQ(state.ranks(0).host(), "router-host");
  EXPECT_EQ(state.ranks(0).dense_parameters(), 5u);
  EXPECT_EQ(state.ranks(0).weight_bytes(), 20u);
  EXPECT_EQ(state.ranks(0).expert_parameters(), 0u);
  EXPECT_EQ(state.ranks(0).hosted_size(), 0);
  EXPECT_EQ(state.ranks(2).role(), "worker");
  EXPECT_EQ(state.ranks(2).host(), "worker-host-1");
  EXPECT_EQ(state.ranks(2).pid(), 101u);
  EXPECT_TRUE(state.ranks(2).up());
  EXPECT_EQ(state.ranks(2).expert_parameters(), 1001u);
  EXPECT_EQ(state.ranks(2).weight_bytes(), 4001u);
  ASSERT_EQ(state.ranks(2).hosted_size(), 3) << "one a sparse layer";
  EXPECT_EQ(state.ranks(2).hosted(1).layer(), 1u);
  EXPECT_THAT(state.ranks(1).hosted(0).experts(), ElementsAre(0, 1));
  EXPECT_THAT(state.ranks(2).hosted(0).experts(), ElementsAre(2, 3));
  EXPECT_THAT(state.ranks(4).hosted(0).experts(), ElementsAre(5));
}

TEST(ClusterCalls, EmbeddedOneRankIsRouterAndWorker) {
  ServiceHarness harness({.engine = {.workers = 1, .embedded = true}});
  ASSERT_TRUE(Generate(harness.inference(), GenerateBatch({{1, 2}}, 3)).status.ok());
  const v1::ClusterState state = GetCluster(harness);
  ASSERT_EQ(state.ranks_size(), 1);
  const v1::RankState& rank = state.ranks(0);
  EXPECT_EQ(rank.rank(), 0u);
  EXPECT_EQ(rank.role(), "both");
  EXPECT_EQ(rank.dense_parameters(), 5u);
  EXPECT_EQ(rank.expert_parameters(), 1000u);
  EXPECT_EQ(rank.weight_bytes(), 4020u);
  ASSERT_EQ(rank.hosted_size(), 3);
  EXPECT_EQ(rank.hosted(0).experts_size(), 6);
  EXPECT_EQ(rank.rows(), 4u * 3 * 2);
}

TEST(ClusterCalls, GetClusterShowsTheLoadSoFar) {
  ServiceHarness harness({.engine = {.workers = 2}});
  ASSERT_TRUE(Generate(harness.inference(), GenerateBatch({{1, 2, 3}}, 4)).status.ok());  // 6 positions, 4 steps
  const v1::ClusterState state = GetCluster(harness);
  EXPECT_EQ(state.steps(), 4u);
  EXPECT_EQ(state.window_steps(), 4u);
  ASSERT_EQ(state.layers_size(), 3);
  for (int layer = 0; layer < 3; ++layer) {
    const v1::LayerLoad& load = state.layers(layer);
    EXPECT_EQ(load.layer(), static_cast<std::uint32_t>(layer));
    ASSERT_EQ(load.expert_tokens_size(), 6);
    EXPECT_EQ(std::accumulate(load.expert_tokens().begin(), load.expert_tokens().end(), std::uint64_t{0}), 12u);
    const auto dead = std::count(load.expert_tokens().begin(), load.expert_tokens().end(), 0u);
    EXPECT_EQ(load.dead_experts(), static_cast<std::uint32_t>(dead));
    const auto most = *std::max_element(load.expert_tokens().begin(), load.expert_tokens().end());
    EXPECT_DOUBLE_EQ(load.balancedness(), 2.0 / static_cast<double>(most));
  }
  EXPECT_EQ(state.ranks(0).rows(), 0u);
  EXPECT_EQ(state.ranks(1).rows() + state.ranks(2).rows(), 6u * 3 * 2);
  EXPECT_GT(state.ranks(1).busy_seconds(), 0);
  const EngineTotals& totals = harness.engine().engine().totals();
  EXPECT_DOUBLE_EQ(state.mean_touched_parameters(), static_cast<double>(harness.engine().parameters().dense()) +
                                                        static_cast<double>(totals.distinct_experts * 3 * 44 * 56) / 4);
}

TEST(ClusterCalls, GetPlacementIsThePlacementInForce) {
  ServiceHarness harness({.engine = {.workers = 3, .placement = PlacementRule::kRoundRobin, .redundant_experts = 1}});
  grpc::ClientContext context;
  v1::Placement placement;
  ASSERT_TRUE(harness.cluster().GetPlacement(&context, {}, &placement).ok());
  EXPECT_EQ(placement.generation(), 1u);
  EXPECT_EQ(placement.num_experts(), 6u);
  EXPECT_EQ(placement.workers(), 3u);
  ASSERT_EQ(placement.layers_size(), 3);
  for (int layer = 0; layer < 3; ++layer) {
    EXPECT_EQ(placement.layers(layer).layer(), static_cast<std::uint32_t>(layer));
    ASSERT_EQ(placement.layers(layer).workers_size(), 3);
    EXPECT_THAT(placement.layers(layer).workers(0).experts(), ElementsAre(0, 3));
    EXPECT_THAT(placement.layers(layer).workers(1).experts(), ElementsAre(1, 4, 0)) << "expert 0's replica";
    EXPECT_THAT(placement.layers(layer).workers(2).experts(), ElementsAre(2, 5));
  }
}

TEST(ClusterCalls, GetClusterShowsWhatAStepCosts) {
  ServiceHarness harness({.engine = {.workers = 2}});
  EXPECT_EQ(GetCluster(harness).cost().steps(), 0);
  ASSERT_TRUE(Generate(harness.inference(), GenerateBatch({{1, 2, 3}, {4}}, 20)).status.ok());
  grpc::ClientContext context;
  v1::GetClusterRequest request;
  request.set_parts(true);
  v1::ClusterState state;
  ASSERT_TRUE(harness.cluster().GetCluster(&context, request, &state).ok());
  EXPECT_NEAR(state.cost().steps(), 20, 1);
  EXPECT_GT(state.cost().step_seconds(), 0);
  EXPECT_GT(state.cost().row_seconds(), 0);
  EXPECT_LE(state.cost().exposed_seconds(), state.cost().step_seconds());
  EXPECT_EQ(state.expert_bytes(), 7392u);
  ASSERT_GE(state.layers(2).parts_size(), 2);
  EXPECT_EQ(state.layers(2).parts(0).tokens_size(), 6);
  EXPECT_EQ(GetCluster(harness).layers(2).parts_size(), 0) << "only when asked for";
}

TEST(ClusterCalls, RebalanceGivesItsVerdict) {
  ServiceHarness harness({.engine = {.workers = 2, .routing = "zipf:1.2"}});
  ASSERT_TRUE(Generate(harness.inference(), GenerateBatch({{1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}}, 60)).status.ok());
  EXPECT_FALSE(GetCluster(harness).has_verdict()) << "nobody asked";
  grpc::ClientContext context;
  v1::RebalanceResponse response;
  ASSERT_TRUE(harness.cluster().Rebalance(&context, {}, &response).ok());
  const v1::Verdict& verdict = response.verdict();
  EXPECT_EQ(verdict.placement_generation(), 1u);
  EXPECT_GT(verdict.window_steps(), 32u);
  EXPECT_NE(verdict.sentence(), "");
  EXPECT_LT(verdict.balancedness(), 1);
  EXPECT_TRUE(verdict.has_step_seconds());
  ASSERT_EQ(verdict.candidates_size(), 4);
  EXPECT_EQ(verdict.candidates(0).algorithm(), "linear");
  EXPECT_EQ(verdict.candidates(0).experts_moved(), 0u);
  EXPECT_EQ(verdict.candidates(3).bytes_moved(), verdict.candidates(3).experts_moved() * 7392);
  EXPECT_EQ(response.placement().generation(), 2u);
  EXPECT_EQ(response.placement().layers_size(), 3);
  EXPECT_EQ(GetCluster(harness).verdict().sentence(), verdict.sentence());
}

TEST(ClusterCalls, DrainBeginsOneAndReturnsAtOnce) {
  ServiceHarness harness({.engine = {.kv_pages = 800}});
  grpc::ClientContext stream_context;
  const auto reader = harness.inference().Generate(&stream_context, GenerateBatch({{1}}, 25'000));
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  grpc::ClientContext context;
  v1::DrainResponse response;
  ASSERT_TRUE(harness.cluster().Drain(&context, {}, &response).ok());
  EXPECT_TRUE(harness.Eventually([&] { return harness.engine().router().draining(); }));
  EXPECT_TRUE(GetCluster(harness).draining()) << "what is accepted goes on meanwhile";
  stream_context.TryCancel();
}

TEST(ClusterCalls, AfterTheRoutersEndTheStateIsUnavailable) {
  ServiceHarness harness;
  harness.engine().router().StopNow();
  ASSERT_TRUE(harness.Eventually([&] { return !harness.engine().router().OnEngineThread([] {}); }));
  grpc::ClientContext context;
  v1::ClusterState state;
  EXPECT_EQ(harness.cluster().GetCluster(&context, {}, &state).error_code(), StatusCode::UNAVAILABLE);
}

TEST(ClusterCalls, WhatThisVersionLacksIsUnimplemented) {
  ServiceHarness harness;
  const auto code = [](auto call) {
    grpc::ClientContext context;
    return call(context).error_code();
  };
  v1::Cluster::Stub& stub = harness.cluster();
  v1::StartTraceResponse start;
  v1::StopTraceResponse stop;
  EXPECT_EQ(code([&](auto& context) { return stub.StartTrace(&context, {}, &start); }), StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(code([&](auto& context) { return stub.StopTrace(&context, {}, &stop); }), StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace moe
