// What every gRPC endpoint of this project shares: one listening address, health, reflection, limits, orderly shutdown.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/status.h"
#include "rpc/tls.h"

namespace grpc {
class ServerBuilder;
class Service;
}  // namespace grpc

namespace moe {

struct RpcServerOptions {
  std::string listen;  // as ParseListenAddress reads it
  TlsFiles tls;
  /// Whether anybody may ask for health and reflection. Both come with threads of gRPC's that wait for what arrives on
  /// any connection of the process, and hand it on to whom it concerns.
  bool health_and_reflection = true;
  /// Services that grpc.health.v1.Health answers for, beside "" (the server as a whole).
  std::vector<std::string> health_services;
  int max_receive_bytes = 16 << 20;  // a larger message gets RESOURCE_EXHAUSTED
  int max_send_bytes = 64 << 20;
  int max_streams_per_connection = 1024;  // calls open at a time; further ones wait in the client
  int max_threads = 16;                   // for services of the synchronous API, reflection among them
  /// Further settings, after all others and before the server starts: arguments of its connections, completion queues
  /// for services that fetch their calls themselves.
  std::function<void(grpc::ServerBuilder&)> adjust;
};

/// A running gRPC server with the given services, and health and reflection beside them. Without TLS: listen on a
/// loopback or a trusted network.
class RpcServer {
 public:
  /// Serves from here on; health says NOT_SERVING until SetServing(true). `services` must outlive the server.
  /// UNAVAILABLE naming the address when it is taken or not this machine's, INVALID_ARGUMENT when it is none, or a
  /// TLS file is not what it should be.
  static Result<std::unique_ptr<RpcServer>> Start(const RpcServerOptions& options,
                                                  std::span<grpc::Service* const> services);
  /// Shutdown at once, if there was none.
  ~RpcServer();
  RpcServer(const RpcServer&) = delete;
  RpcServer& operator=(const RpcServer&) = delete;

  /// "127.0.0.1:50051": the host asked for and the port really bound.
  const std::string& address() const { return address_; }

  /// What health answers, and tells its watchers, for "" and every name of the options, if it is served. Safe from any
  /// thread.
  void SetServing(bool serving);

  /// Health says NOT_SERVING, new calls are refused, those under way may end within `grace` and are cancelled then.
  /// Returns when all have ended; a second call does nothing.
  void Shutdown(std::chrono::milliseconds grace);

 private:
  struct State;
  explicit RpcServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
  std::string address_;
};

}  // namespace moe
