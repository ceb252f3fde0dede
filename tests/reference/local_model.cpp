#include "tests/reference/local_model.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "kernels/panel_bias.h"
#include "model/checkpoint.h"
#include "model/mlp_activation.h"
#include "model/tensor_check.h"

namespace moe {
namespace {

std::vector<float> Copy(MatrixView<const float> view) {
  std::vector<float> values;
  for (std::size_t row = 0; row < view.rows(); ++row)
    values.insert(values.end(), view.row(row).begin(), view.row(row).end());
  return values;
}

template <typename T>
void Append(const std::vector<T>& from, std::vector<T>& to) {
  to.insert(to.end(), from.begin(), from.end());
}

/// Adds the rows of a later step.
void Append(const StepTrace& step, StepTrace& whole) {
  whole.hidden.resize(step.hidden.size());
  whole.routes.resize(step.routes.size());
  Append(step.logits, whole.logits);
  Append(step.final_norm, whole.final_norm);
  for (std::size_t i = 0; i < step.hidden.size(); ++i) Append(step.hidden[i], whole.hidden[i]);
  for (std::size_t i = 0; i < step.routes.size(); ++i) {
    Append(step.routes[i].ids, whole.routes[i].ids);
    Append(step.routes[i].weights, whole.routes[i].weights);
  }
}

/// The rows of a step, and the memory behind its batch.
struct Rows {
  std::vector<std::uint32_t> ids;
  std::vector<std::uint32_t> positions;
  std::vector<StepBatch::Entry> entries;

