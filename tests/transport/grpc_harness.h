// A fleet of gRPC workers in threads of this process, each running RunScriptedWorker behind a server of its own, and
// any number of routers.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/contract/scripted_worker.h"
#include "tests/contract/transport_harness.h"
#include "transport/grpc/grpc_channels.h"
#include "transport/grpc/grpc_transport.h"
#include "transport/grpc/grpc_worker_server.h"

namespace moe {

template <typename T>
T Must(Result<T> result) {
  MOE_CHECK(result.ok(), result.status().message());
  return *std::move(result);
}

/// One worker: a server and the thread of its endpoint.
class GrpcWorkerThread {
 public:
  explicit GrpcWorkerThread(const GrpcWorkerServerOptions& options)
      : server_(Must(GrpcWorkerServer::Start(options))), address_(server_->address()), thread_([this] {
          RunScriptedWorker(server_->endpoint());
          std::unique_ptr<GrpcWorkerServer> ended;  // now: a router may wait for it
          const std::scoped_lock lock(mutex_);
          server_.swap(ended);
        }) {}
  ~GrpcWorkerThread() {
    Stop();
    thread_.join();
  }

  const std::string& address() const { return address_; }
  void Stop() {
    const std::scoped_lock lock(mutex_);
    if (server_ != nullptr) server_->Stop();
  }

 private:
  std::mutex mutex_;
  std::unique_ptr<GrpcWorkerServer> server_;
  const std::string address_;
  std::thread thread_;
};

class GrpcHarness final : public TransportHarness {
 public:
  using ListenAt = std::function<std::string(int worker)>;
  static std::string AtAnyPort(int /*worker*/) { return "127.0.0.1:0"; }
  static std::string AtLocalName(int /*worker*/) { return FreeLocalAddress(); }

  explicit GrpcHarness(const HarnessOptions& options, const ListenAt& listen = &AtAnyPort, bool shared_memory = true)
      : injector_(options.faults) {
    std::vector<std::string> addresses;
    for (int w = 0; w < options.num_workers; ++w) {
      workers_.push_back(std::make_unique<GrpcWorkerThread>(GrpcWorkerServerOptions{
          .listen = listen(w), .limits = options.limits, .tap = &injector_, .worker = WorkerId(w)}));
      addresses.push_back(workers_.back()->address());
    }
    channels_ = Must(GrpcChannels::Make({.workers = addresses, .limits = options.limits}));
    transport_ = Must(MakeGrpcTransport(*channels_, {.shared_memory = shared_memory, .tap = &injector_}));
    MOE_CHECK(channels_->shares_memory() == shared_memory);
  }
  ~GrpcHarness() override {
    transport_.reset();
    workers_.clear();
  }

  Transport& transport() override { return *transport_; }
  bool library_allocates() const override { return !channels_->shares_memory(); }

 private:
  FaultInjector injector_;
  std::vector<std::unique_ptr<GrpcWorkerThread>> workers_;
  std::unique_ptr<GrpcChannels> channels_;
  std::unique_ptr<Transport> transport_;
};

}  // namespace moe
