// A router's connections to its workers. They outlive the transports made on them, so that a new transport after a
// failure opens its streams on connections that are still warm, and a control-plane client may share them.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/ids.h"
#include "core/status.h"
#include "rpc/tls.h"
#include "transport/transport.h"

namespace grpc {
class Channel;
}

namespace moe {

struct GrpcChannelsOptions {
  std::vector<std::string> workers;  // as ParseListenAddress reads them, with a port; worker w is rank w + 1
  TransportLimits limits;            // of every transport on these channels
  TlsFiles tls;
  std::chrono::milliseconds keepalive_interval{10'000};  // a ping when nothing has come for so long
  std::chrono::milliseconds keepalive_timeout{5'000};  // the connection is lost when a ping is not answered for so long
};

class GrpcChannels {
 public:
  /// Connects to nobody yet. INVALID_ARGUMENT for an address that is none, limits over gRPC's, TLS files that do not
  /// fit.
  static Result<std::unique_ptr<GrpcChannels>> Make(const GrpcChannelsOptions& options);
  ~GrpcChannels();
  GrpcChannels(const GrpcChannels&) = delete;
  GrpcChannels& operator=(const GrpcChannels&) = delete;

  int num_workers() const { return static_cast<int>(options_.workers.size()); }
  const TransportLimits& limits() const { return options_.limits; }
  const std::string& address(WorkerId worker) const { return options_.workers[worker.index()]; }
  /// "rank 3 (10.0.0.7:5005)", for messages.
  std::string Peer(WorkerId worker) const;

  /// For control-plane calls on the same connection. Safe from any thread.
  const std::shared_ptr<grpc::Channel>& channel(WorkerId worker) const;

  /// Whether the worker is connected right now; starts to connect when it is not. Safe from any thread.
  bool Connected(WorkerId worker) const;

  /// Why the last transport lost this worker (or could not open a stream to it); OK once a later one has opened one.
  /// For whoever decides what to attach next. On the thread that uses the transports.
  const Status& failure(WorkerId worker) const { return failures_[worker.index()]; }

  /// Whether frames of the transport that was made last lie in memory shared with its workers. On the same thread.
  bool shares_memory() const { return shares_memory_; }

  // For the transports made on these channels.
  void SetSharesMemory(bool shares) { shares_memory_ = shares; }
  void SetFailure(WorkerId worker, Status failure) { failures_[worker.index()] = std::move(failure); }
  std::uint64_t NextEpoch() { return ++epoch_; }
  /// Tells this router from others at a worker: random, the same for the life of these channels.
  std::uint64_t router_id() const { return router_id_; }

 private:
  struct State;
  GrpcChannels(GrpcChannelsOptions options, std::unique_ptr<State> state);

  const GrpcChannelsOptions options_;
  const std::unique_ptr<State> state_;
  const std::uint64_t router_id_;
  std::uint64_t epoch_ = 0;
  std::vector<Status> failures_;  // by worker
  bool shares_memory_ = false;
};

}  // namespace moe
