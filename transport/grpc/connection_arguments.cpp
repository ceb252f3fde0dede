#include "transport/grpc/connection_arguments.h"

#include <grpc/grpc.h>

#include <algorithm>

namespace moe {
namespace {

// HTTP/2 allows frames of 16 KiB to 16 MiB less one byte. One frame a message up to 1 MiB: larger ones would keep pings
// and other streams of the connection waiting, and their 9 bytes each are nothing there.
constexpr int kLeastHttpFrame = 16 << 10;
constexpr int kMostHttpFrame = 1 << 20;
// Bytes of a stream that may be under way before its reader has taken any: a message, so that it never waits for a
// window update, and not so much that many routers could fill a worker's memory.
constexpr int kLeastWindow = 64 << 10;
constexpr int kMostWindow = 16 << 20;

int Milliseconds(std::chrono::milliseconds time) {
  return static_cast<int>(std::clamp<long>(time.count(), 1, 1 << 30));
}

}  // namespace

void ForEachArgument(const ConnectionOptions& options, FunctionRef<void(const char* name, int value)> set) {
  set(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, std::clamp(options.message_bytes, kLeastHttpFrame, kMostHttpFrame));
  set(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, std::clamp(options.message_bytes, kLeastWindow, kMostWindow));
  // The window of the connection, which its streams share, begins with 64 KiB; gRPC has no argument for it, and widens
  // it by nothing but what it measures with pings. Larger messages would wait for updates.
  set(GRPC_ARG_HTTP2_BDP_PROBE, 1);
  set(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(options.keepalive_interval));
  set(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(options.keepalive_timeout));
  // Pings as often as either end likes, also while no frame travels: a router may be idle for hours.
  set(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  set(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  set(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  set(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1);
}

}  // namespace moe
