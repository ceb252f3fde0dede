#include "bench/engine/local_engine.h"

#include <utility>

#include "core/machine.h"
#include "ranks/expert_host.h"

namespace moe {

Result<KvPlan> PlanCache(const RankSetup& setup, std::size_t sequences, std::size_t tokens) {
  const std::size_t step = setup.exchange.max_tokens;
  KvPlan plan = PlanKv(setup.config, {.tokens = sequences * PagesFor(tokens) * kPageTokens,
                                      .max_sequences = sequences,
                                      .max_step_tokens = step,
                                      .max_chunk = step,
                                      .type = setup.kv_type});
  if (const std::uint64_t memory = MachineMemoryBytes(); plan.bytes > memory)
    return InvalidArgument(sequences, " sequences of ", tokens, " tokens need a KV cache of ", plan.bytes,
                           " bytes, the machine has ", memory);
  return plan;
}

Result<RankSetup> PrepareEmbedded(const RankOptions& options) {
  return PrepareRank(options, {.topology = {.workers = 1, .embedded = true}});
}

LocalEngine::LocalEngine(RankSetup setup) : setup_(std::move(setup)), pool_(PoolOptions(setup_)) {}

Result<std::unique_ptr<LocalEngine>> LocalEngine::Load(RankSetup setup, const KvPlan& kv) {
  std::unique_ptr<LocalEngine> local(new LocalEngine(std::move(setup)));
  MOE_ASSIGN_OR_RETURN(local->worker_,
                       EmbeddedWorker::Start(local->setup_.transport_limits, [rank = local.get()](WorkerEndpoint& end) {
                         // The router reports the failure: it is told.
                         (void)ServeExperts(rank->setup_, WorkerId(0), rank->pool_, end);
                       }));
  Transport& transport = local->worker_->transport();
  MOE_ASSIGN_OR_RETURN(LoadedWeights weights, LoadRouter(local->setup_, local->pool_, transport));
  local->router_.emplace(RouterEngine::Options{.kv = kv}, local->setup_, local->pool_, transport, std::move(weights),
                         nullptr);
  return local;
}

}  // namespace moe
