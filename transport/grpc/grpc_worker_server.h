// A worker's gRPC server: the data plane of several routers at a time, and other services beside it.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "rpc/tls.h"
#include "transport/frame_tap.h"
#include "transport/transport.h"

namespace grpc {
class Service;
}

namespace moe {

/// To listen on, for who is reached from this machine alone: a local socket whose name nobody else has.
std::string FreeLocalAddress();

struct GrpcWorkerServerOptions {
  std::string listen;         // as ParseListenAddress reads it
  TransportLimits limits;     // a router may ask for less
  int max_routers = 16;       // attached at a time; a further one gets RESOURCE_EXHAUSTED
  bool shared_memory = true;  // with routers on this machine that offer it
  TlsFiles tls;
  /// Served beside the data plane; they outlive the server. One that implements moe.v1.ExpertWorker (its
  /// CallbackService) is the control plane: its unary methods are served, Exchange is this server's own. Without any
  /// there is no health and no reflection either, and gRPC has no threads for them: the endpoint's own thread receives
  /// what arrives, and no other hands it over.
  std::vector<grpc::Service*> services;
  std::vector<std::string> health_services = {"moe.v1.ExpertWorker"};
  std::chrono::milliseconds keepalive_interval{10'000};  // a ping when a router has sent nothing for so long
  std::chrono::milliseconds keepalive_timeout{5'000};
  FrameTap* tap = nullptr;  // outlives the server
  WorkerId worker;          // for the tap
};

class GrpcWorkerServer {
 public:
  /// Accepts connections from here on; health says NOT_SERVING until SetServing(true), and routers are attached while
  /// the endpoint's thread is in Receive. Errors as RpcServer::Start.
  static Result<std::unique_ptr<GrpcWorkerServer>> Start(const GrpcWorkerServerOptions& options);
  /// Ends all streams: their routers see the worker go. The endpoint's thread must have left it.
  ~GrpcWorkerServer();
  GrpcWorkerServer(const GrpcWorkerServer&) = delete;
  GrpcWorkerServer& operator=(const GrpcWorkerServer&) = delete;

  /// What was asked for, with the port really bound.
  const std::string& address() const;

  /// The data plane; used by one thread. Receive waits for the next router when none is left. IncomingRequest::router
  /// is below max_routers, and is taken again by others once its router is gone; a reply to a router that is gone is
  /// dropped without an error.
  WorkerEndpoint& endpoint();

  void SetServing(bool serving);

  /// From any thread, any number of times: Receive returns UNAVAILABLE from now on.
  void Stop();

 private:
  struct State;
  explicit GrpcWorkerServer(std::unique_ptr<State> state);
  const std::unique_ptr<State> state_;
};

}  // namespace moe
