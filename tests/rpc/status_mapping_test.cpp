#include "rpc/status_mapping.h"

#include <grpcpp/support/status.h>
#include <gtest/gtest.h>

#include <utility>

namespace moe {
namespace {

constexpr std::pair<StatusCode, grpc::StatusCode> kPairs[] = {
    {StatusCode::kInvalidArgument, grpc::StatusCode::INVALID_ARGUMENT},
    {StatusCode::kNotFound, grpc::StatusCode::NOT_FOUND},
    {StatusCode::kResourceExhausted, grpc::StatusCode::RESOURCE_EXHAUSTED},
    {StatusCode::kDeadlineExceeded, grpc::StatusCode::DEADLINE_EXCEEDED},
    {StatusCode::kCancelled, grpc::StatusCode::CANCELLED},
    {StatusCode::kUnavailable, grpc::StatusCode::UNAVAILABLE},
    {StatusCode::kUnimplemented, grpc::StatusCode::UNIMPLEMENTED},
    {StatusCode::kInternal, grpc::StatusCode::INTERNAL},
    {StatusCode::kFailedPrecondition, grpc::StatusCode::FAILED_PRECONDITION},
};

TEST(StatusMappingTest, EveryFailureKeepsItsCodeAndMessageBothWays) {
  for (const auto& [ours, theirs] : kPairs) {
    const grpc::Status sent = ToGrpc(Status(ours, "layer 3: no"));
    EXPECT_EQ(sent.error_code(), theirs) << Name(ours);
    EXPECT_EQ(sent.error_message(), "layer 3: no");
    const Status received = FromGrpc(sent);
    EXPECT_EQ(received.code(), ours) << Name(ours);
    EXPECT_EQ(received.message(), "layer 3: no");
  }
}

TEST(StatusMappingTest, OkStaysOk) {
  EXPECT_TRUE(ToGrpc(Status::Ok()).ok());
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
}

TEST(StatusMappingTest, CodesThatAreNotOursBecomeInternalAndKeepTheirName) {
  const Status status = FromGrpc(grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "no token"));
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_EQ(status.message(), "UNAUTHENTICATED: no token");
  EXPECT_EQ(FromGrpc(grpc::Status(grpc::StatusCode::UNKNOWN, "x")).message(), "UNKNOWN: x");
}

}  // namespace
}  // namespace moe
