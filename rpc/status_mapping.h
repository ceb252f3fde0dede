// The one mapping between moe::Status and gRPC's status, for servers and clients alike.
#pragma once

#include "core/status.h"

namespace grpc {
class Status;
}

namespace moe {

/// The same code and message. (Callers include <grpcpp/support/status.h>.)
grpc::Status ToGrpc(const Status& status);

/// The same code and message. A code that this project never sends (UNKNOWN, UNAUTHENTICATED, …) becomes kInternal with
/// gRPC's name of it before the message.
Status FromGrpc(const grpc::Status& status);

}  // namespace moe
