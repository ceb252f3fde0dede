#include "apps/serve_balancer.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>

#include "model/weight_bytes.h"

namespace moe {
namespace {

/// Says what a verdict comes to when that has changed: its figures differ every time.
class VerdictLog {
 public:
  void operator()(const Verdict& verdict) {
    if (verdict.reason == last_) return;
    last_ = verdict.reason;
    if (verdict.rebalance()) {
      spdlog::warn("should experts move? {}", verdict.sentence);
    } else {
      spdlog::info("should experts move? {}", verdict.sentence);
    }
  }

 private:
  std::optional<VerdictReason> last_;
};

/// Begins to move, and waits for the end.
Status MoveExperts(Router& router, const BalanceAdvice& advice) {
  constexpr std::chrono::milliseconds kBetweenLooks{20};
  MOE_ASSIGN_OR_RETURN(const std::uint64_t generation, router.BeginMigration(advice.placement, advice.expected_gain()));
  for (;;) {
    const MigrationProgress progress = router.migration();
    if (progress.generation == generation && progress.phase == MigrationPhase::kIdle)
      return progress.succeeded ? Status::Ok() : Internal(progress.last_failure);
    if (router.draining()) return Unavailable("the server is draining");
    std::this_thread::sleep_for(kBetweenLooks);
  }
}

}  // namespace

std::uint64_t BytesPerExpert(const ServeSetup& setup) {
  std::uint64_t bytes = 0;
  for (const int layer : setup.config.sparse_layers())
    bytes = std::max(bytes, ExpertBytes(setup.config, layer, setup.weight_types));
  return bytes;
}

Balancer::Options MakeBalancerOptions(const ServeSetup& setup, const RouterMetrics& metrics, Router& router) {
  const ServeOptions& o = setup.options;
  return {.mode = o.rebalance,
          .interval = o.rebalance_interval,
          .verdict = {.least_gain = o.rebalance_gain,
                      .horizon_seconds = Seconds(o.rebalance_horizon),
                      .migration_bytes_per_s = static_cast<double>(o.migration_bandwidth)},
          .policy = {.cooldown = o.rebalance_cooldown},
          .slots = std::max(setup.config.num_experts() + o.redundant_experts, MostSlots(setup.placement)),
          .bytes_per_expert = BytesPerExpert(setup),
          .in_force =
              [&setup, &router] {
                const std::shared_ptr<const Placement> placement = router.placement();
                return placement ? *placement : setup.placement;  // of a model without experts, nothing
              },
          .move =
              [&router](const BalanceAdvice& advice) {
                spdlog::info("moving experts to placement generation {}", advice.placement.generation);
                return MoveExperts(router, advice);
              },
          .on_advice =
              [&metrics, log = VerdictLog()](const BalanceAdvice& advice) mutable {
                metrics.OnVerdict(advice.verdict);
                log(advice.verdict);
              }};
}

}  // namespace moe
