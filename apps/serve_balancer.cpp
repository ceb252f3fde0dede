#include "apps/serve_balancer.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>

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

}  // namespace

std::uint64_t BytesPerExpert(const ServeSetup& setup) {
  std::uint64_t bytes = 0;
  for (const int layer : setup.config.sparse_layers())
    bytes = std::max(bytes, ExpertBytes(setup.config, layer, setup.weight_types));
  return bytes;
}

Balancer::Options MakeBalancerOptions(const ServeSetup& setup, const RouterMetrics& metrics) {
  const ServeOptions& o = setup.options;
  return {.mode = o.rebalance,
          .interval = o.rebalance_interval,
          .verdict = {.least_gain = o.rebalance_gain,
                      .horizon_seconds = Seconds(o.rebalance_horizon),
                      .migration_bytes_per_s = static_cast<double>(o.migration_bandwidth)},
          .policy = {.cooldown = o.rebalance_cooldown},
          .slots = std::max(setup.config.num_experts() + o.redundant_experts, MostSlots(setup.placement)),
          .bytes_per_expert = BytesPerExpert(setup),
          .in_force = [&setup] { return setup.placement; },
          .on_advice =
              [&metrics, log = VerdictLog()](const BalanceAdvice& advice) mutable {
                metrics.OnVerdict(advice.verdict);
                log(advice.verdict);
              }};
}

}  // namespace moe
