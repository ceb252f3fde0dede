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

grpc::Status SetPlacement(ServiceHarness& harness, const v1::Placement& placement,
                          std::uint64_t* generation = nullptr) {
  grpc::ClientContext context;
  v1::SetPlacementRequest request;
  *request.mutable_placement() = placement;
  v1::SetPlacementResponse response;
  const grpc::Status status = harness.cluster().SetPlacement(&context, request, &response);
  if (generation != nullptr) *generation = response.generation();
  return status;
}

v1::Placement GetPlacement(ServiceHarness& harness) {
  grpc::ClientContext context;
  v1::Placement placement;
  EXPECT_TRUE(harness.cluster().GetPlacement(&context, {}, &placement).ok());
  return placement;
}

TEST(ClusterCalls, SetPlacementMovesExpertsAndTheStateFollows) {
  ServiceHarness harness({.engine = {.workers = 3}});
  EXPECT_FALSE(GetCluster(harness).has_migration());
  const GenerateOutcome before = Generate(harness.inference(), GenerateBatch({{1, 2, 3}, {4}}, 5));
  v1::Placement next = GetPlacement(harness);  // two experts a worker
  next.set_generation(77);                     // not looked at
  for (v1::PlacementLayer& layer : *next.mutable_layers()) {
    layer.mutable_workers(0)->add_experts(5);
    layer.mutable_workers(2)->mutable_experts()->RemoveLast();
  }
  std::uint64_t generation = 0;
  ASSERT_TRUE(SetPlacement(harness, next, &generation).ok());
  EXPECT_EQ(generation, 2u);
  ASSERT_TRUE(harness.Eventually([&] { return harness.engine().router().migration().finished == 1; }));
  const v1::ClusterState state = GetCluster(harness);
  EXPECT_EQ(state.placement_generation(), 2u);
  EXPECT_EQ(state.migration().phase(), v1::MIGRATION_PHASE_IDLE);
  EXPECT_EQ(state.migration().generation(), 2u);
  EXPECT_EQ(state.migration().moved_experts(), 3u) << "one a layer";
  EXPECT_EQ(state.migration().finished(), 1u);
  EXPECT_EQ(state.migration().failed(), 0u);
  EXPECT_EQ(state.migration().last_failure(), "");
  EXPECT_GT(state.migration().loaded_bytes(), 0u);
  EXPECT_THAT(state.ranks(1).hosted(0).experts(), ElementsAre(0, 1, 5));
  EXPECT_THAT(state.ranks(3).hosted(0).experts(), ElementsAre(4));
  EXPECT_EQ(state.ranks(1).expert_parameters(), 3u * 3 * 3 * 56 * 44);
  EXPECT_EQ(state.ranks(3).expert_parameters(), 1u * 3 * 3 * 56 * 44);
  EXPECT_EQ(state.ranks(1).weight_bytes(), 3 * state.ranks(3).weight_bytes());
  EXPECT_EQ(GetPlacement(harness).generation(), 2u);
  EXPECT_THAT(GetPlacement(harness).layers(2).workers(0).experts(), ElementsAre(0, 1, 5));
  const GenerateOutcome after = Generate(harness.inference(), GenerateBatch({{1, 2, 3}, {4}}, 5));
  for (int i = 0; i < 2; ++i)
    EXPECT_EQ(after.sequences[static_cast<std::size_t>(i)].tokens,
              before.sequences[static_cast<std::size_t>(i)].tokens);
}

TEST(ClusterCalls, GetClusterShowsWhatCameOfAMove) {
  ServiceHarness harness({.engine = {.workers = 2, .routing = "zipf:1.2", .cost_steps = 50}});
  const auto generate = [&] {
    return Generate(harness.inference(), GenerateBatch({{1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}}, 60)).status.ok();
  };
  ASSERT_TRUE(generate());
  grpc::ClientContext context;
  v1::RebalanceResponse offered;
  ASSERT_TRUE(harness.cluster().Rebalance(&context, {}, &offered).ok());
  EXPECT_FALSE(offered.verdict().slowdown_measured());
  EXPECT_EQ(offered.verdict().migration_slowdown(), 0.05);
  ASSERT_TRUE(SetPlacement(harness, offered.placement()).ok());
  ASSERT_TRUE(harness.Eventually([&] { return harness.engine().router().migration().finished == 1; }));
  EXPECT_FALSE(GetCluster(harness).has_last_move()) << "there are no steps yet";
  ASSERT_TRUE(generate());
  const v1::MoveOutcome move = GetCluster(harness).last_move();
  EXPECT_EQ(move.placement_generation(), 2u);
  EXPECT_GE(move.steps(), 32);
  EXPECT_DOUBLE_EQ(move.rows(), 8);
  EXPECT_DOUBLE_EQ(move.rows_before(), 8);
  EXPECT_TRUE(move.fair());
  EXPECT_GT(move.step_seconds(), 0);
  double gain = 0;
  for (const v1::PlacementCandidate& candidate : offered.verdict().candidates())
    if (candidate.algorithm() == offered.verdict().best()) gain = candidate.gain();
  EXPECT_NEAR(move.expected_step_seconds(), move.step_seconds_before() * (1 - gain), 1e-12);
}

