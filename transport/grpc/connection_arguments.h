// How HTTP/2 is to behave under an exchange, at both ends alike.
#pragma once

#include <chrono>

#include "core/function_ref.h"

namespace moe {

struct ConnectionOptions {
  int message_bytes = 0;  // the largest, either way
  std::chrono::milliseconds keepalive_interval{0};
  std::chrono::milliseconds keepalive_timeout{0};
};

/// Calls `set` with each of gRPC's arguments and its value.
void ForEachArgument(const ConnectionOptions& options, FunctionRef<void(const char* name, int value)> set);

}  // namespace moe
