// The data plane of a job that mpirun started: MPI's own messages, or gRPC or NCCL between the same processes.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "ranks/rank_device.h"
#include "ranks/rank_setup.h"
#include "transport/mpi/mpi_world.h"
#include "transport/transport.h"

namespace moe {

/// The router's end, with what it stands on.
class JobRouterEnd {
 public:
  virtual ~JobRouterEnd() = default;
  virtual Transport& transport() = 0;
};

/// A worker's.
class JobWorkerEnd {
 public:
  virtual ~JobWorkerEnd() = default;
  virtual WorkerEndpoint& endpoint() = 0;
};

/// "mpi", "grpc", "grpc_streams" or "nccl": what a job takes that was told `choice`.
std::string_view JobTransportName(TransportChoice choice);

/// Of `choice`, or what a job takes by itself; `world` outlives it. Collective: rank 0 makes the router's end while
/// every other rank makes a worker's; when both return they have met. A failure to begin is that of all ranks. `device`
/// is what BindDevice gave for nccl, and outlives the end.
Result<std::unique_ptr<JobRouterEnd>> MakeJobRouterEnd(MpiWorld& world, TransportChoice choice,
                                                       const TransportLimits& limits, RankDevice* device = nullptr);
Result<std::unique_ptr<JobWorkerEnd>> MakeJobWorkerEnd(MpiWorld& world, TransportChoice choice,
                                                       const TransportLimits& limits, RankDevice* device = nullptr);

/// Whether a rank that ends with `failure` must leave the job (LeaveJob), because another one may not take part in
/// MPI's farewell: it does not answer, or waits for what never comes. gRPC's workers wait for the next router when
/// theirs has failed.
bool MustLeaveJob(TransportChoice choice, const Status& failure);

/// For a server that the job's other ranks reach: a local socket where all are on one machine, else any free port of
/// every interface.
std::string JobListenAddress(const MpiWorld& world);

/// Collective: what the workers' servers, started with JobListenAddress, are bound to, as rank 0 reaches them, by
/// worker; empty elsewhere. `bound` is this worker's address, or why it has none, which all ranks are then told with
/// its rank; rank 0's is not looked at.
Result<std::vector<std::string>> GatherAddresses(MpiWorld& world, const Result<std::string>& bound);

}  // namespace moe