TEST(ClusterCalls, SetPlacementRefusesByNameWhatCannotBe) {
  ServiceHarness harness({.engine = {.workers = 3}});
  const v1::Placement now = GetPlacement(harness);
  const auto refusal = [&](auto change) {
    v1::Placement next = now;
    change(next);
    const grpc::Status status = SetPlacement(harness, next);
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
    return status.error_message();
  };
  EXPECT_THAT(refusal([](auto& p) { p.Clear(); }), testing::HasSubstr("num_experts 0"));
  EXPECT_THAT(refusal([](auto& p) { p.set_num_experts(0xffffffff); }), testing::HasSubstr("num_experts 2147483647"));
  EXPECT_THAT(refusal([](auto& p) { p.set_workers(2); }), testing::HasSubstr("workers 2"));
  EXPECT_THAT(refusal([](auto& p) { p.mutable_layers(1)->set_layer(9); }), testing::HasSubstr("layer 9"));
  EXPECT_THAT(refusal([](auto& p) { p.mutable_layers(1)->mutable_workers(0)->set_experts(0, 6); }),
              testing::HasSubstr("expert 6 is not in 0"));
  EXPECT_THAT(refusal([](auto& p) { p.mutable_layers(1)->mutable_workers(0)->clear_experts(); }),
              testing::HasSubstr("expert 0 has no slot"));
  EXPECT_EQ(GetPlacement(harness).generation(), 1u);
}

TEST(ClusterCalls, SetPlacementIsRefusedWhileAnotherMigrationRuns) {
  ServiceOptions options{.engine = {.workers = 3}};
  options.engine.migration.bytes_per_s = 1;  // for days
  ServiceHarness harness(options);
  v1::Placement next = GetPlacement(harness);
  for (v1::PlacementLayer& layer : *next.mutable_layers()) layer.mutable_workers(0)->add_experts(5);
  ASSERT_TRUE(SetPlacement(harness, next).ok());
  ASSERT_TRUE(
      harness.Eventually([&] { return GetCluster(harness).migration().phase() == v1::MIGRATION_PHASE_LOADING; }));
  const grpc::Status second = SetPlacement(harness, next);
  EXPECT_EQ(second.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(second.error_message(), testing::HasSubstr("generation 2 is under way"));
  EXPECT_EQ(GetCluster(harness).placement_generation(), 1u);
}

TEST(ClusterCalls, AMigrationThatFailsSaysWhyAndChangesNothing) {
  ServiceOptions options{.engine = {.workers = 3}};
  options.engine.on_load = [](int, int, int expert, Result<MlpWeights> loaded) -> Result<MlpWeights> {
    if (expert == 5) return NotFound("a file is gone");
    return loaded;
  };
  ServiceHarness harness(options);
  v1::Placement next = GetPlacement(harness);
  for (v1::PlacementLayer& layer : *next.mutable_layers()) layer.mutable_workers(0)->add_experts(5);
  ASSERT_TRUE(SetPlacement(harness, next).ok());
  ASSERT_TRUE(harness.Eventually([&] { return harness.engine().router().migration().failed == 1; }));
  const v1::ClusterState state = GetCluster(harness);
  EXPECT_EQ(state.placement_generation(), 1u);
  EXPECT_THAT(state.ranks(1).hosted(0).experts(), ElementsAre(0, 1));
  EXPECT_EQ(state.migration().failed(), 1u);
  EXPECT_EQ(state.migration().last_failure(), "rank 1: layer 0, expert 5: a file is gone");
  std::uint64_t generation = 0;
  ASSERT_TRUE(SetPlacement(harness, GetPlacement(harness), &generation).ok()) << "the next one may begin";
  EXPECT_EQ(generation, 3u);
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
