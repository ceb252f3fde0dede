#include "ranks/job_transport.h"

#include <chrono>
#include <optional>
#include <utility>

#include "core/clock.h"
#include "core/machine.h"
#include "transport/grpc/grpc_channels.h"
#include "transport/grpc/grpc_transport.h"
#include "transport/grpc/grpc_worker_server.h"
#include "transport/mpi/mpi_transport.h"
#include "transport/nccl/nccl_transport.h"

namespace moe {
namespace {

// Until both ends of a connection have met, with nothing to do meanwhile on either side.
constexpr std::chrono::seconds kMeetingTimeout{30};
// No pings: nobody answers them while a rank's thread loads weights or computes. mpirun notices when a rank ends, and
// an exchange has its deadline.
constexpr std::chrono::hours kNoPings{24 * 7};

class PlainRouterEnd final : public JobRouterEnd {
 public:
  explicit PlainRouterEnd(std::unique_ptr<Transport> transport) : transport_(std::move(transport)) {}
  Transport& transport() override { return *transport_; }

 private:
  const std::unique_ptr<Transport> transport_;
};

class PlainWorkerEnd final : public JobWorkerEnd {
 public:
  explicit PlainWorkerEnd(std::unique_ptr<WorkerEndpoint> endpoint) : endpoint_(std::move(endpoint)) {}
  WorkerEndpoint& endpoint() override { return *endpoint_; }

 private:
  const std::unique_ptr<WorkerEndpoint> endpoint_;
};

class GrpcRouterEnd final : public JobRouterEnd {
 public:
  GrpcRouterEnd(std::unique_ptr<GrpcChannels> channels, std::unique_ptr<Transport> transport)
      : channels_(std::move(channels)), transport_(std::move(transport)) {}
  Transport& transport() override { return *transport_; }

 private:
  const std::unique_ptr<GrpcChannels> channels_;
  const std::unique_ptr<Transport> transport_;
};

class GrpcWorkerEnd final : public JobWorkerEnd {
 public:
  explicit GrpcWorkerEnd(std::unique_ptr<GrpcWorkerServer> server) : server_(std::move(server)) {}
  WorkerEndpoint& endpoint() override { return server_->endpoint(); }

