// The ranks of a job over the fake NCCL as threads of one process, each with a fake device: how ends are made, whatever
// serves them.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/device/fake_device.h"
#include "tests/transport/nccl/fake_nccl.h"
#include "transport/nccl/nccl_transport.h"

namespace moe {

struct NcclThreadsOptions {
  TransportLimits limits;
  int num_workers = 3;
  std::size_t small_bytes = kNcclSmallBytes;
  bool aborts_are_noticed = true;
  FrameTap* tap = nullptr;
  std::chrono::milliseconds connect_timeout{120'000};
  std::uint64_t seed = 1;
};

class NcclThreads {
 public:
  using Serve = std::function<void(int worker, Result<std::unique_ptr<WorkerEndpoint>> endpoint)>;
  using Change = std::function<void(int rank, NcclTransportOptions& options)>;

  explicit NcclThreads(const NcclThreadsOptions& options) : options_(options), fabric_(options.aborts_are_noticed) {
    for (int rank = 0; rank <= options.num_workers; ++rank) {
      const std::uint64_t seed = options.seed * 100 + static_cast<std::uint64_t>(rank);
      devices_.push_back(std::make_unique<FakeDevice>(FakeDeviceOptions{.seed = seed, .max_records = 2'000}));
      nccl_.push_back(std::make_unique<FakeNccl>(fabric_, *devices_.back(), seed));
    }
  }
  ~NcclThreads() { Join(); }

  FakeDevice& device(int rank) { return *devices_[static_cast<std::size_t>(rank)]; }
  FakeNccl& nccl(int rank) { return *nccl_[static_cast<std::size_t>(rank)]; }

  /// Every worker connects and serves on a thread of its own, while this one makes the router's end.
  Result<std::unique_ptr<Transport>> Connect(const Serve& serve, const Change& change = {}) {
    for (int worker = 0; worker < options_.num_workers; ++worker) {
      const NcclTransportOptions options = OptionsOf(worker + 1, change);
      threads_.emplace_back([this, serve, worker, options] {
        serve(worker, MakeNcclEndpoint(nccl(worker + 1), device(worker + 1), options));
      });
    }
    return MakeNcclTransport(nccl(0), device(0), OptionsOf(0, change));
  }

  /// Waits for the workers to end.
  void Join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  NcclTransportOptions OptionsOf(int rank, const Change& change) {
    NcclTransportOptions options{.limits = options_.limits,
                                 .small_bytes = options_.small_bytes,
                                 .rank = rank,
                                 .num_ranks = options_.num_workers + 1,
                                 .connect_timeout = options_.connect_timeout,
                                 .waiting = {.spin = std::chrono::microseconds(20), .spin_yields = true},
                                 .tap = options_.tap};
    options.share = [this, rank](const std::string& bytes) -> Result<std::string> {
      if (rank == 0) shared_.set_value(bytes);
      return shared_bytes_.get();
    };
    if (change) change(rank, options);
    return options;
  }

  const NcclThreadsOptions options_;
  FakeNcclFabric fabric_;
  std::vector<std::unique_ptr<FakeDevice>> devices_;
  std::vector<std::unique_ptr<FakeNccl>> nccl_;
  std::promise<std::string> shared_;
  std::shared_future<std::string> shared_bytes_ = shared_.get_future().share();
  std::vector<std::thread> threads_;
};

}  // namespace moe
