#include "apps/serve_setup.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace moe {
namespace {

std::vector<int> AllowedProcessors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> allowed;
  if (sched_getaffinity(0, sizeof(set), &set) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(static_cast<std::size_t>(cpu), &set)) allowed.push_back(cpu);
  return allowed;
}

// Chooses the number of threads, and keeps this process to its own processors where there are enough for all.
void ArrangeThreads(const RankPlace& place, ServeSetup& setup) {
  const std::vector<int> allowed = AllowedProcessors();
  const int processors = std::max<int>(1, static_cast<int>(allowed.size()));
  const int share = std::max(1, processors / place.node_local_size);
  setup.threads = setup.options.threads > 0 ? setup.options.threads : share;
  const int wanted = setup.threads * place.node_local_size;
  setup.oversubscribed = wanted > processors;
  if (setup.oversubscribed || place.node_local_size == 1) return;
  cpu_set_t slice;
  CPU_ZERO(&slice);
  const int first = place.node_local_rank * setup.threads;
  for (int i = first; i < first + setup.threads; ++i)
    CPU_SET(static_cast<std::size_t>(allowed[static_cast<std::size_t>(i)]), &slice);
  // A refusal costs speed, not correctness.
  (void)sched_setaffinity(0, sizeof(slice), &slice);
}

Result<Placement> MakePlacement(const ServeSetup& setup) {
  const PlacementShape shape{.num_experts = setup.config.num_experts(),
                             .workers = setup.topology.workers,
                             .layers = setup.config.sparse_layers(),
                             .redundant_experts = setup.options.redundant_experts};
  const auto named = [](Result<Placement> placement) -> Result<Placement> {
    if (!placement.ok()) return placement.status().WithContext("--redundant-experts");
    return placement;
  };
  if (setup.options.placement == "linear") return named(LinearPlacement(shape));
  if (setup.options.placement == "round_robin") return named(RoundRobinPlacement(shape));
  if (shape.redundant_experts > 0)
    return InvalidArgument("--redundant-experts ", shape.redundant_experts,
                           ": a placement file says itself who is replicated");
  MOE_ASSIGN_OR_RETURN(Placement placement, ReadPlacementFile(setup.options.placement));
  if (const Status status = CheckPlacement(placement, shape); !status.ok())
    return status.WithContext(Cat("placement file ", setup.options.placement));
  return placement;
}

}  // namespace

Result<ServeSetup> PrepareServe(const ServeOptions& options, const RankPlace& place) {
  ServeSetup setup{.options = options, .topology = place.topology, .rank = place.rank};
  ArrangeThreads(place, setup);
  MOE_ASSIGN_OR_RETURN(setup.config, ReadModelConfig(options.model));
  MOE_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::Open(options.model));
  setup.checkpoint = std::make_unique<Checkpoint>(std::move(checkpoint));
  setup.parameters = CountParameters(setup.config);
  setup.weight_type = options.weight_type.value_or(setup.config.stored_type);
  MOE_ASSIGN_OR_RETURN(setup.placement, MakePlacement(setup));
  setup.exchange = {.max_tokens = options.max_step_tokens,
                    .hidden = static_cast<std::size_t>(setup.config.hidden),
                    .num_experts = static_cast<std::size_t>(setup.config.num_experts()),
                    .experts_per_token = static_cast<std::size_t>(setup.config.experts_per_token()),
                    .type = options.exchange_type,
                    .timeout = options.exchange_timeout};
  setup.transport_limits = ExpertExchange::Limits(setup.exchange);
  return setup;
}

ThreadPool::Options PoolOptions(const ServeSetup& setup) {
  // Spinning pays where every thread has a processor of its own: a wake-up costs 5–50 µs, and a layer has several.
  constexpr int kSpinMicroseconds = 20;
  return {.threads = setup.threads, .spin_microseconds = setup.oversubscribed ? 0 : kSpinMicroseconds};
}

std::string HostName() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? std::string(name.data()) : "unknown";
}

}  // namespace moe