 private:
  const std::unique_ptr<GrpcWorkerServer> server_;
};

// One exchange of a byte. A worker takes a router in only while it waits for a request, which it will not do for as
// long as it loads its weights.
Status MeetWorkers(Transport& transport) {
  const std::unique_ptr<Exchange> exchange = transport.MakeExchange();
  const std::vector<std::size_t> bytes(static_cast<std::size_t>(transport.num_workers()), 1);
  MOE_RETURN_IF_ERROR(exchange->Start(bytes));
  return exchange->Wait(After(kMeetingTimeout));
}

Status MeetRouter(WorkerEndpoint& endpoint) {
  MOE_ASSIGN_OR_RETURN(const std::optional<IncomingRequest> request, endpoint.Receive(After(kMeetingTimeout)));
  if (!request) return DeadlineExceeded("no router came within ", kMeetingTimeout.count(), " s");
  return endpoint.Reply(*request, 0);
}

Result<std::unique_ptr<JobRouterEnd>> MakeGrpcRouterEnd(MpiWorld& world, const TransportLimits& limits,
                                                        bool shared_memory) {
  MOE_ASSIGN_OR_RETURN(std::vector<std::string> addresses, GatherAddresses(world, Result<std::string>("")));
  MOE_ASSIGN_OR_RETURN(
      std::unique_ptr<GrpcChannels> channels,
      GrpcChannels::Make({.workers = std::move(addresses), .limits = limits, .keepalive_interval = kNoPings}));
  MOE_ASSIGN_OR_RETURN(
      std::unique_ptr<Transport> transport,
      MakeGrpcTransport(*channels, {.connect_timeout = kMeetingTimeout, .shared_memory = shared_memory}));
  MOE_RETURN_IF_ERROR(MeetWorkers(*transport));
  return std::unique_ptr<JobRouterEnd>(std::make_unique<GrpcRouterEnd>(std::move(channels), std::move(transport)));
}

Result<std::unique_ptr<JobWorkerEnd>> MakeGrpcWorkerEnd(MpiWorld& world, const TransportLimits& limits) {
  Result<std::unique_ptr<GrpcWorkerServer>> server = GrpcWorkerServer::Start(
      {.listen = JobListenAddress(world), .limits = limits, .max_routers = 1, .keepalive_interval = kNoPings});
  const Result<std::string> address = server.ok() ? Result<std::string>((*server)->address()) : server.status();
  MOE_RETURN_IF_ERROR(GatherAddresses(world, address).status());
  MOE_RETURN_IF_ERROR(MeetRouter((*server)->endpoint()));
  return std::unique_ptr<JobWorkerEnd>(std::make_unique<GrpcWorkerEnd>(*std::move(server)));
}

// The ids of NCCL's communicators go over MPI. No bell tells of what arrives on a device: as long a spin as for MPI's
// messages, then short sleeps (MpiWorld::Waiting has the argument).
NcclTransportOptions NcclOptions(MpiWorld& world, const TransportLimits& limits, const RankDevice& device) {
  return {.limits = limits,
          .rank = world.rank().value(),
          .num_ranks = world.size(),
          .device = device.index,
          .share = [&world](const std::string& bytes) { return world.Broadcast(bytes); },
          .waiting = {.spin = std::chrono::microseconds(world.oversubscribed() ? 20 : 100),
                      .idle_sleep = std::chrono::milliseconds(4)}};
}

bool OneMachine(const MpiWorld& world) { return world.node_local_size() == world.size(); }

}  // namespace

std::string_view JobTransportName(TransportChoice choice) {
  switch (choice) {
    case TransportChoice::kNccl: return "nccl";
    case TransportChoice::kGrpc: return "grpc";
    case TransportChoice::kGrpcStreams: return "grpc_streams";
    default: return "mpi";
  }
}

Result<std::unique_ptr<JobRouterEnd>> MakeJobRouterEnd(MpiWorld& world, TransportChoice choice,
                                                       const TransportLimits& limits, RankDevice* device) {
  if (IsGrpc(choice)) return MakeGrpcRouterEnd(world, limits, choice == TransportChoice::kGrpc);
  if (choice == TransportChoice::kNccl) {
    MOE_CHECK(device != nullptr && device->nccl != nullptr, "NCCL without the device that BindDevice gave");
    MOE_ASSIGN_OR_RETURN(std::unique_ptr<Transport> nccl,
                         MakeNcclTransport(*device->nccl, *device->api, NcclOptions(world, limits, *device)));
    return std::unique_ptr<JobRouterEnd>(std::make_unique<PlainRouterEnd>(std::move(nccl)));
  }
  MOE_ASSIGN_OR_RETURN(std::unique_ptr<Transport> transport, MakeMpiTransport(world, {.limits = limits}));
  return std::unique_ptr<JobRouterEnd>(std::make_unique<PlainRouterEnd>(std::move(transport)));
}

Result<std::unique_ptr<JobWorkerEnd>> MakeJobWorkerEnd(MpiWorld& world, TransportChoice choice,
                                                       const TransportLimits& limits, RankDevice* device) {
  if (IsGrpc(choice)) return MakeGrpcWorkerEnd(world, limits);
  if (choice == TransportChoice::kNccl) {
    MOE_CHECK(device != nullptr && device->nccl != nullptr, "NCCL without the device that BindDevice gave");
    MOE_ASSIGN_OR_RETURN(std::unique_ptr<WorkerEndpoint> nccl,
                         MakeNcclEndpoint(*device->nccl, *device->api, NcclOptions(world, limits, *device)));
    return std::unique_ptr<JobWorkerEnd>(std::make_unique<PlainWorkerEnd>(std::move(nccl)));
  }
  MOE_ASSIGN_OR_RETURN(std::unique_ptr<WorkerEndpoint> endpoint, MakeMpiEndpoint(world, {.limits = limits}));
  return std::unique_ptr<JobWorkerEnd>(std::make_unique<PlainWorkerEnd>(std::move(endpoint)));
}

bool MustLeaveJob(TransportChoice choice, const Status& failure) {
  return IsGrpc(choice) || choice == TransportChoice::kNccl || failure.code() == StatusCode::kDeadlineExceeded;
}

std::string JobListenAddress(const MpiWorld& world) { return OneMachine(world) ? FreeLocalAddress() : "0.0.0.0:0"; }

Result<std::vector<std::string>> GatherAddresses(MpiWorld& world, const Result<std::string>& bound) {
  // One word before it says which of the two it is.
  std::string mine = "none";
  if (world.rank() != Rank(0)) {
    mine = bound.ok() ? Cat("at ", *bound) : Cat("failed ", bound.status().message());
    if (bound.ok() && !OneMachine(world)) mine = Cat("at ", HostName(), bound->substr(bound->rfind(':')));
  }
  MOE_ASSIGN_OR_RETURN(const std::vector<std::string> all, world.GatherStrings(mine));
  std::vector<std::string> addresses;
  std::string failure;
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    const std::size_t space = all[rank].find(' ');
    const std::string text = all[rank].substr(space + 1);
    if (all[rank].starts_with("failed") && failure.empty()) failure = Cat("rank ", rank, ": ", text);
    addresses.push_back(text);
  }
  MOE_ASSIGN_OR_RETURN(const std::string told, world.Broadcast(failure));
  if (!told.empty()) return Unavailable(told);
  return addresses;
}

}  // namespace moe
