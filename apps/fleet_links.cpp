#include "apps/fleet_links.h"

#include <utility>

#include "transport/grpc/grpc_channels.h"
#include "transport/grpc/grpc_transport.h"

namespace moe {
namespace {

class GrpcLinks final : public WorkerLinks {
 public:
  explicit GrpcLinks(std::unique_ptr<GrpcChannels> channels) : channels_(std::move(channels)) {}

  int num_workers() const override { return channels_->num_workers(); }
  std::string Peer(WorkerId worker) const override { return channels_->Peer(worker); }
  Result<std::unique_ptr<Transport>> Connect(const WorkerMask& attached, std::chrono::milliseconds timeout) override {
    return MakeGrpcTransport(*channels_, {.attached = attached, .connect_timeout = timeout});
  }
  Status failure(WorkerId worker) const override { return channels_->failure(worker); }
  bool connected(WorkerId worker) const override { return channels_->Connected(worker); }

 private:
  const std::unique_ptr<GrpcChannels> channels_;
};

}  // namespace

Result<std::unique_ptr<WorkerLinks>> MakeGrpcLinks(const FleetLinksOptions& options) {
  MOE_ASSIGN_OR_RETURN(std::unique_ptr<GrpcChannels> channels,
                       GrpcChannels::Make({.workers = options.workers, .limits = options.limits, .tls = options.tls}));
  return std::unique_ptr<WorkerLinks>(std::make_unique<GrpcLinks>(std::move(channels)));
}

}  // namespace moe
