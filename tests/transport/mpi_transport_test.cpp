// Run by mpirun. Rank 0 runs the tests; before each transport it tells the other ranks, which then serve it as scripted
// workers until its router ends. A dead peer is a silent one here: that of a process is an end-to-end test's matter.
#include "transport/mpi/mpi_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <climits>
#include <memory>
#include <sstream>
#include <string>
#include <utility>

#include "tests/contract/scripted_worker.h"
#include "tests/contract/transport_contract.h"
#include "transport/fault_injection.h"

namespace moe {
namespace {

using testing::AllOf;
using testing::HasSubstr;

MpiWorld* g_world = nullptr;  // gtest makes the fixtures

// What rank 0 has the workers do next, as text.
struct Assignment {
  std::string action;  // "serve", "refuse" (limits that no rank may accept), "gather", "quit"
  TransportLimits limits;
  int fault = -1;        // a FaultKind at worker 1, exchange 1
  int disagreement = 0;  // ranks other than 0 add this to max_request_bytes

  std::string Text() const {
    return Cat(action, " ", limits.max_request_bytes, " ", limits.max_reply_bytes, " ", limits.max_exchanges, " ",
               limits.payload_checksums, " ", fault, " ", disagreement);
  }
  static Assignment Parse(const std::string& text) {
    Assignment a;
    std::istringstream in(text);
    in >> a.action >> a.limits.max_request_bytes >> a.limits.max_reply_bytes >> a.limits.max_exchanges >>
        a.limits.payload_checksums >> a.fault >> a.disagreement;
    return a;
  }
};

FaultScript ScriptOf(const Assignment& assignment) {
  if (assignment.fault < 0) return {};
  return {{.kind = static_cast<FaultKind>(assignment.fault), .worker = WorkerId(1), .exchange = 1}};
}

void Tell(const Assignment& assignment) {
  const Result<std::string> told = g_world->Broadcast(assignment.Text());
  MOE_CHECK(told.ok(), told.status().message());
}

class MpiHarness final : public TransportHarness {
 public:
  explicit MpiHarness(const Assignment& assignment) : injector_(ScriptOf(assignment)) {
    Tell(assignment);
    Result<std::unique_ptr<Transport>> made =
        MakeMpiTransport(*g_world, {.limits = assignment.limits, .tap = &injector_});
    MOE_CHECK(made.ok(), made.status().message());
    transport_ = *std::move(made);
  }
  Transport& transport() override { return *transport_; }

 private:
  FaultInjector injector_;
  std::unique_ptr<Transport> transport_;
};

std::unique_ptr<TransportHarness> MakeHarness(const HarnessOptions& options) {
  if (options.num_workers != g_world->size() - 1) return nullptr;
  Assignment assignment{.action = "serve", .limits = options.limits};
  if (!options.faults.empty()) {
    const Fault& fault = options.faults.front();
    MOE_CHECK(options.faults.size() == 1 && fault.worker == WorkerId(1) && fault.exchange == 1, "no other is told");
    assignment.fault = static_cast<int>(fault.kind);
  }
  return std::make_unique<MpiHarness>(assignment);
}

MOE_INSTANTIATE_TRANSPORT_CONTRACT(Mpi, TransportContractParam{"ranks", MakeHarness});

constexpr TransportLimits kLimits{.max_request_bytes = 128, .max_reply_bytes = 128, .max_exchanges = 2};

TEST(Mpi, TheTransportDescribesItself) {
  MpiHarness harness({.action = "serve", .limits = kLimits});
  EXPECT_EQ(harness.transport().name(), "mpi");
  EXPECT_EQ(harness.transport().memory_space(), MemorySpace::kHost);
  EXPECT_EQ(harness.transport().num_workers(), g_world->size() - 1);
  EXPECT_EQ(harness.transport().rank(WorkerId(0)), Rank(1));
}

TEST(Mpi, RanksThatDisagreeOnLimitsAllRefuse) {
  Tell({.action = "refuse", .limits = kLimits, .disagreement = 8});
  const auto made = MakeMpiTransport(*g_world, {.limits = kLimits});
  EXPECT_EQ(made.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(made.status().message(), AllOf(HasSubstr("128"), HasSubstr("136"), HasSubstr("rank 0")));
}

TEST(Mpi, AFrameThatFitsNoMessageIsRefused) {
  const TransportLimits limits{.max_request_bytes = INT_MAX, .max_reply_bytes = 8, .max_exchanges = 1};
  Tell({.action = "refuse", .limits = limits});
  const auto made = MakeMpiTransport(*g_world, {.limits = limits});
  EXPECT_EQ(made.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(made.status().message(), HasSubstr("does not fit an MPI message"));
}

TEST(Mpi, StringsAreGatheredByRankAndBroadcast) {
  Tell({.action = "gather"});
  const Result<std::vector<std::string>> texts = g_world->GatherStrings("");
  ASSERT_TRUE(texts.ok()) << texts.status().message();
  ASSERT_EQ(texts->size(), static_cast<std::size_t>(g_world->size()));
  for (std::size_t r = 0; r < texts->size(); ++r)
    EXPECT_EQ((*texts)[r], std::string(r * 1000, static_cast<char>('a' + r)));
}

TEST(Mpi, TheWorldKnowsItsMachine) {
  EXPECT_TRUE(LaunchedByMpi());
  EXPECT_EQ(g_world->rank(), Rank(0));
  EXPECT_EQ(g_world->node_local_rank(), 0);
  EXPECT_EQ(g_world->node_local_size(), g_world->size()) << "this test runs on one machine";
  EXPECT_NE(g_world->bell(Rank(1)), nullptr);
}

// A worker rank: one assignment after the other. What does not go as it must ends the whole job.
int Serve(MpiWorld& world) {
  while (true) {
    const Result<std::string> text = world.Broadcast("");
    MOE_CHECK(text.ok(), text.status().message());
    const Assignment assignment = Assignment::Parse(*text);
    if (assignment.action == "quit") return 0;
    if (assignment.action == "gather") {
      const auto r = static_cast<std::size_t>(world.rank().value());
      MOE_CHECK(world.GatherStrings(std::string(r * 1000, static_cast<char>('a' + r))).ok());
      continue;
    }
    FaultInjector injector(ScriptOf(assignment));
    TransportLimits limits = assignment.limits;
    limits.max_request_bytes += static_cast<std::size_t>(assignment.disagreement);
    Result<std::unique_ptr<WorkerEndpoint>> endpoint = MakeMpiEndpoint(world, {.limits = limits, .tap = &injector});
    MOE_CHECK(endpoint.ok() == (assignment.action == "serve"), endpoint.status().message());
    if (endpoint.ok()) RunScriptedWorker(**endpoint);
  }
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) {
  moe::MpiWorld world;
  moe::g_world = &world;
  if (world.rank() != moe::Rank(0)) return moe::Serve(world);
  testing::InitGoogleMock(&argc, argv);
  const int failed = RUN_ALL_TESTS();
  moe::Tell({.action = "quit"});
  return failed;
}
