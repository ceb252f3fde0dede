#include "transport/grpc/grpc_channels.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <random>
#include <utility>

#include "rpc/listen_address.h"
#include "transport/exchange_checks.h"
#include "transport/grpc/connection_arguments.h"
#include "transport/grpc/stream_hello.h"

namespace moe {
namespace {

std::uint64_t RandomId() {
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

Status CheckAddress(const std::string& address) {
  MOE_ASSIGN_OR_RETURN(const ListenAddress parsed, ParseListenAddress(address));
  if (parsed.local() || parsed.port > 0) return Status::Ok();
  return InvalidArgument("address \"", address, "\" of a worker has port 0 (1 to 65535)");
}

grpc::ChannelArguments ArgumentsOf(const GrpcChannelsOptions& options, int message_bytes) {
  grpc::ChannelArguments arguments;
  ForEachArgument({.message_bytes = message_bytes,
                   .keepalive_interval = options.keepalive_interval,
                   .keepalive_timeout = options.keepalive_timeout},
                  [&](const char* name, int value) { arguments.SetInt(name, value); });
  // Not less than gRPC's default, for the control plane. Frames are held to their limits one by one.
  constexpr int kLeastMessage = 4 << 20;
  arguments.SetMaxReceiveMessageSize(std::max(message_bytes, kLeastMessage));
  arguments.SetMaxSendMessageSize(std::max(message_bytes, kLeastMessage));
  // A stream is never repeated, and for that gRPC would keep and look through all that it has sent.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  // Other channels of this process, to the same worker, have connections of their own.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // Workers are named, not found through what a proxy or a name service says.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetServiceConfigJSON("{}");
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  // How soon a worker that comes back is found again; whoever waits for it asks with Connected.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2000);  // for one attempt, where nothing answers at all
  return arguments;
}

}  // namespace

struct GrpcChannels::State {
  std::vector<std::shared_ptr<grpc::Channel>> channels;  // by worker
};

GrpcChannels::GrpcChannels(GrpcChannelsOptions options, std::unique_ptr<State> state)
    : options_(std::move(options)),
      state_(std::move(state)),
      router_id_(RandomId()),
      failures_(options_.workers.size()) {}

GrpcChannels::~GrpcChannels() = default;

Result<std::unique_ptr<GrpcChannels>> GrpcChannels::Make(const GrpcChannelsOptions& options) {
  MOE_RETURN_IF_ERROR(CheckLimits(options.limits));
  MOE_ASSIGN_OR_RETURN(const int message_bytes, MessageBytes(options.limits));
  if (options.workers.empty()) return InvalidArgument("the grpc transport needs the address of at least one worker");
  for (const std::string& address : options.workers) MOE_RETURN_IF_ERROR(CheckAddress(address));
  MOE_ASSIGN_OR_RETURN(const auto credentials, MakeChannelCredentials(options.tls));
  const grpc::ChannelArguments arguments = ArgumentsOf(options, message_bytes);
  auto state = std::make_unique<State>();
  for (const std::string& address : options.workers)
    state->channels.push_back(grpc::CreateCustomChannel(address, credentials, arguments));
  return std::unique_ptr<GrpcChannels>(new GrpcChannels(options, std::move(state)));
}

std::string GrpcChannels::Peer(WorkerId worker) const {
  return Cat("rank ", worker.value() + 1, " (", address(worker), ")");
}

const std::shared_ptr<grpc::Channel>& GrpcChannels::channel(WorkerId worker) const {
  return state_->channels[worker.index()];
}

bool GrpcChannels::Connected(WorkerId worker) const {
  return channel(worker)->GetState(/*try_to_connect=*/true) == GRPC_CHANNEL_READY;
}

}  // namespace moe
