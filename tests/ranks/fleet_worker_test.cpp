// A worker that routers tell what to host: whom it serves, whom it refuses, and that it answers while it loads.
#include "ranks/fleet_worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "ranks/router_engine.h"
#include "router/attach.h"
#include "router/worker_fleet.h"
#include "tests/ranks/test_workers.h"
#include "tests/router/engine_harness.h"

namespace moe {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class FleetWorkerTest : public testing::Test {
 protected:
  static RankOptions Options(const char* model = "tests/goldens/mixtral") {
    return {.model = SourcePath(model), .threads = 1, .max_step_tokens = 64};
  }
  /// What a router over two workers wants of the first.
  static WorkerAssignment Wanted(const std::string& placement = "linear") {
    RankOptions options = Options();
    options.placement = placement;
    const Result<RankSetup> setup = PrepareRank(options, {.topology = {.workers = 2, .embedded = false}});
    MOE_CHECK(setup.ok(), setup.status().message());
    return AssignWorkers(*setup).front();
  }

  std::unique_ptr<WorkerLinks> Links() {
    return workers_.Links({.max_request_bytes = 1 << 20, .max_reply_bytes = 1 << 20, .max_exchanges = 2});
  }
  Result<WorkerDescription> Attach(const WorkerAssignment& wanted) {
    const std::unique_ptr<WorkerLinks> links = Links();
    return AttachWorker(*links, wanted, kPatience);
  }
  /// A router that stays.
  struct Router {
    explicit Router(std::unique_ptr<WorkerLinks> way) : links(std::move(way)) {
      transport = *links->Connect({1, 0}, std::chrono::minutes(1));
      exchange = transport->MakeExchange();
    }
    /// The reply to what `write` writes.
    std::span<const std::byte> Ask(const std::function<std::size_t(std::span<std::byte>)>& write) const {
      const std::size_t bytes[] = {write(exchange->request(WorkerId(0))), 0};
      Status status = exchange->Start(bytes);
      if (status.ok()) status = exchange->Wait(After(std::chrono::minutes(2)));
      MOE_CHECK(status.ok(), status.message());
      return exchange->reply(WorkerId(0));
    }
    Result<WorkerDescription> Assign(const WorkerAssignment& wanted) const {
      return ParseDescription(Ask([&](std::span<std::byte> buffer) { return *WriteAssignment(buffer, wanted); }));
    }
    std::unique_ptr<WorkerLinks> links;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<Exchange> exchange;
  };

