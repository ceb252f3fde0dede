#include "bench/engine/step_work.h"

#include "model/tensor_specs.h"
#include "model/weight_bytes.h"

namespace moe {
namespace {

constexpr double kOperationsAWeight = 2;  // a multiplication and an addition

Operations OperationsWith(double weights, WeightType type) {
  const double operations = kOperationsAWeight * weights;
  return IsQuantized(type) ? Operations{.int8 = operations} : Operations{.fp32 = operations};
}

// Elements that a position has in the cache of a layer.
double CachedWidth(const AttentionSpec& attention) {
  if (attention.latent) return attention.latent->kv_rank + attention.latent->rope_dim;
  return 2.0 * attention.num_kv_heads * attention.head_dim;
}

// Multiply-adds of a row with a position that it sees: the score, and the value's part of the sum. Latent attention
// has its up-projections absorbed into queries and outputs, so that both are as wide as the latent.
double ScoreAndValueWidth(const AttentionSpec& attention) {
  if (attention.latent) return attention.num_heads * (2.0 * attention.latent->kv_rank + attention.latent->rope_dim);
  return 2.0 * attention.num_heads * attention.head_dim;
}

// What a decoder's cross attention reads: all of the source.
RowRange SourceOf(const RowRange& range) { return {.rows = range.source}; }

double CrossOperations(const AttentionSpec& cross, const RowRange& range) {
  return kOperationsAWeight * static_cast<double>(range.rows) * static_cast<double>(range.source) *
         ScoreAndValueWidth(cross);
}

}  // namespace

std::size_t StepShape::rows() const {
  std::size_t sum = 0;
  for (const RowRange& range : ranges) sum += range.rows;
  return sum;
}

StepShape ShapeOf(std::span<const Chunk> chunks, std::span<const std::uint64_t> expert_tokens) {
  StepShape shape{.expert_tokens = expert_tokens};
  for (const Chunk& chunk : chunks) {
    const Sequence& sequence = *chunk.sequence;
    shape.ranges.push_back({.first = chunk.encode ? 0 : sequence.computed - chunk.tokens,
                            .rows = chunk.tokens,
                            .encode = chunk.encode,
                            .source = chunk.encode ? 0 : sequence.request.source.size()});
    // Once its prompt is computed, every step brings a token.
    if (!chunk.encode && sequence.generated() > 0) ++shape.logit_rows;
  }
  return shape;
}

Operations& Operations::operator+=(const Operations& other) {
  fp32 += other.fp32;
  int8 += other.int8;
  return *this;
}

Work& Work::operator+=(const Work& other) {
  steps += other.steps;
  rows += other.rows;
  weight_bytes += other.weight_bytes;
  kv_bytes += other.kv_bytes;
  operations += other.operations;
  distinct_experts += other.distinct_experts;
  return *this;
}

double KvBytesRead(const AttentionSpec& attention, KvType type, const RowRange& range) {
  const std::size_t positions = range.first + range.rows - attention.FirstVisible(range.first);
  return static_cast<double>(positions) * CachedWidth(attention) * static_cast<double>(BytesPerElement(type));
}

double AttentionOperations(const AttentionSpec& attention, const RowRange& range) {
  double visible = 0;  // (row, position) pairs
  for (std::size_t row = range.first; row < range.first + range.rows; ++row) {
    const std::size_t end = attention.causal ? row + 1 : range.first + range.rows;
    visible += static_cast<double>(end - attention.FirstVisible(row));
  }
  return kOperationsAWeight * visible * ScoreAndValueWidth(attention);
}

WorkMeter::WorkMeter(const ModelConfig& config, const WeightTypes& types, KvType kv_type)
    : config_(config), kv_type_(kv_type) {
  const auto operations = [&](const TensorSpec& spec) {
    return OperationsWith(static_cast<double>(spec.elements()), HeldType(spec, types));
  };
  const auto add = [&](Dense& part, const TensorSpec& spec) {
    part.bytes += static_cast<double>(HeldBytes(spec, types));
    part.operations += operations(spec);
  };
  for (const TensorSpec& spec : OuterTensors(config)) {
    // Of tables and of the output matrix, steps do not take all, or not always.
    if (spec.part == ModelPart::kNorms) add(dense(spec.role == TensorRole::kEncoderNorm), spec);
    if (spec.role == TensorRole::kEmbedding)
      embedding_row_bytes_ = static_cast<double>(HeldBytes(spec, types)) / config.vocab_size;
  }
  head_bytes_ = static_cast<double>(HeadBytes(config, types));
  head_operations_ = OperationsWith(static_cast<double>(config.vocab_size) * config.hidden, types.attention);
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    const bool encoder = layer < config.encoder_layers;
    for (const TensorSpec& spec : LayerTensors(config, layer)) {
      // Keys and values of the source are made once, of the encoder's rows.
      const bool of_source = spec.role == TensorRole::kCrossKey || spec.role == TensorRole::kCrossValue;
      add(dense(encoder || of_source), spec);
    }
    if (!config.layers[static_cast<std::size_t>(layer)].moe) continue;
    Expert& expert = experts_.emplace_back();
    expert.bytes = static_cast<double>(ExpertBytes(config, layer, types));
    for (const TensorSpec& spec : ExpertTensors(config, layer, 0)) expert.operations += operations(spec);
  }
}

Work WorkMeter::Of(const StepShape& step) const {
  Work work{.steps = 1, .rows = step.rows()};
  double encoded = 0;
  double decoded = 0;
  for (const RowRange& range : step.ranges) (range.encode ? encoded : decoded) += static_cast<double>(range.rows);
  if (encoded > 0) work.weight_bytes += encoder_.bytes;
  if (decoded > 0) work.weight_bytes += decoder_.bytes;
  work.weight_bytes += (encoded + decoded) * embedding_row_bytes_;
  if (step.logit_rows > 0) work.weight_bytes += head_bytes_;
  work.operations += encoder_.operations * encoded;
  work.operations += decoder_.operations * decoded;
  work.operations += head_operations_ * static_cast<double>(step.logit_rows);

  const auto num_experts = static_cast<std::size_t>(config_.num_experts());
  for (std::size_t sparse = 0; sparse < experts_.size(); ++sparse) {
    for (const std::uint64_t tokens : step.expert_tokens.subspan(sparse * num_experts, num_experts)) {
      if (tokens == 0) continue;
      ++work.distinct_experts;
      work.weight_bytes += experts_[sparse].bytes;
      work.operations += experts_[sparse].operations * static_cast<double>(tokens);
    }
  }
  for (const StackSpec& stack : config_.stacks()) {
    for (const LayerSpec& layer : std::span(config_.layers).subspan(stack.first_layer, stack.num_layers)) {
      for (const RowRange& range : step.ranges) {
        if (range.encode != stack.encoder) continue;
        work.kv_bytes += KvBytesRead(layer.attention, kv_type_, range);
        work.operations.fp32 += AttentionOperations(layer.attention, range);
        if (!layer.cross_attention) continue;
        work.kv_bytes += KvBytesRead(*layer.cross_attention, kv_type_, SourceOf(range));
        work.operations.fp32 += CrossOperations(*layer.cross_attention, range);
      }
    }
  }
  return work;
}

}  // namespace moe
