// The worker's end of the data plane over gRPC: the requests of several routers, each with its own epoch, sequences and
// buffers, in turn.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "transport/exchange_checks.h"
#include "transport/frame_tap.h"
#include "transport/grpc/worker_memory.h"
#include "transport/grpc/worker_streams.h"
#include "transport/transport.h"

namespace moe {

class GrpcEndpoint final : public WorkerEndpoint {
 public:
  struct Options {
    TransportLimits limits;  // the most that a router may ask for
    int max_routers = 1;
    bool shared_memory = true;  // is taken where a router offers it
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

  /// From any thread: Receive looks at its streams soon.
  void Wake() { bell_.Ring(); }

 private:
  struct Router;

  Result<std::optional<IncomingRequest>> TakeNext();
  Result<std::optional<IncomingRequest>> TakeNextOf(std::size_t place);
  Ringing WhoRings() const;
  Result<bool> HandleNext(Deadline deadline);
  Status Handle(const WorkerStreams::Event& event);
  void Open(std::uint64_t stream, const Result<StreamHello>& hello);
  Status Admit(std::uint64_t stream, const Result<StreamHello>& hello);
  void ReadOn(Router& router);
  Status TakeRequest(Router& router, FrameMessage& message);
  Result<bool> ReadRequest(Router& router, FrameMessage& message);
  Status RefuseFrame(Router& router, const Status& why);
  Status Refuse(Router& router, const Status& why);
  Status ReplyInStream(Router& router, std::size_t number, std::size_t bytes);
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
  WorkerBell bell_;
  bool stopped_ = false;
  Status wrong_frame_;  // found while replying; for the next Receive
};

}  // namespace moe