  static inline const AttachOptions kPatience{
      .answer_timeout = std::chrono::minutes(2), .load_timeout = std::chrono::minutes(2), .stopping = {}};
  TestWorkers workers_{2, Options()};
};

TEST_F(FleetWorkerTest, LoadsWhatTheFirstRouterWantsAndSaysSo) {
  EXPECT_EQ(workers_.worker(0).worker().description().generation, 0u);
  const Result<WorkerDescription> attached = Attach(Wanted());
  ASSERT_TRUE(attached.ok()) << attached.status().message();
  EXPECT_EQ(attached->protocol, kDispatchProtocol);
  EXPECT_EQ(attached->generation, 1u);
  EXPECT_EQ(attached->slots, 3u * 3u);  // three experts in each of three layers
  EXPECT_EQ(attached->parameters, 3u * 3u * 3u * 56u * 44u);
  EXPECT_GT(attached->weight_bytes, 0u);
  EXPECT_GT(attached->free_memory_bytes, 0u);
  EXPECT_EQ(workers_.worker(0).worker().assignment(), Wanted());
}

TEST_F(FleetWorkerTest, GivesASecondRouterTheSameAtOnce) {
  const Router first(Links());
  ASSERT_TRUE(first.Assign(Wanted()).ok());
  WorkerAssignment loaded = Wanted();
  loaded.load = false;
  const Router second(Links());
  EXPECT_TRUE(second.Assign(loaded).ok());
}

TEST_F(FleetWorkerTest, TwoRoutersThatComeWhileItLoadsBothGetIt) {
  const Router first(Links());
  const Router second(Links());
  for (const Router* router : {&first, &second}) {
    const std::size_t bytes[] = {*WriteAssignment(router->exchange->request(WorkerId(0)), Wanted()), 0};
    ASSERT_TRUE(router->exchange->Start(bytes).ok());
  }
  for (const Router* router : {&first, &second}) {
    ASSERT_TRUE(router->exchange->Wait(After(std::chrono::minutes(2))).ok());
    const Result<WorkerDescription> loaded = ParseDescription(router->exchange->reply(WorkerId(0)));
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    EXPECT_EQ(loaded->generation, 1u);
  }
}

TEST_F(FleetWorkerTest, RefusesAnotherShardWhileTheFirstIsWanted) {
  const WorkerAssignment other = Wanted("round_robin");
  {
    const Router first(Links());
    ASSERT_TRUE(first.Assign(Wanted()).ok());
    const Result<WorkerDescription> refused = Attach(other);
    EXPECT_EQ(refused.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(refused.status().message(),
                AllOf(HasSubstr("rank 1 (test): another router has made it worker 0 of 2, generation 1"),
                      HasSubstr("this router wants worker 0 of 2")));
    EXPECT_TRUE(first.Assign(Wanted()).ok());
  }
  EXPECT_TRUE(Attach(other).ok()) << "the first router has gone";
  EXPECT_EQ(workers_.worker(0).worker().assignment(), other);
}

TEST_F(FleetWorkerTest, ARouterMayChangeItsOwnMind) {
  const Router router(Links());
  ASSERT_TRUE(router.Assign(Wanted()).ok());
  EXPECT_TRUE(router.Assign(Wanted("round_robin")).ok());
}

TEST_F(FleetWorkerTest, LoadsNothingForARouterThatExpectsItToBeThere) {
  WorkerAssignment expected = Wanted();
  expected.load = false;
  const Router router(Links());
  EXPECT_EQ(router.Assign(expected).status().code(), StatusCode::kUnavailable);
  EXPECT_FALSE(workers_.worker(0).worker().assignment().has_value());
}

TEST_F(FleetWorkerTest, RefusesByNameWhatItCannotHost) {
  struct Case {
    std::function<void(WorkerAssignment&)> change;
    std::string says;
  };
  const std::vector<Case> cases = {
      {[](WorkerAssignment& a) { a.fingerprint = "another"; }, ", the router another"},
      {[](WorkerAssignment& a) { a.weight_type = "int8"; }, "its weight type is f32, the router's int8"},
      {[](WorkerAssignment& a) { a.max_pairs = 1'000; },
       "up to 128 rows of experts at a time, the router sends up to 1000"},
      {[](WorkerAssignment& a) { a.worker = 2; }, "it cannot be worker 2 of 2"},
      {[](WorkerAssignment& a) { a.generation = 0; }, "generation 0"},
      {[](WorkerAssignment& a) { a.layers.pop_back(); }, "layers are not the 3 sparse ones"},
      {[](WorkerAssignment& a) { a.layers[1].layer = 7; }, "layers are not the 3 sparse ones"},
      {[](WorkerAssignment& a) { a.layers[1].slots = {6}; }, "the assignment: layer 1: expert 6 is not in 0 … 5"},
      {[](WorkerAssignment& a) { a.layers[1].slots = {-1}; }, "expert -1 is not in"},
      {[](WorkerAssignment& a) {
         a.layers[2].slots = {1, 1};
       },
       "the assignment: layer 2: expert 1 is there twice"},
  };
  const Router router(Links());
  for (const Case& c : cases) {
    WorkerAssignment wanted = Wanted();
    c.change(wanted);
    const Status status = router.Assign(wanted).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.says;
    EXPECT_THAT(status.message(), HasSubstr(c.says));
  }
  EXPECT_TRUE(router.Assign(Wanted()).ok()) << "it is none the worse for them";
}

TEST_F(FleetWorkerTest, ComputesNothingWithoutAShardAndEndsForNoRouter) {
  const Router router(Links());
  const auto control = [&](MessageKind kind) {
    return ParseControlReply(router.Ask([&](std::span<std::byte> buffer) { return WriteControl(buffer, kind); }));
  };
  EXPECT_THAT(control(MessageKind::kShutdown).message(), HasSubstr("SIGTERM"));
  const DispatchShape shape{.layer = 0, .generation = 1, .hidden = 56};
  const auto dispatch = router.Ask([&](std::span<std::byte> buffer) { return DispatchWriter(buffer, shape).bytes(); });
  EXPECT_EQ(ParseControlReply(dispatch).code(), StatusCode::kUnavailable);
  EXPECT_TRUE(control(MessageKind::kDescribe).ok());
}

TEST_F(FleetWorkerTest, StopAnswersWhatHasArrivedAndReturns) {
  const Router router(Links());
  ASSERT_TRUE(router.Assign(Wanted()).ok());
  const std::size_t bytes[] = {WriteControl(router.exchange->request(WorkerId(0)), MessageKind::kDescribe), 0};
  ASSERT_TRUE(router.exchange->Start(bytes).ok());
  workers_.worker(0).Terminate();
  ASSERT_TRUE(router.exchange->Wait(After(std::chrono::minutes(2))).ok());
}

TEST_F(FleetWorkerTest, AnotherModelOrWeightTypeIsRefusedBeforeAnythingIsLoaded) {
  RankOptions int8 = Options();
  int8.weight_type = WeightType::kInt8;
  int8.weight_cache = "off";
  workers_.Start(0, int8);
  EXPECT_THAT(Attach(Wanted()).status().message(),
              HasSubstr("rank 1 (test): its weight type is int8, the router's f32"));
  workers_.Start(0, Options("tests/goldens/olmoe"));
  EXPECT_THAT(Attach(Wanted()).status().message(), HasSubstr("rank 1 (test): it serves the checkpoint "));
  EXPECT_FALSE(workers_.worker(0).worker().assignment().has_value());
}

TEST(CheckWorker, AnotherProtocolIsNamed) {
  const Status status = CheckWorker({.protocol = 9}, {});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "it speaks protocol version 9, the router 1");
}

TEST_F(FleetWorkerTest, AnAttachThatIsNotWantedAnyMoreIsGivenUp) {
  workers_.worker(0).board().BeSilent(true);
  AttachOptions options = kPatience;
  int asked = 0;
  options.stopping = [&] { return ++asked > 3; };
  const std::unique_ptr<WorkerLinks> links = Links();
  EXPECT_EQ(AttachWorker(*links, Wanted(), options).status().code(), StatusCode::kCancelled);
}

TEST_F(FleetWorkerTest, ASilentWorkerIsNotWaitedForLongerThanItsTime) {
  workers_.worker(0).board().BeSilent(true);
  AttachOptions options = kPatience;
  options.answer_timeout = std::chrono::milliseconds(50);
  const std::unique_ptr<WorkerLinks> links = Links();
  const Status status = AttachWorker(*links, Wanted(), options).status();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(), HasSubstr("rank 1 (test)"));
}

}  // namespace
}  // namespace moe
