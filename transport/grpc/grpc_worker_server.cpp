#include "transport/grpc/grpc_worker_server.h"

#include <grpcpp/server_builder.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>
#include <utility>

#include "rpc/server.h"
#include "transport/exchange_checks.h"
#include "transport/grpc/connection_arguments.h"
#include "transport/grpc/grpc_endpoint.h"
#include "transport/grpc/stream_hello.h"
#include "transport/grpc/worker_streams.h"

namespace moe {
namespace {

// How long a worker that goes waits for its last words to be sent.
constexpr std::chrono::milliseconds kFarewell{500};
// gRPC's own default, for what is served beside the data plane. Frames are held to their limits one by one.
constexpr int kLeastMessage = 4 << 20;

}  // namespace

std::string FreeLocalAddress() {
  std::random_device device;
  return Cat("unix-abstract:moe-", getpid(), "-", device(), "-", device());
}

struct GrpcWorkerServer::State {
  explicit State(grpc::Service* control, const GrpcWorkerServerOptions& options)
      : streams(control),
        endpoint(streams, {.limits = options.limits,
                           .max_routers = options.max_routers,
                           .shared_memory = options.shared_memory,
                           .tap = options.tap,
                           .worker = options.worker}) {}

  WorkerStreams streams;
  GrpcEndpoint endpoint;
  std::unique_ptr<RpcServer> server;
};

GrpcWorkerServer::GrpcWorkerServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<GrpcWorkerServer>> GrpcWorkerServer::Start(const GrpcWorkerServerOptions& options) {
  MOE_RETURN_IF_ERROR(CheckLimits(options.limits));
  MOE_ASSIGN_OR_RETURN(const int message_bytes, MessageBytes(options.limits));
  if (options.max_routers < 1) return InvalidArgument("max_routers is ", options.max_routers, " (at least 1)");
  std::vector<grpc::Service*> services = options.services;
  const auto control = std::find_if(services.begin(), services.end(), &WorkerStreams::IsControl);
  auto state = std::make_unique<State>(control == services.end() ? nullptr : *control, options);
  if (control != services.end()) services.erase(control);
  services.push_back(state->streams.service());

  RpcServerOptions rpc{.listen = options.listen,
                       .tls = options.tls,
                       .health_and_reflection = !options.services.empty(),
                       .health_services = options.health_services};
  rpc.max_receive_bytes = rpc.max_send_bytes = std::max(message_bytes, kLeastMessage);
  rpc.adjust = [&](grpc::ServerBuilder& builder) {
    ForEachArgument({.message_bytes = message_bytes,
                     .keepalive_interval = options.keepalive_interval,
                     .keepalive_timeout = options.keepalive_timeout},
                    [&](const char* name, int value) { builder.AddChannelArgument(name, value); });
    state->streams.Prepare(builder);
  };
  Result<std::unique_ptr<RpcServer>> server = RpcServer::Start(rpc, services);
  if (!server.ok()) {
    state->streams.CloseQueue();
    return server.status();
  }
  state->server = *std::move(server);
  state->streams.Begin();
  return std::unique_ptr<GrpcWorkerServer>(new GrpcWorkerServer(std::move(state)));
}

// The server waits for our streams to end while it shuts down, and they end on this thread.
GrpcWorkerServer::~GrpcWorkerServer() {
  std::atomic<bool> down{false};
  std::thread server([&] {
    state_->server->Shutdown(kFarewell);
    down = true;
  });
  while (!down) state_->streams.WindUp(Unavailable("this worker shuts down"), After(std::chrono::milliseconds(5)));
  server.join();
  state_->streams.CloseQueue();
}

const std::string& GrpcWorkerServer::address() const { return state_->server->address(); }

WorkerEndpoint& GrpcWorkerServer::endpoint() { return state_->endpoint; }

void GrpcWorkerServer::SetServing(bool serving) { state_->server->SetServing(serving); }

void GrpcWorkerServer::Stop() {
  state_->streams.Stop();
  state_->endpoint.Wake();
}

}  // namespace moe
