// An engine in this process, whole: router, experts and what joins them. The one place where benchmarks make one.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>

#include "core/status.h"
#include "core/thread_pool.h"
#include "model/kv_cache.h"
#include "ranks/embedded.h"
#include "ranks/rank_setup.h"
#include "ranks/router_engine.h"

namespace moe {

/// A KV cache with room for `tokens` positions of each of `sequences`; INVALID_ARGUMENT when the machine could not hold
/// it.
Result<KvPlan> PlanCache(const RankSetup& setup, std::size_t sequences, std::size_t tokens);

/// What PrepareRank gives for a process that is router and worker.
Result<RankSetup> PrepareEmbedded(const RankOptions& options);

class LocalEngine {
 public:
  /// Of an embedded rank.
  static Result<std::unique_ptr<LocalEngine>> Load(RankSetup setup, const KvPlan& kv);
  LocalEngine(const LocalEngine&) = delete;
  LocalEngine& operator=(const LocalEngine&) = delete;

  const RankSetup& setup() const { return setup_; }
  RouterEngine& router() { return *router_; }

 private:
  explicit LocalEngine(RankSetup setup);

  const RankSetup setup_;
  ThreadPool pool_;
  std::unique_ptr<EmbeddedWorker> worker_;
  std::optional<RouterEngine> router_;
};

}  // namespace moe
