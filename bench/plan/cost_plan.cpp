#include "bench/plan/cost_plan.h"

#include <algorithm>
#include <cmath>

#include "bench/plan/kv_storage.h"
#include "bench/plan/memory_plan.h"

namespace moe {
namespace {

/// Weights that a decoding step reads: of the decoder, but for the keys and values of the encoder's output, which are
/// in the cache.
bool ReadWhenDecoding(const ModelConfig& config, const PlacedWeight& weight) {
  if (weight.layer < 0) return true;
  const TensorRole role = weight.spec.role;
  return weight.layer >= config.encoder_layers && role != TensorRole::kCrossKey && role != TensorRole::kCrossValue;
}

/// Tables of which a token reads one row.
bool IsLookup(TensorRole role) { return role == TensorRole::kEmbedding || role == TensorRole::kPositions; }

void AddWeights(const ModelConfig& config, const WeightScheme& scheme, double tokens, StepWork& work) {
  ForEachWeight(config, [&](const PlacedWeight& weight) {
    if (!ReadWhenDecoding(config, weight)) return;
    const auto bytes = static_cast<double>(BytesOf(weight, scheme).bytes);
    const auto elements = static_cast<double>(weight.spec.elements());
    if (weight.routed) {
      const GateSpec& gate = config.layers[static_cast<std::size_t>(weight.layer)].moe->gate;
      work.expert_bytes += bytes * ExpectedDistinctExperts(gate.num_experts, gate.experts_per_token, tokens);
      work.expert_flops += 2 * elements * tokens * gate.experts_per_token;
    } else if (IsLookup(weight.spec.role)) {
      const auto rows = static_cast<double>(weight.spec.shape.front());
      work.dense_bytes += bytes / rows * std::min(tokens, rows);
      // A tied table is read once more, as the output matrix that the engine packs from it.
      if (config.tied_embeddings && weight.spec.role == TensorRole::kEmbedding) {
        work.dense_bytes += static_cast<double>(TiedHeadBytes(config, scheme));
        work.dense_flops += 2 * elements * tokens;
      }
    } else {
      work.dense_bytes += bytes;
      work.dense_flops += 2 * elements * tokens;
    }
  });
}

/// Operations of one query head at one position: a score and a share of the values. The absorbed form of a latent reads
/// kv_rank + rope_dim elements for the score and kv_rank for the value.
double HeadFlops(const AttentionSpec& attention) {
  const int score = attention.latent ? attention.latent->kv_rank + attention.latent->rope_dim : attention.head_dim;
  const int value = attention.latent ? attention.latent->kv_rank : attention.head_dim;
  return 2.0 * (score + value);
}

void AddAttention(const ModelConfig& config, const WorkShape& shape, StepWork& work) {
  const auto tokens = static_cast<double>(shape.tokens);
  for (const KvLayer& layer : KvLayers(config)) {
    if (layer.kind == KvKind::kEncoder) continue;
    const LayerSpec& spec = config.layers[static_cast<std::size_t>(layer.layer)];
    const bool cross = layer.kind == KvKind::kCross;
    std::uint64_t positions = cross ? shape.encoder_tokens : shape.context;
    if (layer.kind == KvKind::kWindow) positions = std::min(positions, layer.limit);
    const double seen = tokens * static_cast<double>(positions);
    const AttentionSpec& attention = cross ? *spec.cross_attention : spec.attention;
    work.kv_bytes += seen * static_cast<double>(layer.elements * shape.kv_element_bytes);
    work.attention_flops += seen * attention.num_heads * HeadFlops(attention);
  }
}

/// A row to each worker that hosts one of a token's experts (as many distinct ones as k draws of N give), and a row
/// back for each of its experts.
void AddExchange(const ModelConfig& config, const WorkShape& shape, StepWork& work) {
  if (shape.workers == 0) return;
  for (std::size_t i = static_cast<std::size_t>(config.encoder_layers); i < config.layers.size(); ++i) {
    if (!config.layers[i].moe) continue;
    const int k = config.layers[i].moe->gate.experts_per_token;
    const double hosts = ExpectedDistinctExperts(shape.workers, 1, k);
    work.exchange_bytes +=
        (hosts + k) * static_cast<double>(shape.tokens) * config.hidden * static_cast<double>(shape.exchange_bytes);
  }
}

int DecoderSparseLayers(const ModelConfig& config) {
  int count = 0;
  for (const int layer : config.sparse_layers()) count += layer >= config.encoder_layers ? 1 : 0;
  return count;
}

double MeanDistinct(const ModelConfig& config, double tokens) {
  double sum = 0;
  const int sparse = DecoderSparseLayers(config);
  for (const int layer : config.sparse_layers()) {
    const GateSpec& gate = config.layers[static_cast<std::size_t>(layer)].moe->gate;
    if (layer >= config.encoder_layers)
      sum += ExpectedDistinctExperts(gate.num_experts, gate.experts_per_token, tokens);
  }
  return sparse == 0 ? 0 : sum / sparse;
}

/// The two roofs of one place where work is done.
struct Roofs {
  double memory = 0;
  double compute = 0;
  double larger() const { return std::max(memory, compute); }
};

CostPoint PointOf(const ModelConfig& config, const StepWork& work, std::uint64_t batch, const CostOptions& options) {
  // One device, or several as if they were one; or a router and after it the workers, the slowest of which counts.
  const bool split = options.workers > 0;
  const double bandwidth = options.bandwidth * options.efficiency * (split ? 1 : options.devices);
  const double flops = options.flops * options.efficiency * (split ? 1 : options.devices);
  const double share = split ? 1 / (options.workers * options.balancedness) : 1;
  Roofs router{(work.dense_bytes + work.kv_bytes) / bandwidth, (work.dense_flops + work.attention_flops) / flops};
  Roofs experts{std::min(1.0, share) * work.expert_bytes / bandwidth, std::min(1.0, share) * work.expert_flops / flops};
  if (!split) {
    router = {work.bytes() / bandwidth, work.flops() / flops};
    experts = {};
  }
  CostPoint point{.batch = batch, .work = work};
  point.memory_seconds = router.memory + experts.memory;
  point.compute_seconds = router.compute + experts.compute;
  if (split) {
    point.network_seconds = (options.network > 0 ? work.exchange_bytes / options.network : 0) +
                            options.latency_s * DecoderSparseLayers(config);
  }
  double on_memory = 0;
  double on_compute = 0;
  for (const Roofs& place : {router, experts})
    (place.compute > place.memory ? on_compute : on_memory) += place.larger();
  point.step_seconds = on_memory + on_compute + point.network_seconds;
  point.bound = on_memory >= on_compute ? Roof::kMemory : Roof::kCompute;
  if (point.network_seconds > std::max(on_memory, on_compute)) point.bound = Roof::kNetwork;
  point.tokens_per_s_per_sequence = 1 / point.step_seconds;
  point.tokens_per_s = static_cast<double>(batch) / point.step_seconds;
  constexpr double kSecondsPerHour = 3600;
  constexpr double kMillion = 1e6;
  const int paid = PaidDevices(options);
  point.price_per_million_tokens = options.price_per_hour * paid / kSecondsPerHour / point.tokens_per_s * kMillion;
  point.joules_per_token = options.watts * paid / point.tokens_per_s;
  return point;
}

Status CheckShare(const char* name, double value) {
  if (value > 0 && value <= 1) return Status::Ok();
  return InvalidArgument(name, " ", value, " is not in (0, 1]");
}

Status CheckNotNegative(const char* name, double value) {
  if (std::isfinite(value) && value >= 0) return Status::Ok();
  return InvalidArgument(name, " ", value, " is not a finite number of at least 0");
}

}  // namespace

Status CheckCostOptions(const CostOptions& options) {
  if (options.context < 1 || options.context > kMostContext)
    return InvalidArgument("context ", options.context, " is not in 1 … ", kMostContext);
  if (options.encoder_tokens < 1 || options.encoder_tokens > kMostContext)
    return InvalidArgument("encoder_tokens ", options.encoder_tokens, " is not in 1 … ", kMostContext);
  if (!(options.bandwidth > 0)) return InvalidArgument("bandwidth ", options.bandwidth, " is not above 0");
  if (!(options.flops > 0)) return InvalidArgument("flops ", options.flops, " is not above 0");
  if (options.devices < 1 || options.devices > kMostWorkers)
    return InvalidArgument("devices ", options.devices, " is not in 1 … ", kMostWorkers);
  if (options.workers < 0 || options.workers > kMostWorkers)
    return InvalidArgument("workers ", options.workers, " is not in 0 … ", kMostWorkers);
  if (options.devices > 1 && options.workers > 0)
    return InvalidArgument("devices ", options.devices, " and workers ", options.workers,
                           " exclude each other: either all is shared evenly, or experts have workers");
  MOE_RETURN_IF_ERROR(CheckShare("efficiency", options.efficiency));
  MOE_RETURN_IF_ERROR(CheckShare("balancedness", options.balancedness));
  MOE_RETURN_IF_ERROR(CheckNotNegative("network", options.network));
  MOE_RETURN_IF_ERROR(CheckNotNegative("latency", options.latency_s));
  MOE_RETURN_IF_ERROR(CheckNotNegative("price_per_hour", options.price_per_hour));
  return CheckNotNegative("watts", options.watts);
}

double ExpectedDistinctExperts(int num_experts, int experts_per_token, double tokens) {
  if (num_experts == 0) return 0;
  // expm1 and log1p keep the digits that 1 − (1 − x) loses when k/E is small.
  const double chosen = static_cast<double>(experts_per_token) / num_experts;
  if (chosen >= 1) return tokens > 0 ? num_experts : 0;
  return -num_experts * std::expm1(tokens * std::log1p(-chosen));
}

StepWork CountStepWork(const ModelConfig& config, const WeightScheme& scheme, const WorkShape& shape) {
  StepWork work;
  const auto tokens = static_cast<double>(shape.tokens);
  AddWeights(config, scheme, tokens, work);
  AddAttention(config, shape, work);
  AddExchange(config, shape, work);
  work.distinct_experts = MeanDistinct(config, tokens);
  return work;
}

std::string_view Name(Roof roof) {
  switch (roof) {
    case Roof::kMemory: return "memory";
    case Roof::kCompute: return "compute";
    case Roof::kNetwork: return "network";
  }
  return "unknown";
}

int PaidDevices(const CostOptions& options) { return options.workers > 0 ? options.workers + 1 : options.devices; }

Result<std::vector<CostPoint>> PlanCost(const ModelConfig& config, const WeightScheme& scheme,
                                        const CostOptions& options, const std::vector<std::uint64_t>& batches) {
  MOE_RETURN_IF_ERROR(CheckCostOptions(options));
  std::vector<CostPoint> points;
  for (const std::uint64_t batch : batches) {
    if (batch < 1 || batch > kMostBatch) return InvalidArgument("batch ", batch, " is not in 1 … ", kMostBatch);
    const StepWork work = CountStepWork(config, scheme,
                                        {.tokens = batch,
                                         .context = options.context,
                                         .encoder_tokens = options.encoder_tokens,
                                         .kv_element_bytes = options.kv_element_bytes,
                                         .workers = options.workers,
                                         .exchange_bytes = options.exchange_bytes});
    points.push_back(PointOf(config, work, batch, options));
  }
  return points;
}

}  // namespace moe
