// A worker's loop: receive rows, run the experts that they ask for, send the rows back. Keeps no state of a request.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "experts/expert_backend.h"
#include "experts/expert_views.h"
#include "model/dispatch_format.h"
#include "transport/transport.h"

namespace moe {

/// What a worker has done so far; written by its loop, read by metrics and services. Relaxed: each is a count of its
/// own, and nothing is read through them.
struct WorkerTotals {
  std::atomic<std::uint64_t> exchanges{0};
  std::atomic<std::uint64_t> rows{0};  // (token, expert) pairs
  std::atomic<std::uint64_t> busy_ns{0};
  std::atomic<std::uint64_t> received_bytes{0};
  std::atomic<std::uint64_t> sent_bytes{0};
};

/// One dispatch, when it has been computed.
struct DispatchFigures {
  std::uint64_t rows = 0;   // (token, expert) pairs
  double ffn_seconds = 0;   // of the experts
  double busy_seconds = 0;  // and of sorting and copying rows
};

struct WorkerOptions {
  std::size_t hidden = 0;
  std::size_t max_pairs = 0;  // of one dispatch
  std::size_t max_slots = 0;  // of a layer, in any placement
};

class Worker {
 public:
  /// Called once per dispatch, by the loop.
  using Observer = std::function<void(const DispatchFigures&)>;
  /// What a worker says of itself, but for what it hosts.
  using Describe = std::function<WorkerDescription()>;

  /// Everything but `options` must outlive the worker; `totals` is what services show.
  Worker(WorkerOptions options, Describe describe, ExpertViews& views, ExpertBackend& backend, ThreadPool& pool,
         WorkerTotals& totals, Observer observer = {});

  /// Serves until a router says shutdown, or no router is left (both OK), or the transport fails. A wrong frame is the
  /// failure of its router's end alone.
  Status Run(WorkerEndpoint& endpoint);

  /// Answers one request into `reply`; returns its bytes.
  std::size_t Answer(MessageKind kind, const IncomingRequest& request, std::span<std::byte> reply);

 private:
  Result<std::size_t> Dispatch(const IncomingRequest& request, std::span<std::byte> reply);
  /// Of a later placement.
  Result<std::size_t> Prepare(const IncomingRequest& request, std::span<std::byte> reply);
  Result<std::size_t> TellPrepared(const IncomingRequest& request, std::span<std::byte> reply);
  Result<std::size_t> Drop(const IncomingRequest& request, std::span<std::byte> reply);
  Status SortBySlot(const DispatchReader& dispatch, std::size_t slots);

  const WorkerOptions options_;
  const Describe describe_;
  ExpertViews& views_;
  ExpertBackend& backend_;
  ThreadPool& pool_;  // copies rows
  const Observer observer_;
  WorkerTotals& totals_;

  AlignedBuffer<float> in_;             // (max_pairs, hidden), sorted by slot
  AlignedBuffer<float> out_;            // (max_pairs, hidden)
  std::vector<std::uint32_t> offsets_;  // (slots + 1)
  std::vector<std::uint32_t> sorted_;   // (max_pairs): where pair i lies among the sorted rows
};

/// `description` with what is hosted in it.
WorkerDescription WithHosted(WorkerDescription description, const HostedExperts& hosted);

/// What a worker that could not load does: it tells every router why, until one says shutdown.
Status ServeFailure(WorkerEndpoint& endpoint, const Status& failure);

}  // namespace moe
