// Experts that move while rows travel over gRPC. In a binary of its own: gRPC is not built for the thread sanitizer.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/router/migration_property.h"
#include "transport/grpc/grpc_channels.h"
#include "transport/grpc/grpc_transport.h"
#include "transport/grpc/grpc_worker_server.h"

namespace moe {
namespace {

/// A worker's endpoint with the server that it is of; Receive ends once the router has gone.
class ServedEnd final : public WorkerEndpoint {
 public:
  explicit ServedEnd(std::unique_ptr<GrpcWorkerServer> server) : server_(std::move(server)) {}

  const TransportLimits& limits() const override { return server_->endpoint().limits(); }
  bool attached(int router) const override { return server_->endpoint().attached(router); }
  Result<std::optional<IncomingRequest>> Receive(Deadline deadline) override {
    return server_->endpoint().Receive(deadline);
  }
  std::span<std::byte> reply_buffer(const IncomingRequest& request) override {
    return server_->endpoint().reply_buffer(request);
  }
  Status Reply(const IncomingRequest& request, std::size_t bytes) override {
    return server_->endpoint().Reply(request, bytes);
  }

 private:
  std::unique_ptr<GrpcWorkerServer> server_;
};

/// The router's end with the channels that it is on. A worker serves the next router when one has gone; here none
/// comes.
class ChannelledEnd final : public Transport {
 public:
  ChannelledEnd(std::unique_ptr<GrpcChannels> channels, std::vector<GrpcWorkerServer*> servers)
      : channels_(std::move(channels)), servers_(std::move(servers)), transport_(*MakeGrpcTransport(*channels_, {})) {}
  ~ChannelledEnd() override {
    transport_.reset();
    for (GrpcWorkerServer* server : servers_) server->Stop();
  }

  std::string_view name() const override { return transport_->name(); }
  MemorySpace memory_space() const override { return transport_->memory_space(); }
  int num_workers() const override { return transport_->num_workers(); }
  Rank rank(WorkerId worker) const override { return transport_->rank(worker); }
  const TransportLimits& limits() const override { return transport_->limits(); }
  std::unique_ptr<Exchange> MakeExchange() override { return transport_->MakeExchange(); }

 private:
  std::unique_ptr<GrpcChannels> channels_;
  const std::vector<GrpcWorkerServer*> servers_;
  std::unique_ptr<Transport> transport_;
};

/// Makes the ends of one harness.
class GrpcJob {
 public:
  InProcessEnds Connect(const TransportLimits& limits, int workers) {
    InProcessEnds ends;
    channels_.limits = limits;
    for (int w = 0; w < workers; ++w) {
      std::unique_ptr<GrpcWorkerServer> server =
          *GrpcWorkerServer::Start({.listen = "127.0.0.1:0", .limits = limits, .services = {}, .worker = WorkerId(w)});
      channels_.workers.push_back(server->address());
      servers_.push_back(server.get());
      ends.workers.push_back(std::make_unique<ServedEnd>(std::move(server)));
    }
    return ends;
  }
  std::unique_ptr<Transport> ConnectRouter() {
    return std::make_unique<ChannelledEnd>(*GrpcChannels::Make(channels_), servers_);
  }
  HarnessOptions Options() {
    return {.workers = 3,
            .redundant_experts = 2,
            .connect = [this](const TransportLimits& limits, int workers) { return Connect(limits, workers); },
            .connect_router = [this] { return ConnectRouter(); },
            .max_step_tokens = 48,
            .prefill_chunk = 16};
  }

 private:
  GrpcChannelsOptions channels_;
  std::vector<GrpcWorkerServer*> servers_;
};

TEST(MigratingOverGrpc, RandomMovesNeverShow) {
  GrpcJob job;
  ExpectPlainBitsWhileMigrating({.options = job.Options(), .seed = 31});
}

TEST(MigratingOverGrpc, RandomMovesOfWhichSomeFailNeverShow) {
  GrpcJob job;
  ExpectPlainBitsWhileMigrating({.options = job.Options(), .seed = 32, .failures = true});
}

}  // namespace
}  // namespace moe
