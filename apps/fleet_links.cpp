#include "apps/fleet_links.h"

#include <utility>

#include "transport/grpc/grpc_channels.h"
#include "transport/grpc/grpc_transport.h"

namespace moe {
namespace {

class GrpcLinks final : public WorkerLinks {
 public:
  GrpcLinks(std::unique_ptr<GrpcChannels> channels, const FleetLinksOptions& options)
      : channels_(std::move(channels)), shared_memory_(options.shared_memory), on_connected_(options.on_connected) {}

  int num_workers() const override { return channels_->num_workers(); }
  std::string Peer(WorkerId worker) const override { return channels_->Peer(worker); }
  Result<std::unique_ptr<Transport>> Connect(const WorkerMask& attached, std::chrono::milliseconds timeout) override {
    Result<std::unique_ptr<Transport>> transport = MakeGrpcTransport(
        *channels_, {.attached = attached, .connect_timeout = timeout, .shared_memory = shared_memory_});
    if (transport.ok() && on_connected_) on_connected_(channels_->shares_memory());
    return transport;
  }
  Status failure(WorkerId worker) const override { return channels_->failure(worker); }
  bool connected(WorkerId worker) const override { return channels_->Connected(worker); }

 private:
  const std::unique_ptr<GrpcChannels> channels_;
  const bool shared_memory_;
  const std::function<void(bool)> on_connected_;
};

}  // namespace

Result<std::unique_ptr<WorkerLinks>> MakeGrpcLinks(const FleetLinksOptions& options) {
  MOE_ASSIGN_OR_RETURN(std::unique_ptr<GrpcChannels> channels,
                       GrpcChannels::Make({.workers = options.workers, .limits = options.limits, .tls = options.tls}));
  return std::unique_ptr<WorkerLinks>(std::make_unique<GrpcLinks>(std::move(channels), options));
}

}  // namespace moe
