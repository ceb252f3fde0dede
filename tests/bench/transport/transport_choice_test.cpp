#include "bench/transport/transport_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const TransportSurroundings kAlone{.ranks = 1, .nccl_refusal = "nccl needs a device"};
const TransportSurroundings kJob{.ranks = 3, .nccl_refusal = "nccl needs a device"};

TEST(SelectTransports, AutoIsWhatAJobTakesByItself) {
  EXPECT_THAT(SelectTransports({"auto"}, kAlone)->names, ElementsAre("inprocess"));
  EXPECT_THAT(SelectTransports({"auto"}, kJob)->names, ElementsAre("mpi"));
  EXPECT_THAT(SelectTransports({"auto"}, kJob)->skipped, IsEmpty());
}

TEST(SelectTransports, AllAreThoseThatCanRunAndTheOthersAreSaid) {
  const Result<TransportSelection> alone = SelectTransports({"all"}, kAlone);
  EXPECT_THAT(alone->names, ElementsAre("inprocess", "grpc", "grpc_streams"));
  EXPECT_THAT(alone->skipped,
              ElementsAre("--transports all leaves out mpi: mpi needs mpirun with at least two ranks, a "
                          "router and a worker; there is one",
                          "--transports all leaves out nccl: nccl needs a device"));
  const Result<TransportSelection> job = SelectTransports({"all"}, {.ranks = 3});
  EXPECT_THAT(job->names, ElementsAre("mpi", "grpc", "grpc_streams", "nccl"));
  EXPECT_THAT(job->skipped, ElementsAre(HasSubstr("inprocess joins threads of one process; mpirun started 3 ranks")));
}

TEST(SelectTransports, NamesKeepTheirOrder) {
  EXPECT_THAT(SelectTransports({"grpc", "mpi"}, kJob)->names, ElementsAre("grpc", "mpi"));
  EXPECT_THAT(SelectTransports({"grpc", "inprocess"}, kAlone)->names, ElementsAre("grpc", "inprocess"));
}

TEST(SelectTransports, WhatCannotRunIsRefusedByName) {
  const struct {
    std::vector<std::string> asked;
    TransportSurroundings surroundings;
    const char* expected;
  } cases[] = {
      {{}, kAlone, "--transports is empty"},
      {{"carrier-pigeon"},
       kAlone,
       "--transports carrier-pigeon is unknown (auto, all, inprocess, mpi, grpc, grpc_streams, nccl)"},
      {{"grpc", "grpc"}, kAlone, "--transports has grpc twice"},
      {{"grpc", "auto"}, kAlone, "--transports auto stands alone"},
      {{"all", "grpc"}, kAlone, "--transports all stands alone"},
      {{"mpi"}, kAlone, "--transports mpi: mpi needs mpirun with at least two ranks"},
      {{"mpi", "inprocess"}, kJob, "--transports inprocess: inprocess joins threads of one process"},
      {{"nccl"}, kJob, "--transports nccl: nccl needs a device"},
  };
  for (const auto& c : cases) {
    const Result<TransportSelection> selection = SelectTransports(c.asked, c.surroundings);
    ASSERT_FALSE(selection.ok()) << c.expected;
    EXPECT_EQ(selection.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(selection.status().message(), HasSubstr(c.expected));
  }
}

}  // namespace
}  // namespace moe