  void Add(const LocalModel::Part& part, std::size_t first_position) {
    entries.push_back({.kv = &part.sequence->kv,
                       .first_row = ids.size(),
                       .rows = part.tokens.size(),
                       .first_position = first_position,
                       .source_positions = part.sequence->source});
    ids.insert(ids.end(), part.tokens.begin(), part.tokens.end());
    for (std::size_t i = 0; i < part.tokens.size(); ++i)
      positions.push_back(static_cast<std::uint32_t>(first_position + i));
  }
  StepBatch batch() const { return {.token_ids = ids, .positions = positions, .entries = entries}; }
};

/// w x + bias.
void Multiply(const Kernels& kernels, const PackedMatrix& w, std::span<const float> bias, std::span<const float> x,
              std::span<float> y) {
  const MatrixView<float> out(y.data(), 1, y.size());
  kernels.MatMulPanels({x.data(), 1, x.size()}, w, 0, w.panels(), out);
  AddPanelBias(kernels, bias, 0, out);
}

}  // namespace

std::uint32_t ArgMax(std::span<const float> values) {
  return static_cast<std::uint32_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

LocalModel::LocalModel(const std::filesystem::path& folder, const Options& options)
    : kernels_(*options.kernels), options_(options), pool_(options.threads), config_(*ReadModelConfig(folder)) {
  const Checkpoint checkpoint = *Checkpoint::Open(folder);
  const WeightType type = CheckTensors(config_, checkpoint)->exact_type;
  DenseWeights weights = *LoadDenseWeights(config_, checkpoint, type, pool_);
  const KvPlan plan = PlanKv(config_, {.tokens = options.max_sequences * PagesFor(options.max_positions) * kPageTokens,
                                       .max_sequences = options.max_sequences,
                                       .max_step_tokens = options.max_step_tokens,
                                       .max_chunk = options.max_step_tokens,
                                       .type = options.kv_type});
  backend_ = MakeCpuDenseBackend(config_, std::move(weights), kernels_, pool_,
                                 {.kv = plan, .max_step_tokens = options.max_step_tokens});
  decoder_.emplace(config_, *backend_, options.max_step_tokens, options.max_step_tokens);
  final_norm_ = backend_->Allocate(options.max_step_tokens, static_cast<std::size_t>(config_.hidden));
  experts_.resize(config_.layers.size());
  for (const int layer : config_.sparse_layers()) {
    for (int expert = 0; expert < config_.num_experts(); ++expert)
      experts_[static_cast<std::size_t>(layer)].push_back(*LoadExpertWeights(config_, checkpoint, layer, expert, type));
  }
}

void LocalModel::Reserve(const KvDemand& demand, Sequence& sequence) {
  sequence.kv = KvCache::MakePages(config_, demand);
  if (!backend_->cache().Reserve(demand, sequence.kv)) throw std::runtime_error("more sequences than max_sequences");
}

StepTrace LocalModel::Encode(std::span<const Part> sources) {
  Rows rows;
  for (const Part& part : sources) {
    Sequence& sequence = *part.sequence;
    Reserve({.tokens = options_.max_positions, .source = part.tokens.size()}, sequence);
    sequence.source = part.tokens.size();
    backend_->cache().ExtendSource(sequence.source, sequence.kv);
    rows.Add(part, 0);
  }
  const StepBatch batch = rows.batch();
  const StepTrace trace = RunStack(config_.stacks().front(), batch);
  for (const Part& part : sources) backend_->cache().ReleaseTransient(part.sequence->kv);
  return trace;
}

StepTrace LocalModel::Step(std::span<const Part> parts) {
  Rows rows;
  for (const Part& part : parts) {
    Sequence& sequence = *part.sequence;
    const std::size_t end = sequence.length + part.tokens.size();
    if (end > options_.max_positions) throw std::runtime_error("a sequence longer than max_positions");
    if (sequence.kv.groups.empty()) Reserve({.tokens = options_.max_positions}, sequence);
    backend_->cache().ExtendTokens(sequence.length, end, sequence.kv);
    rows.Add(part, sequence.length);
    sequence.length = end;
  }
  const StepBatch batch = rows.batch();
  StepTrace trace = RunStack(config_.stacks().back(), batch);
  std::vector<std::uint32_t> all(rows.ids.size());
  std::iota(all.begin(), all.end(), 0u);
  trace.logits = Copy(decoder_->Logits(all));
  return trace;
}

StepTrace LocalModel::RunStack(const StackSpec& stack, const StepBatch& batch) {
  const std::size_t rows = batch.token_ids.size();
  StepTrace trace;
  decoder_->Begin(batch);
  trace.hidden.push_back(Copy(decoder_->residual().view));
  for (std::size_t i = 0; i < stack.num_layers; ++i) Layer(stack.first_layer + i, rows, trace);
  const Tensor normed = final_norm_.Rows(0, rows);
  backend_->Norm(stack.encoder ? NormRole::kEncoder : NormRole::kFinal, 0, decoder_->residual(), normed);
  trace.final_norm = Copy(normed.view);
  decoder_->EndStack(stack);
  return trace;
}

void LocalModel::Layer(std::size_t layer, std::size_t rows, StepTrace& trace) {
  decoder_->AttentionBlock(layer);
  const Tensor in = decoder_->FfnInput(layer);
  StepTrace::Routes& routes = trace.routes.emplace_back();
  if (config_.layers[layer].moe) {
    const auto k = static_cast<std::size_t>(config_.experts_per_token());
    routes.ids.resize(rows * k);
    routes.weights.resize(rows * k);
    decoder_->Route(layer, {routes.ids.data(), rows, k}, {routes.weights.data(), rows, k});
    AddExperts(layer, in.view, routes);
  } else {
    decoder_->DenseFfn(layer);
  }
  trace.hidden.push_back(Copy(decoder_->residual().view));
}

void LocalModel::AddExperts(std::size_t layer, MatrixView<const float> in, const StepTrace::Routes& routes) {
  const bool scales_input = config_.layers[layer].moe->gate.scales_input;
  const MatrixView<const float> shared = decoder_->SharedExperts(layer).view;
  const std::size_t k = routes.ids.size() / in.rows();
  std::vector<float> sum(in.cols());
  std::vector<float> out(in.cols());
  for (std::size_t row = 0; row < in.rows(); ++row) {
    std::ranges::fill(sum, 0.0f);
    for (std::size_t j = 0; j < k; ++j) {
      const float weight = routes.weights[row * k + j];
      if (weight == 0) continue;
      std::vector<float> x(in.row(row).begin(), in.row(row).end());
      if (scales_input)
        for (float& value : x) value *= weight;
      RunExpert(layer, static_cast<std::size_t>(routes.ids[row * k + j]), x, out);
      kernels_.AddScaled(scales_input ? 1 : weight, out, sum);
    }
    if (shared.rows() > 0) kernels_.Add(shared.row(row), sum);
    kernels_.AddScaled(config_.residual_scale, sum, decoder_->residual().view.row(row));
  }
}

void LocalModel::RunExpert(std::size_t layer, std::size_t expert, std::span<const float> in, std::span<float> out) {
  const MlpWeights& weights = experts_[layer][expert];
  const MlpSpec& mlp = config_.layers[layer].moe->expert;
  std::vector<float> up(weights.up.rows());
  Multiply(kernels_, weights.up, weights.up_bias, in, up);
  std::vector<float> inner = up;
  if (mlp.gated()) Multiply(kernels_, weights.gate, weights.gate_bias, in, inner);
  Activate(mlp, kernels_, inner, mlp.gated() ? std::span<const float>(up) : std::span<const float>());
  Multiply(kernels_, weights.down, weights.down_bias, inner, out);
}

StepTrace LocalModel::Prefill(Sequence& sequence, std::span<const std::uint32_t> tokens, std::size_t chunk) {
  StepTrace whole;
  for (std::size_t begin = 0; begin < tokens.size(); begin += chunk)
    Append(Step(sequence, tokens.subspan(begin, std::min(chunk, tokens.size() - begin))), whole);
  return whole;
}

LocalModel::Continuation LocalModel::Continue(std::span<const std::uint32_t> prompt, std::size_t count) {
  Sequence sequence;
  const auto vocab = static_cast<std::size_t>(config_.vocab_size);
  std::vector<std::uint32_t> next(prompt.begin(), prompt.end());
  if (config_.has_encoder()) {
    Encode(sequence, prompt);
    next = {config_.decoder_start_token.value()};
  }
  Continuation continuation;
  while (continuation.tokens.size() < count) {
    const StepTrace step = Step(sequence, next);
    continuation.logits.emplace_back(step.logits.end() - static_cast<std::ptrdiff_t>(vocab), step.logits.end());
    next = {ArgMax(continuation.logits.back())};
    continuation.tokens.push_back(next[0]);
  }
  Release(sequence);
  return continuation;
}

void LocalModel::Release(Sequence& sequence) {
  if (!sequence.kv.groups.empty()) backend_->cache().Release(sequence.kv);
  sequence = {};
}

}  // namespace moe
