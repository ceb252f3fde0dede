// The worker's end of the data plane over gRPC: the requests of several routers, each with its own epoch, sequences and
// buffers, in turn.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "transport/exchange_checks.h"
#include "transport/frame_tap.h"
#include "transport/grpc/worker_streams.h"
#include "transport/transport.h"

namespace moe {

class GrpcEndpoint final : public WorkerEndpoint {
 public:
  struct Options {
    TransportLimits limits;  // the most that a router may ask for
    int max_routers = 1;
    FrameTap* tap = nullptr;
    WorkerId worker;  // for the tap
  };

  /// `streams` outlives this.
  GrpcEndpoint(WorkerStreams& streams, const Options& options);
  ~GrpcEndpoint() override;

  const TransportLimits& limits() const override { return options_.limits; }
  bool attached(int router) const override;
  Result<std::optional<IncomingRequest>> Receive(Deadline deadline) override;
  std::span<std::byte> reply_buffer(const IncomingRequest& request) override;
  Status Reply(const IncomingRequest& request, std::size_t bytes) override;

 private:
  struct Router;

  Status Handle(const WorkerStreams::Event& event);
  void Open(std::uint64_t stream, const Result<StreamHello>& hello);
  Status Admit(std::uint64_t stream, const Result<StreamHello>& hello);
  void ReadOn(Router& router);
  Status TakeRequest(Router& router, FrameMessage& message);
  Result<bool> ReadRequest(Router& router, FrameMessage& message);
  Status RefuseFrame(Router& router, const Status& why);
  std::optional<IncomingRequest> NextArrived();
  bool SendFrame(Router& router, FrameKind kind, std::size_t slot, std::size_t bytes);
  void EndIfServed(Router& router);
  void SeeOff(std::uint64_t stream);
  void Detach(Router& router);
  Router* Find(std::uint64_t stream);
  Router& RouterOf(const IncomingRequest& request);

  const Options options_;
  WorkerStreams& streams_;
  std::vector<std::unique_ptr<Router>> routers_;  // by place, which is IncomingRequest::router; none where it is free
  std::size_t next_place_ = 0;                    // where the next search starts: routers take turns
  bool stopped_ = false;
  Status wrong_frame_;  // found while replying; for the next Receive
};

}  // namespace moe
