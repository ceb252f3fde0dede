// A way to move the bytes of an exchange: a transport of ours, or a bare loop that it is measured against. A new
// transport or baseline is a file with the two halves of a path.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace moe {

/// Payload bytes of one exchange, the same for every worker.
struct ExchangeBytes {
  std::size_t request = 0;  // to each worker
  std::size_t reply = 0;    // from each worker
};

/// The router's half. Buffers are made before anything is measured; nothing writes or reads the payload.
class RouterPath {
 public:
  virtual ~RouterPath() = default;
  virtual std::string_view name() const = 0;
  /// Sends to the first `workers` workers and returns when all of them have replied.
  virtual Status Exchange(const ExchangeBytes& bytes, int workers) = 0;
};

/// A worker's half.
class WorkerPath {
 public:
  virtual ~WorkerPath() = default;
  /// Takes one request and replies at once.
  virtual Status Answer(const ExchangeBytes& bytes) = 0;
};

using RouterPaths = std::vector<std::unique_ptr<RouterPath>>;
using WorkerPaths = std::vector<std::unique_ptr<WorkerPath>>;

}  // namespace moe
