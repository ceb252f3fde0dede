// Transport ends of one process, with every worker running RunScriptedWorker on a thread of its own.
#pragma once

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "tests/contract/scripted_worker.h"
#include "tests/contract/transport_contract.h"
#include "transport/in_process.h"

namespace moe {

/// Ends whose construction cannot fail.
inline InProcessEnds MakeEnds(const InProcessOptions& options) {
  Result<InProcessEnds> ends = MakeInProcess(options);
  MOE_CHECK(ends.ok(), ends.status().message());
  return *std::move(ends);
}

class ThreadHarness final : public TransportHarness {
 public:
  ThreadHarness(std::vector<std::unique_ptr<Transport>> routers, std::vector<std::unique_ptr<WorkerEndpoint>> workers)
      : routers_(std::move(routers)) {
    for (auto& worker : workers) {
      threads_.emplace_back([endpoint = std::move(worker)]() mutable {
        RunScriptedWorker(*endpoint);
        endpoint.reset();  // on this thread, and now: a router may wait for it
      });
    }
  }
  explicit ThreadHarness(InProcessEnds ends) : ThreadHarness(std::move(ends.routers), std::move(ends.workers)) {}
  ~ThreadHarness() override {
    routers_.clear();
    for (std::thread& thread : threads_) thread.join();
  }

  Transport& transport() override { return *routers_.front(); }
  Transport& router(std::size_t r) { return *routers_[r]; }

 private:
  std::vector<std::unique_ptr<Transport>> routers_;
  std::vector<std::thread> threads_;
};

}  // namespace moe
