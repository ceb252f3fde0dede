// A transport of ours as a path: the calls that the engine and a worker's loop make, without what they compute.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "bench/transport/exchange_path.h"
#include "transport/transport.h"

namespace moe {

class TransportRouterPath final : public RouterPath {
 public:
  /// `transport` outlives this.
  explicit TransportRouterPath(Transport& transport);

  std::string_view name() const override { return transport_.name(); }
  int num_workers() const { return transport_.num_workers(); }
  Status Exchange(const ExchangeBytes& bytes, int workers) override;
  /// One exchange, not measured, whose requests are `message` to the first `workers` workers, and `others`, as long, to
  /// the others; replies are empty.
  Status Tell(std::span<const std::byte> message, int workers, std::span<const std::byte> others);

 private:
  Status Run(const ExchangeBytes& bytes, int workers);

  Transport& transport_;
  const std::unique_ptr<moe::Exchange> exchange_;
  std::vector<std::size_t> request_bytes_;  // by worker
};

class TransportWorkerPath final : public WorkerPath {
 public:
  /// `endpoint` outlives this.
  explicit TransportWorkerPath(WorkerEndpoint& endpoint) : endpoint_(endpoint) {}
  Status Answer(const ExchangeBytes& bytes) override;
  /// The other half of Tell: copies what the router says into `message`, which has its size. UNAVAILABLE when the
  /// router has left.
  Status Hear(std::span<std::byte> message);

 private:
  Result<IncomingRequest> Receive(std::size_t bytes);

  WorkerEndpoint& endpoint_;
  bool written_ = false;
};

}  // namespace moe
