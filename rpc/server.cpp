#include "rpc/server.h"

#include <grpcpp/ext/health_check_service_server_builder_option.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>

#include <mutex>
#include <utility>

#include "rpc/listen_address.h"

namespace moe {
namespace {

// Health and reflection are switched on for a whole process, before its first server is built.
void EnableHealthAndReflection() {
  static std::once_flag once;
  std::call_once(once, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
}

}  // namespace

struct RpcServer::State {
  std::vector<std::string> health_services;
  std::unique_ptr<grpc::Server> server;
  std::once_flag shut_down;
};

RpcServer::RpcServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

RpcServer::~RpcServer() { Shutdown(std::chrono::milliseconds(0)); }

Result<std::unique_ptr<RpcServer>> RpcServer::Start(const RpcServerOptions& options,
                                                    std::span<grpc::Service* const> services) {
  MOE_ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(options.listen));
  MOE_RETURN_IF_ERROR(CheckBindable(address));
  MOE_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials, MakeServerCredentials(options.tls));
  if (options.health_and_reflection) EnableHealthAndReflection();

  grpc::ServerBuilder builder;
  if (!options.health_and_reflection)
    builder.SetOption(std::make_unique<grpc::HealthCheckServiceServerBuilderOption>(nullptr));
  grpc::ResourceQuota quota("moe");
  quota.SetMaxThreads(options.max_threads);
  builder.SetResourceQuota(quota);
  // gRPC's default lets two servers share a port silently.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_streams_per_connection);
  builder.SetMaxReceiveMessageSize(options.max_receive_bytes);
  builder.SetMaxSendMessageSize(options.max_send_bytes);
  int port = 0;
  builder.AddListeningPort(options.listen, credentials, &port);
  for (grpc::Service* const service : services) builder.RegisterService(service);
  if (options.adjust) options.adjust(builder);

  auto state = std::make_unique<State>();
  state->health_services = options.health_services;
  state->server = builder.BuildAndStart();
  if (state->server == nullptr || port <= 0) {
    return Unavailable("cannot listen on ", options.listen,
                       options.tls.any() ? Cat(" with TLS certificate ", options.tls.certificate.string(), " and key ",
                                               options.tls.key.string())
                                         : "");
  }
  std::unique_ptr<RpcServer> server(new RpcServer(std::move(state)));
  server->address_ = address.WithPort(port);
  server->SetServing(false);
  return server;
}

void RpcServer::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* const health = state_->server->GetHealthCheckService();
  if (health == nullptr) return;
  health->SetServingStatus("", serving);
  for (const std::string& service : state_->health_services) health->SetServingStatus(service, serving);
}

void RpcServer::Shutdown(std::chrono::milliseconds grace) {
  std::call_once(state_->shut_down, [&] {
    SetServing(false);
    state_->server->Shutdown(std::chrono::system_clock::now() + grace);
    state_->server->Wait();
  });
}

}  // namespace moe
