#include "rpc/status_mapping.h"

#include <grpcpp/support/status.h>

namespace moe {
namespace {

grpc::StatusCode GrpcCode(StatusCode code) {
  switch (code) {
    case StatusCode::kOk: return grpc::StatusCode::OK;
    case StatusCode::kInvalidArgument: return grpc::StatusCode::INVALID_ARGUMENT;
    case StatusCode::kNotFound: return grpc::StatusCode::NOT_FOUND;
    case StatusCode::kResourceExhausted: return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case StatusCode::kDeadlineExceeded: return grpc::StatusCode::DEADLINE_EXCEEDED;
    case StatusCode::kCancelled: return grpc::StatusCode::CANCELLED;
    case StatusCode::kUnavailable: return grpc::StatusCode::UNAVAILABLE;
    case StatusCode::kUnimplemented: return grpc::StatusCode::UNIMPLEMENTED;
    case StatusCode::kInternal: return grpc::StatusCode::INTERNAL;
    case StatusCode::kFailedPrecondition: return grpc::StatusCode::FAILED_PRECONDITION;
  }
  return grpc::StatusCode::INTERNAL;
}

// Of the codes that moe::StatusCode does not have.
std::string_view ForeignName(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::UNKNOWN: return "UNKNOWN";
    case grpc::StatusCode::ALREADY_EXISTS: return "ALREADY_EXISTS";
    case grpc::StatusCode::PERMISSION_DENIED: return "PERMISSION_DENIED";
    case grpc::StatusCode::UNAUTHENTICATED: return "UNAUTHENTICATED";
    case grpc::StatusCode::ABORTED: return "ABORTED";
    case grpc::StatusCode::OUT_OF_RANGE: return "OUT_OF_RANGE";
    case grpc::StatusCode::DATA_LOSS: return "DATA_LOSS";
    default: return "an unknown gRPC code";
  }
}

}  // namespace

grpc::Status ToGrpc(const Status& status) {
  return status.ok() ? grpc::Status() : grpc::Status(GrpcCode(status.code()), status.message());
}

Status FromGrpc(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::OK: return Status::Ok();
    case grpc::StatusCode::INVALID_ARGUMENT: return {StatusCode::kInvalidArgument, status.error_message()};
    case grpc::StatusCode::NOT_FOUND: return {StatusCode::kNotFound, status.error_message()};
    case grpc::StatusCode::RESOURCE_EXHAUSTED: return {StatusCode::kResourceExhausted, status.error_message()};
    case grpc::StatusCode::DEADLINE_EXCEEDED: return {StatusCode::kDeadlineExceeded, status.error_message()};
    case grpc::StatusCode::CANCELLED: return {StatusCode::kCancelled, status.error_message()};
    case grpc::StatusCode::UNAVAILABLE: return {StatusCode::kUnavailable, status.error_message()};
    case grpc::StatusCode::UNIMPLEMENTED: return {StatusCode::kUnimplemented, status.error_message()};
    case grpc::StatusCode::INTERNAL: return {StatusCode::kInternal, status.error_message()};
    case grpc::StatusCode::FAILED_PRECONDITION: return {StatusCode::kFailedPrecondition, status.error_message()};
    default: return Internal(ForeignName(status.error_code()), ": ", status.error_message());
  }
}

}  // namespace moe
