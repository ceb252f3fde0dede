#include "tests/reference/local_model.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "model/checkpoint.h"

namespace moe {
namespace {

template <typename T>
T Must(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.status().message());
  return *std::move(result);
}

std::vector<float> Copy(MatrixView<const float> view) {
  std::vector<float> values;
  for (std::size_t row = 0; row < view.rows(); ++row)
    values.insert(values.end(), view.row(row).begin(), view.row(row).end());
  return values;
}

void Append(const std::vector<float>& from, std::vector<float>& to) { to.insert(to.end(), from.begin(), from.end()); }

}  // namespace

std::uint32_t ArgMax(std::span<const float> values) {
  return static_cast<std::uint32_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

LocalModel::LocalModel(const std::filesystem::path& folder, const Options& options)
    : kernels_(*options.kernels), pool_(options.threads), config_(Must(ReadModelConfig(folder))) {
  const Checkpoint checkpoint = Must(Checkpoint::Open(folder));
  DenseWeights weights = Must(LoadDenseWeights(config_, checkpoint, config_.stored_type, pool_));
  backend_ = MakeCpuDenseBackend(config_, std::move(weights), kernels_, pool_,
                                 {.kv_pages = options.kv_pages, .max_step_tokens = options.max_step_tokens});
  decoder_.emplace(config_, *backend_, options.max_step_tokens, options.max_step_tokens);
  final_norm_ = backend_->Allocate(options.max_step_tokens, static_cast<std::size_t>(config_.hidden));
  experts_.resize(config_.layers.size());
  for (const int layer : config_.sparse_layers()) {
    for (int expert = 0; expert < config_.num_experts(); ++expert)
      experts_[static_cast<std::size_t>(layer)].push_back(
          Must(LoadExpertWeights(config_, checkpoint, layer, expert, config_.stored_type)));
  }
}

StepTrace LocalModel::Step(std::span<const Part> parts) {
  std::vector<std::uint32_t> ids;
  std::vector<std::uint32_t> positions;
  std::vector<StepBatch::Entry> entries;
  for (const Part& part : parts) {
    Sequence& sequence = *part.sequence;
    const std::size_t end = sequence.length + part.tokens.size();
    while (sequence.pages.size() < KvCache::PagesFor(end)) sequence.pages.push_back(backend_->cache().Allocate());
    entries.push_back({.pages = sequence.pages,
                       .first_row = ids.size(),
                       .rows = part.tokens.size(),
                       .first_position = sequence.length});
    ids.insert(ids.end(), part.tokens.begin(), part.tokens.end());
    for (; sequence.length < end; ++sequence.length) positions.push_back(static_cast<std::uint32_t>(sequence.length));
  }
  const StepBatch batch{.token_ids = ids, .positions = positions, .entries = entries};

  StepTrace trace;
  decoder_->Begin(batch);
  trace.hidden.push_back(Copy(decoder_->residual().view));
  for (std::size_t layer = 0; layer < config_.layers.size(); ++layer) Layer(layer, ids.size(), trace);
  const Tensor normed = final_norm_.Rows(0, ids.size());
  backend_->Norm(NormRole::kFinal, 0, decoder_->residual(), normed);
  trace.final_norm = Copy(normed.view);
  std::vector<std::uint32_t> rows(ids.size());
  std::iota(rows.begin(), rows.end(), 0u);
  trace.logits = Copy(decoder_->Logits(rows));
  return trace;
}

void LocalModel::Layer(std::size_t layer, std::size_t rows, StepTrace& trace) {
  decoder_->AttentionBlock(layer);
  const Tensor in = decoder_->FfnInput(layer);
  StepTrace::Routes& routes = trace.routes.emplace_back();
  if (config_.layers[layer].moe.has_value()) {
    const auto k = static_cast<std::size_t>(config_.experts_per_token());
    routes.ids.resize(rows * k);
    routes.weights.resize(rows * k);
    decoder_->Route(layer, {routes.ids.data(), rows, k}, {routes.weights.data(), rows, k});
    AddExperts(layer, in.view, routes);
  } else {
    decoder_->DenseMlp(layer);
  }
  trace.hidden.push_back(Copy(decoder_->residual().view));
}

void LocalModel::AddExperts(std::size_t layer, MatrixView<const float> in, const StepTrace::Routes& routes) {
  const std::size_t hidden = in.cols();
  const std::size_t k = routes.ids.size() / in.rows();
  std::vector<float> sum(hidden);
  std::vector<float> out(hidden);
  for (std::size_t row = 0; row < in.rows(); ++row) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (std::size_t j = 0; j < k; ++j) {
      const MlpWeights& expert = experts_[layer][static_cast<std::size_t>(routes.ids[row * k + j])];
      std::vector<float> gate_up(expert.gate_up.rows());
      kernels_.MatMulPanels(in.Rows(row, 1), expert.gate_up, 0, expert.gate_up.panels(),
                            {gate_up.data(), 1, gate_up.size()});
      const std::size_t intermediate = gate_up.size() / 2;
      kernels_.SiluMul(std::span(gate_up).first(intermediate), std::span(gate_up).subspan(intermediate));
      kernels_.MatMulPanels({gate_up.data(), 1, intermediate}, expert.down, 0, expert.down.panels(),
                            {out.data(), 1, hidden});
      kernels_.AddScaled(routes.weights[row * k + j], out, sum);
    }
    kernels_.Add(sum, decoder_->residual().view.row(row));
  }
}

StepTrace LocalModel::Prefill(Sequence& sequence, std::span<const std::uint32_t> tokens, std::size_t chunk) {
  StepTrace whole;
  for (std::size_t begin = 0; begin < tokens.size(); begin += chunk) {
    const StepTrace step = Step(sequence, tokens.subspan(begin, std::min(chunk, tokens.size() - begin)));
    whole.hidden.resize(step.hidden.size());
    whole.routes.resize(step.routes.size());
    Append(step.logits, whole.logits);
    Append(step.final_norm, whole.final_norm);
    for (std::size_t i = 0; i < step.hidden.size(); ++i) Append(step.hidden[i], whole.hidden[i]);
    for (std::size_t i = 0; i < step.routes.size(); ++i) {
      Append(step.routes[i].weights, whole.routes[i].weights);
      whole.routes[i].ids.insert(whole.routes[i].ids.end(), step.routes[i].ids.begin(), step.routes[i].ids.end());
    }
  }
  return whole;
}

std::vector<std::uint32_t> LocalModel::Greedy(std::span<const std::uint32_t> prompt, std::size_t count) {
  Sequence sequence;
  const auto vocab = static_cast<std::size_t>(config_.vocab_size);
  std::vector<std::uint32_t> chosen;
  std::vector<std::uint32_t> next(prompt.begin(), prompt.end());
  while (chosen.size() < count) {
    const StepTrace step = Step(sequence, next);
    next = {ArgMax(std::span(step.logits).last(vocab))};
    chosen.push_back(next[0]);
  }
  Release(sequence);
  return chosen;
}

void LocalModel::Release(Sequence& sequence) {
  for (const PageId page : sequence.pages) backend_->cache().Release(page);
  sequence = {};
}

}  // namespace moe
