#include "router/engine.h"

#include <algorithm>

#include "core/check.h"
#include "core/clock.h"

namespace moe {
namespace {

// Rows whose logits are held at a time: enough to read the head's weights seldom, few enough that a vocabulary of
// 200,000 takes 50 MB.
constexpr std::size_t kLogitRows = 64;

}  // namespace

Engine::Engine(Options options, Parts parts)
    : options_(options),
      config_(parts.config),
      stacks_(parts.config.stacks()),
      parameters_(CountParameters(parts.config)),
      backend_(parts.backend),
      exchange_(parts.exchange),
      decoder_(parts.config, parts.backend, options.max_step_tokens, std::min(kLogitRows, options.max_step_tokens)),
      head_({.vocab = static_cast<std::size_t>(parts.config.vocab_size), .max_step_tokens = options.max_step_tokens},
            decoder_, parts.kernels, parts.pool),
      window_(parts.config.sparse_layers().size(), static_cast<std::size_t>(parts.config.num_experts()),
              options.load_window_steps) {
  token_ids_.reserve(options.max_step_tokens);
  positions_.reserve(options.max_step_tokens);
  entries_.reserve(options.max_step_tokens);
  std::size_t sparse = 0;
  for (const LayerSpec& layer : config_.layers) {
    sparse_index_.push_back(sparse);
    if (layer.moe) ++sparse;
  }
  const auto k = static_cast<std::size_t>(config_.experts_per_token());
  topk_ids_.resize(options.max_step_tokens * k);
  topk_weights_.resize(options.max_step_tokens * k);
  expert_tokens_.resize(sparse * static_cast<std::size_t>(config_.num_experts()));
  MOE_CHECK(sparse == 0 || exchange_ != nullptr);
  if (exchange_ != nullptr) totals_.workers.resize(exchange_->workers().size());
}

Status Engine::Step(std::span<const Chunk> chunks) {
  const TimePoint begin = Clock::now();
  report_ = {};
  if (exchange_ != nullptr) exchange_->BeginStep();
  std::ranges::fill(expert_tokens_, 0);
  const auto first_decoded = std::ranges::find(chunks, false, &Chunk::encode);
  const std::span<const Chunk> encoded(chunks.begin(), first_decoded);
  const std::span<const Chunk> decoded(first_decoded, chunks.end());
  for (const StackSpec& stack : stacks_) MOE_RETURN_IF_ERROR(RunStack(stack, stack.encoder ? encoded : decoded));
  for (const Chunk& chunk : encoded) {
    chunk.sequence->encoded = true;
    backend_.cache().ReleaseTransient(chunk.sequence->kv);
  }
  const HeadTimes head = head_.Run(decoded);
  window_.EndStep();

  for (const Chunk& chunk : chunks) report_.tokens += chunk.tokens;
  report_.touched_parameters = parameters_.Touched(
      {.encoder = !encoded.empty(), .decoder = !decoded.empty(), .distinct_experts = report_.distinct_experts});
  report_.head_seconds = head.logits;
  report_.sample_seconds = head.sample;
  if (exchange_ != nullptr) {
    report_.exchange = exchange_->times();
    report_.workers = exchange_->workers();
  }
  report_.expert_tokens = expert_tokens_;
  report_.seconds = Seconds(Clock::now() - begin);
  AddTotals();
  return Status::Ok();
}

void Engine::AddTotals() {
  ++totals_.steps;
  totals_.distinct_experts += report_.distinct_experts;
  totals_.touched_parameters += report_.touched_parameters;
  for (std::size_t w = 0; w < report_.workers.size(); ++w) {
    totals_.workers[w].rows += report_.workers[w].rows;
    totals_.workers[w].busy_seconds += report_.workers[w].busy_seconds;
  }
}

Status Engine::RunStack(const StackSpec& stack, std::span<const Chunk> chunks) {
  if (chunks.empty()) return Status::Ok();
  const TimePoint begin = Clock::now();
  MakeBatch(chunks);
  decoder_.Begin(batch_);
  report_.attention_seconds += Seconds(Clock::now() - begin);
  for (std::size_t i = 0; i < stack.num_layers; ++i) MOE_RETURN_IF_ERROR(Layer(stack.first_layer + i, chunks));
  const TimePoint end = Clock::now();
  decoder_.EndStack(stack);
  report_.attention_seconds += Seconds(Clock::now() - end);
  return Status::Ok();
}

void Engine::MakeBatch(std::span<const Chunk> chunks) {
  token_ids_.clear();
  positions_.clear();
  entries_.clear();
  for (const Chunk& chunk : chunks) {
    const Sequence& sequence = *chunk.sequence;
    const std::vector<std::uint32_t>& source = sequence.request.source;
    const std::span<const std::uint32_t> tokens = chunk.encode ? source : sequence.tokens;
    const std::size_t first = chunk.encode ? 0 : sequence.computed;
    MOE_CHECK(chunk.tokens > 0 && first + chunk.tokens <= tokens.size());
    entries_.push_back({.kv = &sequence.kv,
                        .first_row = token_ids_.size(),
                        .rows = chunk.tokens,
                        .first_position = first,
                        .source_positions = source.size()});
    for (std::size_t position = first; position < first + chunk.tokens; ++position) {
      token_ids_.push_back(tokens[position]);
      positions_.push_back(static_cast<std::uint32_t>(position));
    }
  }
  MOE_CHECK(token_ids_.size() <= options_.max_step_tokens);
  batch_ = {.token_ids = token_ids_, .positions = positions_, .entries = entries_};
}

Status Engine::Layer(std::size_t layer, std::span<const Chunk> chunks) {
  const TimePoint begin = Clock::now();
  decoder_.AttentionBlock(layer);
  const Tensor input = decoder_.FfnInput(layer);
  if (!config_.layers[layer].moe) decoder_.DenseFfn(layer);
  report_.attention_seconds += Seconds(Clock::now() - begin);
  return config_.layers[layer].moe ? SparseFfn(layer, input, chunks) : Status::Ok();
}

Status Engine::SparseFfn(std::size_t layer, Tensor input, std::span<const Chunk> chunks) {
  const TimePoint begin = Clock::now();
  const std::size_t rows = input.view.rows();
  const auto k = static_cast<std::size_t>(config_.experts_per_token());
  const MatrixView<std::int32_t> ids(topk_ids_.data(), rows, k);
  const MatrixView<float> weights(topk_weights_.data(), rows, k);
  decoder_.Route(layer, ids, weights);
  report_.gate_seconds += Seconds(Clock::now() - begin);
  MOE_CHECK(input.place == MemorySpace::kHost, "a transport of device rows has no implementation yet");
  MOE_RETURN_IF_ERROR(exchange_->Start({.layer = static_cast<std::uint32_t>(layer),
                                        .sparse_index = sparse_index_[layer],
                                        .scales_input = config_.layers[layer].moe->gate.scales_input,
                                        .in = input.view,
                                        .ids = ids,
                                        .weights = weights}));
  const TimePoint started = Clock::now();
  const Tensor shared = decoder_.SharedExperts(layer);
  report_.attention_seconds += Seconds(Clock::now() - started);
  MOE_RETURN_IF_ERROR(exchange_->Finish(
      {.shared = shared.view, .scale = config_.residual_scale, .residual = decoder_.residual().view}));
  NoteRouting(sparse_index_[layer], chunks);
  return Status::Ok();
}

void Engine::NoteRouting(std::size_t sparse_index, std::span<const Chunk> chunks) {
  const auto k = static_cast<std::size_t>(config_.experts_per_token());
  const auto experts = static_cast<std::size_t>(config_.num_experts());
  const std::span<const std::uint32_t> counts = exchange_->expert_tokens();
  for (std::size_t expert = 0; expert < experts; ++expert) {
    expert_tokens_[sparse_index * experts + expert] = counts[expert];
    window_.Add(sparse_index, expert, counts[expert]);
    if (counts[expert] > 0) ++report_.distinct_experts;
  }
  std::size_t row = 0;
  for (const Chunk& chunk : chunks) {
    Sequence& sequence = *chunk.sequence;
    for (std::size_t i = 0; i < chunk.tokens * k; ++i) {
      if (topk_weights_[row * k + i] == 0) continue;  // not sent
      ++sequence.result.expert_rows;
      const auto expert = static_cast<std::size_t>(topk_ids_[row * k + i]);
      const std::size_t bit = sparse_index * experts + expert;
      if (!sequence.experts_used[bit]) ++sequence.result.unique_experts;
      sequence.experts_used[bit] = true;
    }
    if (sequence.request.return_routing) {
      const std::size_t position = chunk.encode ? 0 : sequence.computed;
      const std::size_t at = sequence.output->routing_shape.begin(sparse_index) + position * k;
      std::copy_n(topk_ids_.data() + row * k, chunk.tokens * k, sequence.output->routing_ids.data() + at);
      std::copy_n(topk_weights_.data() + row * k, chunk.tokens * k, sequence.output->routing_weights.data() + at);
    }
    row += chunk.tokens;
  }
}

}  // namespace moe
