#include "bench/engine/local_workers.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "core/machine.h"
#include "ranks/expert_host.h"
#include "transport/in_process.h"

namespace moe {

Result<RankSetup> PrepareLocalWorkers(RankOptions options, int workers) {
  const int processors = static_cast<int>(AllowedProcessors().size());
  const int pools = workers == 1 ? 1 : workers + 1;
  if (options.threads == 0) options.threads = std::max(1, processors / pools);
  MOE_ASSIGN_OR_RETURN(RankSetup setup, PrepareRank(options, {.topology = {.workers = workers, .embedded = true}}));
  setup.oversubscribed = options.threads * pools > processors;
  return setup;
}

Result<std::unique_ptr<LocalWorkers>> LocalWorkers::Start(const RankSetup& setup, ThreadPool& pool) {
  const int workers = setup.topology.workers;
  MOE_ASSIGN_OR_RETURN(
      InProcessEnds ends,
      MakeInProcess({.limits = setup.transport_limits, .num_workers = workers, .embedded = workers == 1}));
  std::unique_ptr<LocalWorkers> local(new LocalWorkers());
  local->transport_ = std::move(ends.routers.front());
  local->endpoints_ = std::move(ends.workers);
  for (int w = 0; w < workers; ++w) {
    std::unique_ptr<WorkerEndpoint>& endpoint = local->endpoints_[static_cast<std::size_t>(w)];
    local->threads_.emplace_back([&setup, &pool, &endpoint, worker = WorkerId(w), alone = workers == 1] {
      std::optional<ThreadPool> own;
      if (!alone) own.emplace(PoolOptions(setup));
      // The router reports the failure: it is told, and this end closes.
      (void)ServeExperts(setup, worker, alone ? pool : *own, *endpoint);
      endpoint.reset();
    });
  }
  return local;
}

LocalWorkers::~LocalWorkers() { transport_.reset(); }

}  // namespace moe
