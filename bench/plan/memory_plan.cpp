#include "bench/plan/memory_plan.h"

#include <algorithm>

#include "placement/named_placement.h"

namespace moe {
namespace {

Result<Placement> PlaceExperts(const ModelConfig& config, const MemoryOptions& options, int workers) {
  return MakeNamedPlacement({.num_experts = config.num_experts(),
                             .workers = workers,
                             .layers = config.sparse_layers(),
                             .redundant_experts = options.redundant_experts},
                            options.placement, options.loads);
}

/// What one worker holds of a placement.
struct Hosted {
  std::uint64_t slots = 0;
  std::uint64_t bytes = 0;
};

std::vector<Hosted> HostedBy(const Placement& placement, const WeightBytes& weights, int workers) {
  std::vector<Hosted> hosted(static_cast<std::size_t>(workers));
  for (const LayerPlacement& layer : placement.layers) {
    const std::uint64_t each = weights.expert_each[static_cast<std::size_t>(layer.layer)];
    for (std::size_t w = 0; w < hosted.size(); ++w) {
      hosted[w].slots += layer.slots[w].size();
      hosted[w].bytes += layer.slots[w].size() * each;
    }
  }
  return hosted;
}

/// The parts that every number of workers shares.
struct Shares {
  WeightBytes weights;
  std::uint64_t kv = 0;
  std::uint64_t router_buffers = 0;
  std::uint64_t worker_buffers = 0;
  std::uint64_t exchange = 0;  // between the router and one worker
};

RankMemory RouterRank(const Shares& shares, int workers) {
  return {.role = "router",
          .weights = shares.weights.dense + shares.weights.tied_head_copy,
          .kv = shares.kv,
          .activations = shares.router_buffers,
          .exchange = shares.exchange * static_cast<std::uint64_t>(workers)};
}

RankMemory WorkerRank(const Shares& shares, const Hosted& hosted, int rank) {
  return {.rank = rank,
          .role = "worker",
          .slots = hosted.slots,
          .weights = hosted.bytes,
          .activations = shares.worker_buffers,
          .exchange = shares.exchange};
}

/// One process; its router and its worker share their exchange buffers.
RankMemory EmbeddedRank(const Shares& shares, const Hosted& hosted) {
  RankMemory rank = RouterRank(shares, 1);
  rank.role = "router and experts";
  rank.slots = hosted.slots;
  rank.weights += hosted.bytes;
  rank.activations += shares.worker_buffers;
  return rank;
}

std::vector<RankMemory> Ranks(const Shares& shares, const std::vector<Hosted>& hosted, bool embedded) {
  if (embedded) return {EmbeddedRank(shares, hosted.front())};
  std::vector<RankMemory> ranks = {RouterRank(shares, static_cast<int>(hosted.size()))};
  for (const Hosted& worker : hosted) ranks.push_back(WorkerRank(shares, worker, static_cast<int>(ranks.size())));
  return ranks;
}

bool AllFit(const std::vector<RankMemory>& ranks, std::uint64_t usable) {
  return std::all_of(ranks.begin(), ranks.end(), [usable](const RankMemory& r) { return r.total() <= usable; });
}

Result<std::vector<RankMemory>> RanksFor(const ModelConfig& config, const Shares& shares, const MemoryOptions& options,
                                         int workers) {
  const int hosts = std::max(workers, 1);
  MOE_ASSIGN_OR_RETURN(const Placement placement, PlaceExperts(config, options, hosts));
  return Ranks(shares, HostedBy(placement, shares.weights, hosts), workers == 0);
}

/// Tries one process, then ever more workers, beginning where the experts' bytes alone would fit.
std::optional<int> SmallestWorkers(const ModelConfig& config, const Shares& shares, const MemoryOptions& options,
                                   std::uint64_t usable) {
  if (NamesPlacementFile(options.placement)) return std::nullopt;
  const auto fits = [&](int workers) {
    const auto ranks = RanksFor(config, shares, options, workers);
    return ranks.ok() && AllFit(*ranks, usable);
  };
  if (fits(0)) return 0;
  const std::uint64_t fixed = shares.worker_buffers + shares.exchange;
  if (fixed >= usable || RouterRank(shares, 1).total() > usable) return std::nullopt;
  const std::uint64_t least = shares.weights.experts() / (usable - fixed);
  const auto experts = static_cast<std::uint64_t>(config.num_experts());
  for (std::uint64_t workers = std::max<std::uint64_t>(1, least); workers <= experts; ++workers) {
    if (RouterRank(shares, static_cast<int>(workers)).total() > usable) return std::nullopt;
    if (fits(static_cast<int>(workers))) return static_cast<int>(workers);
  }
  return std::nullopt;
}

/// The largest context whose cache leaves the router within `usable`; `others` is all that it holds beside.
std::optional<std::uint64_t> LongestContext(const ModelConfig& config, KvShape shape, std::uint64_t others,
                                            std::uint64_t usable) {
  const auto fits = [&](std::uint64_t context) {
    shape.context = context;
    const Result<KvBytes> kv = CountKvBytes(config, shape);
    return kv.ok() && others <= usable && kv->total <= usable - others;
  };
  if (!fits(1)) return std::nullopt;
  std::uint64_t fitting = 1;
  std::uint64_t beyond = kMostContext + 1;
  while (beyond - fitting > 1) {
    const std::uint64_t middle = fitting + (beyond - fitting) / 2;
    (fits(middle) ? fitting : beyond) = middle;
  }
  return fitting;
}

// Every rank's sum, and the sum over all ranks, stays far below 2^64: at most four terms, of which all but the buffers
// are there once or spread over the ranks.
Status CheckPlannable(const char* what, std::uint64_t bytes) {
  constexpr std::uint64_t kMost = std::uint64_t{1} << 60;
  if (bytes <= kMost) return Status::Ok();
  return InvalidArgument("the ", what, " take ", bytes, " bytes, plans go up to ", kMost);
}

Status CheckRange(const char* name, std::uint64_t value, std::uint64_t most) {
  if (value >= 1 && value <= most) return Status::Ok();
  return InvalidArgument(name, " ", value, " is not in 1 … ", most);
}

}  // namespace

Status CheckMemoryOptions(const MemoryOptions& options) {
  MOE_RETURN_IF_ERROR(CheckRange("context", options.kv.context, kMostContext));
  MOE_RETURN_IF_ERROR(CheckRange("encoder_tokens", options.kv.encoder_tokens, kMostContext));
  MOE_RETURN_IF_ERROR(CheckRange("batch", options.kv.batch, kMostBatch));
  MOE_RETURN_IF_ERROR(CheckRange("prefill_chunk", options.kv.prefill_chunk, kMostStepTokens));
  MOE_RETURN_IF_ERROR(CheckRange("step_tokens", options.kv.step_tokens, kMostStepTokens));
  MOE_RETURN_IF_ERROR(CheckRange("page_tokens", options.kv.page_tokens, kMostStepTokens));
  MOE_RETURN_IF_ERROR(CheckRange("max_step_tokens", options.step.max_step_tokens, kMostStepTokens));
  if (options.workers < 0 || options.workers > kMostWorkers)
    return InvalidArgument("workers ", options.workers, " is not in 0 … ", kMostWorkers);
  if (options.redundant_experts < 0 || options.redundant_experts > kMostRedundant)
    return InvalidArgument("redundant_experts ", options.redundant_experts, " is not in 0 … ", kMostRedundant);
  if (options.device_bytes == 0) return InvalidArgument("device_memory 0: at least a byte was expected");
  if (!(options.usable_share > 0 && options.usable_share <= 1))
    return InvalidArgument("memory_share ", options.usable_share, " is not in (0, 1]");
  return Status::Ok();
}

Result<MemoryPlan> PlanMemory(const ModelConfig& config, const WeightScheme& scheme, const MemoryOptions& options) {
  MOE_RETURN_IF_ERROR(CheckMemoryOptions(options));
  MemoryPlan plan{.weights = CountWeightBytes(config, scheme)};
  MOE_RETURN_IF_ERROR(CheckPlannable("weights", plan.weights.total));
  MOE_ASSIGN_OR_RETURN(plan.kv, CountKvBytes(config, options.kv));
  MOE_RETURN_IF_ERROR(CheckPlannable("KV cache", plan.kv.total));
  plan.usable_bytes = static_cast<std::uint64_t>(static_cast<double>(options.device_bytes) * options.usable_share);

  const bool sparse = config.num_experts() > 0;
  Shares shares{.weights = plan.weights,
                .kv = plan.kv.total,
                .router_buffers = SumOf(RouterBuffers(config, options.step)),
                .worker_buffers = sparse ? SumOf(WorkerBuffers(config, options.step)) : 0};
  MOE_ASSIGN_OR_RETURN(shares.exchange, ExchangeBytes(config, options.step));
  MOE_RETURN_IF_ERROR(CheckPlannable("buffers of all workers",
                                     (shares.worker_buffers + shares.exchange) *
                                         static_cast<std::uint64_t>(std::max(options.workers, config.num_experts()))));

  MOE_ASSIGN_OR_RETURN(plan.ranks, RanksFor(config, shares, options, options.workers));
  plan.fits = AllFit(plan.ranks, plan.usable_bytes);
  for (const RankMemory& rank : plan.ranks) plan.all_ranks += rank.total();
  plan.smallest_workers = SmallestWorkers(config, shares, options, plan.usable_bytes);
  const auto longest = [&](const RankMemory& router) {
    return LongestContext(config, options.kv, router.total() - router.kv, plan.usable_bytes);
  };
  plan.longest_context = longest(plan.ranks.front());
  if (plan.smallest_workers) {
    MOE_ASSIGN_OR_RETURN(const std::vector<RankMemory> ranks,
                         RanksFor(config, shares, options, *plan.smallest_workers));
    plan.longest_context_at_smallest = longest(ranks.front());
  }
  return plan;
}

}  // namespace moe
