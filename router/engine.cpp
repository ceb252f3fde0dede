#include "router/engine.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/clock.h"
#include "model/step_buffers.h"

namespace moe {
namespace {

std::size_t Rows(std::span<const Chunk> chunks) {
  std::size_t rows = 0;
  for (const Chunk& chunk : chunks) rows += chunk.tokens;
  return rows;
}

}  // namespace

Engine::Engine(Options options, Parts parts)
    : options_(std::move(options)),
      config_(parts.config),
      stacks_(parts.config.stacks()),
      parameters_(CountParameters(parts.config)),
      backend_(parts.backend),
      exchange_(parts.exchange),
      decoder_(parts.config, parts.backend, options_.max_step_tokens, std::min(kLogitRows, options_.max_step_tokens),
               static_cast<std::size_t>(options_.micro_batches.most)),
      head_({.vocab = static_cast<std::size_t>(parts.config.vocab_size), .max_step_tokens = options_.max_step_tokens},
            decoder_, parts.kernels, parts.pool),
      window_(parts.config.sparse_layers().size(), static_cast<std::size_t>(parts.config.num_experts()),
              options_.load_window_steps, options_.load_window_age),
      micro_batches_(options_.max_step_tokens, options_.micro_batches.most),
      choice_(options_.micro_batches, options_.max_step_tokens, options_.on_micro_batches) {
  std::size_t sparse = 0;
  for (const LayerSpec& layer : config_.layers) {
    sparse_index_.push_back(sparse);
    if (layer.moe) ++sparse;
  }
  const auto k = static_cast<std::size_t>(config_.experts_per_token());
  topk_ids_.resize(options_.max_step_tokens * k);
  topk_weights_.resize(options_.max_step_tokens * k);
  left_out_.resize(options_.max_step_tokens);
  unserved_.reserve(options_.max_step_tokens);
  expert_tokens_.resize(sparse * static_cast<std::size_t>(config_.num_experts()));
  MOE_CHECK(sparse == 0 || exchange_ != nullptr);
  if (exchange_ != nullptr) totals_.workers.resize(exchange_->workers().size());
}

Status Engine::Step(std::span<const Chunk> chunks) {
  const TimePoint begin = Clock::now();
  report_ = {};
  flights_ = {};
  unserved_.clear();
  for (const Chunk& chunk : chunks) chunk.sequence->step_expert_rows = 0;
  if (exchange_ != nullptr) exchange_->BeginStep();
  std::ranges::fill(expert_tokens_, 0);
  const auto first_decoded = std::ranges::find(chunks, false, &Chunk::encode);
  const std::span<const Chunk> encoded(chunks.begin(), first_decoded);
  const std::span<const Chunk> decoded(first_decoded, chunks.end());
  if (recorder_ != nullptr) recorder_->BeginStep(Rows(encoded), Rows(decoded));
  for (const StackSpec& stack : stacks_) MOE_RETURN_IF_ERROR(RunStack(stack, stack.encoder ? encoded : decoded));
  // From here on nothing can fail.
  for (Unserved& unserved : unserved_) unserved.sequence->failure = std::move(unserved.why);
  for (const Chunk& chunk : encoded) {
    chunk.sequence->encoded = true;
    backend_.cache().ReleaseTransient(chunk.sequence->kv);
  }
  const HeadTimes head = head_.Run(decoded);

  report_.tokens = Rows(chunks);
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
  Commit(chunks);
  return Status::Ok();
}

void Engine::Commit(std::span<const Chunk> chunks) {
  const TimePoint now = Clock::now();
  if (recorder_ != nullptr)
    recorder_->EndStep(totals_.steps, exchange_ != nullptr ? exchange_->placement_generation() : 0, now);
  window_.Advance(now);
  const auto experts = static_cast<std::size_t>(config_.num_experts());
  for (std::size_t i = 0; i < expert_tokens_.size(); ++i) window_.Add(i / experts, i % experts, expert_tokens_[i]);
  window_.EndStep();
  for (const Chunk& chunk : chunks) {
    Sequence& sequence = *chunk.sequence;
    if (!sequence.failure.ok()) continue;
    sequence.result.expert_rows += sequence.step_expert_rows;
    sequence.result.unique_experts = sequence.num_experts_used;
  }
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
  const std::size_t rows = Rows(chunks);
  std::fill_n(left_out_.begin(), rows, std::uint8_t{0});
  // An encoder's tokens see those after them, and its experts may count those of a whole sequence, so a source cannot
  // be cut. Whole ones could be shared out, but they run once a request and are rarely alike in length.
  const int count = stack.encoder ? 1 : choice_.Next(rows);
  micro_batches_.Cut(chunks, count);
  decoder_.Begin(micro_batches_.batches());
  report_.attention_seconds += Seconds(Clock::now() - begin);
  MOE_RETURN_IF_ERROR(RunLayers(stack, chunks));
  const TimePoint end = Clock::now();
  decoder_.EndStack(stack);
  report_.attention_seconds += Seconds(Clock::now() - end);
  if (!stack.encoder) {
    report_.micro_batches = count;
    report_.micro_batch_trial = choice_.Tries(rows);
    choice_.Note(rows, count, Seconds(Clock::now() - begin));
  }
  return Status::Ok();
}

// Micro-batches follow one another through the layers: while the workers compute for one, the router finishes the layer
// before of the next one and computes its attention.
Status Engine::RunLayers(const StackSpec& stack, std::span<const Chunk> chunks) {
  const std::size_t count = micro_batches_.batches().size();
  for (std::size_t layer = stack.first_layer; layer < stack.first_layer + stack.num_layers; ++layer) {
    for (std::size_t m = 0; m < count; ++m) {
      decoder_.Select(m);
      MOE_RETURN_IF_ERROR(FinishExperts(m));
      MOE_RETURN_IF_ERROR(Layer(layer, m, chunks));
    }
    // All rows of this layer are routed, and none of the next one.
    if (config_.layers[layer].moe) NoteRouting(sparse_index_[layer], chunks);
  }
  for (std::size_t m = 0; m < count; ++m) {
    decoder_.Select(m);
    MOE_RETURN_IF_ERROR(FinishExperts(m));
  }
  return Status::Ok();
}

Status Engine::Layer(std::size_t layer, std::size_t micro_batch, std::span<const Chunk> chunks) {
  const TimePoint begin = Clock::now();
  decoder_.AttentionBlock(layer);
  const Tensor input = decoder_.FfnInput(layer);
  if (!config_.layers[layer].moe) decoder_.DenseFfn(layer);
  report_.attention_seconds += Seconds(Clock::now() - begin);
  return config_.layers[layer].moe ? StartExperts(layer, micro_batch, input, chunks) : Status::Ok();
}

Status Engine::StartExperts(std::size_t layer, std::size_t micro_batch, Tensor input, std::span<const Chunk> chunks) {
  const TimePoint begin = Clock::now();
  const std::size_t first = micro_batches_.first_row(micro_batch);
  const std::size_t rows = input.view.rows();
  const auto k = static_cast<std::size_t>(config_.experts_per_token());
  const MatrixView<std::int32_t> ids(topk_ids_.data() + first * k, rows, k);
  const MatrixView<float> weights(topk_weights_.data() + first * k, rows, k);
  decoder_.Route(layer, ids, weights);
  report_.gate_seconds += Seconds(Clock::now() - begin);
  MOE_CHECK(input.place == MemorySpace::kHost, "a transport of device rows has no implementation yet");
  MOE_RETURN_IF_ERROR(exchange_->Start({.micro_batch = micro_batch,
                                        .first_token = first,
                                        .layer = static_cast<std::uint32_t>(layer),
                                        .sparse_index = sparse_index_[layer],
                                        .scales_input = config_.layers[layer].moe->gate.scales_input,
                                        .in = input.view,
                                        .ids = ids,
                                        .weights = weights,
                                        .left_out = std::span(left_out_).subspan(first, rows)}));
  if (!exchange_->unserved().empty()) LeaveOut(sparse_index_[layer], chunks);
  const TimePoint started = Clock::now();
  flights_[micro_batch] = {.under_way = true, .shared = decoder_.SharedExperts(layer)};
  report_.attention_seconds += Seconds(Clock::now() - started);
  return Status::Ok();
}

Status Engine::FinishExperts(std::size_t micro_batch) {
  Flight& flight = flights_[micro_batch];
  if (!flight.under_way) return Status::Ok();
  flight.under_way = false;
  return exchange_->Finish({.micro_batch = micro_batch,
                            .shared = flight.shared.view,
                            .scale = config_.residual_scale,
                            .residual = decoder_.residual().view});
}

void Engine::LeaveOut(std::size_t sparse_index, std::span<const Chunk> chunks) {
  std::size_t first = 0;
  auto next = exchange_->unserved().begin();
  for (const Chunk& chunk : chunks) {
    const std::size_t end = first + chunk.tokens;
    const bool hit = next != exchange_->unserved().end() && next->token < end;
    if (hit) {
      unserved_.push_back({chunk.sequence, exchange_->WhyUnserved(sparse_index, next->expert)});
      std::fill_n(left_out_.begin() + static_cast<std::ptrdiff_t>(first), chunk.tokens, std::uint8_t{1});
      while (next != exchange_->unserved().end() && next->token < end) ++next;
    }
    first = end;
  }
}

void Engine::NoteRouting(std::size_t sparse_index, std::span<const Chunk> chunks) {
  const auto k = static_cast<std::size_t>(config_.experts_per_token());
  const auto experts = static_cast<std::size_t>(config_.num_experts());
  const std::span<const std::uint32_t> counts = exchange_->expert_tokens();
  for (std::size_t expert = 0; expert < experts; ++expert) {
    expert_tokens_[sparse_index * experts + expert] = counts[expert];
    if (counts[expert] > 0) ++report_.distinct_experts;
  }
  if (recorder_ != nullptr) {
    const std::size_t rows = Rows(chunks);
    recorder_->NoteLayer(sparse_index, {topk_ids_.data(), rows, k}, {topk_weights_.data(), rows, k});
  }
  std::size_t row = 0;
  for (const Chunk& chunk : chunks) {
    Sequence& sequence = *chunk.sequence;
    for (std::size_t i = 0; i < chunk.tokens * k; ++i) {
      if (topk_weights_[row * k + i] == 0) continue;  // not sent
      ++sequence.step_expert_rows;
      const auto expert = static_cast<std::size_t>(topk_ids_[row * k + i]);
      const std::size_t bit = sparse_index * experts + expert;
      if (!sequence.experts_used[bit]) ++sequence.num_experts_used;
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
