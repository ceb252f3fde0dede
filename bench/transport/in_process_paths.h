// One process: the router and worker threads, joined by the in-process transport, and its baseline, a plain copy of the
// bytes by one thread.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "bench/transport/exchange_bench.h"

namespace moe {

/// A transport whose ends are all in this process.
class LocalEnds {
 public:
  virtual ~LocalEnds() = default;
  /// What its worker `w` serves. On the thread that serves it, which may wait here for the router.
  virtual Result<WorkerSide> OpenWorker(WorkerId w) = 0;
  /// The router's side, once; while the workers open theirs.
  virtual Result<RouterSide> OpenRouter() = 0;
  /// The worker is done, or has failed: its router is told. On its thread.
  virtual void CloseWorker(WorkerId w) = 0;
  /// The router is done: workers that wait end. What OpenRouter gave is gone by now.
  virtual void Close() = 0;
};

Result<std::unique_ptr<LocalEnds>> MakeInProcessEnds(const ExchangeBenchOptions& options, int workers);

/// Every test on all of `ends`, with a thread for each of so many workers.
Result<std::vector<ExchangeResult>> RunExchangeBenchInProcess(const ExchangeBenchOptions& options, int workers,
                                                              const std::vector<std::unique_ptr<LocalEnds>>& ends,
                                                              const std::function<void(const ExchangeTest&)>& starting);

}  // namespace moe
