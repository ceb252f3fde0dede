#include "bench/transport/grpc_paths.h"

#include <mutex>
#include <string>
#include <utility>

#include "bench/transport/raw_grpc.h"
#include "transport/grpc/grpc_channels.h"
#include "transport/grpc/grpc_transport.h"
#include "transport/grpc/grpc_worker_server.h"

namespace moe {
namespace {

class GrpcLocalEnds final : public LocalEnds {
 public:
  GrpcLocalEnds(const ExchangeBenchOptions& options, bool shared_memory)
      : limits_(LimitsOf(options)), largest_(LargestBytes(options)), shared_memory_(shared_memory) {}

  Status AddWorker() {
    Worker worker;
    MOE_ASSIGN_OR_RETURN(worker.server, GrpcWorkerServer::Start({.listen = FreeLocalAddress(), .limits = limits_}));
    MOE_ASSIGN_OR_RETURN(worker.raw, StartRawGrpcWorker(FreeLocalAddress(), largest_));
    addresses_.push_back(worker.server->address());
    raw_addresses_.push_back(worker.raw->address());
    workers_.push_back(std::move(worker));
    return Status::Ok();
  }

  Result<WorkerSide> OpenWorker(WorkerId w) override {
    Worker& worker = workers_[w.index()];
    WorkerSide side{.endpoint = &worker.server->endpoint()};
    side.baselines.push_back(std::move(worker.raw));
    return side;
  }

  Result<RouterSide> OpenRouter() override {
    MOE_ASSIGN_OR_RETURN(channels_, GrpcChannels::Make({.workers = addresses_, .limits = limits_}));
    MOE_ASSIGN_OR_RETURN(transport_, MakeGrpcTransport(*channels_, {.shared_memory = shared_memory_}));
    RouterSide side{.transport = transport_.get()};
    MOE_ASSIGN_OR_RETURN(side.baselines.emplace_back(), ConnectRawGrpcRouter(raw_addresses_, largest_));
    return side;
  }

  void CloseWorker(WorkerId w) override {
    std::unique_ptr<GrpcWorkerServer> server;
    {
      const std::lock_guard lock(mutex_);
      server = std::move(workers_[w.index()].server);
    }
  }

  void Close() override {
    transport_.reset();
    const std::lock_guard lock(mutex_);
    for (const Worker& worker : workers_)
      if (worker.server != nullptr) worker.server->Stop();  // else it would wait for the next router
  }

 private:
  struct Worker {
    std::unique_ptr<GrpcWorkerServer> server;
    std::unique_ptr<RawGrpcWorker> raw;  // until its thread takes it
  };

  const TransportLimits limits_;
  const ExchangeBytes largest_;
  const bool shared_memory_;
  std::vector<std::string> addresses_;
  std::vector<std::string> raw_addresses_;
  std::mutex mutex_;  // of the servers: a worker's thread ends its own, the router's stops all
  std::vector<Worker> workers_;
  std::unique_ptr<GrpcChannels> channels_;
  std::unique_ptr<Transport> transport_;
};

}  // namespace

Result<std::unique_ptr<LocalEnds>> MakeGrpcEnds(const ExchangeBenchOptions& options, int workers, bool shared_memory) {
  auto ends = std::make_unique<GrpcLocalEnds>(options, shared_memory);
  for (int w = 0; w < workers; ++w) MOE_RETURN_IF_ERROR(ends->AddWorker());
  return std::unique_ptr<LocalEnds>(std::move(ends));
}

}  // namespace moe
