#include "bench/engine/quality.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "bench/engine/engine_run.h"
#include "bench/engine/local_engine.h"
#include "kernels/kernels.h"

namespace moe {
namespace {

// Sequences that run together, as in a busy server.
constexpr std::size_t kSequences = 32;
// Logits that a divergence needs at a time, of one of the two runs: a model with a large vocabulary gets fewer
// sequences.
constexpr std::size_t kLogitBytes = std::size_t{256} << 20;

std::size_t Longest(const QualityOptions& options) {
  std::size_t longest = std::min(options.window, options.text.size());
  for (const Task& task : options.tasks) longest = std::max(longest, task.prompt.size() + task.answer.size());
  return longest;
}

Status CheckText(const std::string& what, std::string_view text, const ModelConfig& config) {
  for (const std::uint32_t byte : ByteTokens(text))
    if (byte >= static_cast<std::uint32_t>(config.vocab_size))
      return InvalidArgument(what, " has byte ", byte, ", the model's vocabulary ", config.vocab_size,
                             " tokens; a byte is a token id");
  return Status::Ok();
}

Status CheckFit(const QualityOptions& options, const ModelConfig& config) {
  if (config.has_encoder())
    return Unimplemented("model_type \"", config.model_type,
                         "\" is an encoder–decoder, which does not predict the tokens that it is given");
  const auto context = static_cast<std::size_t>(config.context_length);
  if (options.window < 2) return InvalidArgument("--window ", options.window, ": a window has at least 2 tokens");
  if (context > 0 && options.window > context)
    return InvalidArgument("--window ", options.window, " is more than the model's context of ", context, " tokens");
  if (options.text.size() < 2)
    return InvalidArgument("--text has ", options.text.size(), " bytes, at least 2 are needed");
  MOE_RETURN_IF_ERROR(CheckText("--text", options.text, config));
  for (const Task& task : options.tasks) {
    const std::size_t tokens = task.prompt.size() + task.answer.size();
    if (context > 0 && tokens > context)
      return InvalidArgument("--tasks has one of ", tokens, " tokens, the model's context is ", context);
    MOE_RETURN_IF_ERROR(CheckText("--tasks", task.prompt + task.answer, config));
  }
  return Status::Ok();
}

// An engine of one weight type, with what it has to do.
class Judge {
 public:
  static Result<std::unique_ptr<Judge>> Load(const QualityOptions& options, WeightType type, KvType kv_type) {
    RankOptions rank = options.rank;
    rank.weight_type = type;
    if (!IsQuantized(type)) rank.attention_weight_type.reset();
    rank.kv_type = kv_type;
    MOE_ASSIGN_OR_RETURN(RankSetup setup, PrepareEmbedded(rank));
    MOE_ASSIGN_OR_RETURN(const KvPlan kv, PlanCache(setup, kSequences, Longest(options)));
    MOE_ASSIGN_OR_RETURN(std::unique_ptr<LocalEngine> engine, LocalEngine::Load(std::move(setup), kv));
    return std::unique_ptr<Judge>(new Judge(std::move(engine)));
  }

  /// What became of its cache of weights.
  void TellAboutWeightCache(const std::function<void(const std::string&)>& note) const {
    const RankSetup& setup = engine_->setup();
    if (!setup.weight_cache) return;
    const WeightCacheReport report = setup.weight_cache->report();
    for (const std::string& warning : report.Warnings()) note(warning);
    if (!report.Summary().empty()) note(report.Summary());
  }

  const ModelConfig& config() const { return engine_->setup().config; }

  Result<std::vector<std::shared_ptr<SequenceOutput>>> Run(std::vector<SequenceRequest> requests) {
    std::vector<std::unique_ptr<Sequence>> sequences;
    std::vector<std::shared_ptr<SequenceOutput>> outputs(requests.size());
    for (std::size_t i = 0; i < requests.size(); ++i)
      sequences.push_back(MakeSequence(std::move(requests[i]), config(), &outputs[i]));
    MOE_RETURN_IF_ERROR(RunSequences(
        engine_->router(), {.max_sequences = kSequences, .max_step_tokens = engine_->setup().exchange.max_tokens},
        std::move(sequences), [](std::span<const Chunk>, const StepReport&) { return true; }));
    return outputs;
  }

  Result<std::vector<std::shared_ptr<SequenceOutput>>> Score(std::span<const std::string_view> windows, bool logits) {
    std::vector<SequenceRequest> requests;
    for (const std::string_view window : windows)
      requests.push_back({.kind = SequenceKind::kScore,
                          .prompt = ByteTokens(window),
                          .score_logits = logits ? ScoreLogits::kAll : ScoreLogits::kNone});
    return Run(std::move(requests));
  }

 private:
  explicit Judge(std::unique_ptr<LocalEngine> engine) : engine_(std::move(engine)) {}

  std::unique_ptr<LocalEngine> engine_;
};

// The loss on every window, and the divergence from `reference` unless that is null.
Status JudgeText(const QualityOptions& options, Judge& judge, Judge* reference, QualityResult& result) {
  const std::vector<std::string_view> all = Windows(options.text, options.window, options.max_windows);
  const auto vocab = static_cast<std::size_t>(judge.config().vocab_size);
  const std::size_t fits = kLogitBytes / (options.window * vocab * sizeof(float));
  const std::size_t together = std::clamp<std::size_t>(fits, 1, kSequences);
  Mean nll;
  Mean kl;
  for (std::size_t begin = 0; begin < all.size(); begin += together) {
    const std::span windows = std::span(all).subspan(begin, std::min(together, all.size() - begin));
    MOE_ASSIGN_OR_RETURN(const auto outputs, judge.Score(windows, reference != nullptr));
    for (const auto& output : outputs)
      for (const float logprob : output->token_logprobs) nll.Add(-static_cast<double>(logprob));
    if (reference == nullptr) continue;
    MOE_ASSIGN_OR_RETURN(const auto expected, reference->Score(windows, true));
    for (std::size_t w = 0; w < windows.size(); ++w)
      for (std::size_t at = 0; at + 1 < windows[w].size(); ++at)  // the last position predicts nothing that is scored
        kl.Add(KlDivergence(std::span(expected[w]->logits).subspan(at * vocab, vocab),
                            std::span(outputs[w]->logits).subspan(at * vocab, vocab)));
  }
  result.mean_nll = nll.value();
  result.kl = kl.value();
  result.tokens = nll.count();
  return Status::Ok();
}

// A task is answered exactly when the greedy continuation, as long as the answer, is the answer.
Status JudgeTasks(const QualityOptions& options, Judge& judge, QualityResult& result) {
  std::vector<SequenceRequest> requests;
  for (const Task& task : options.tasks)
    requests.push_back(
        {.prompt = ByteTokens(task.prompt), .max_new_tokens = static_cast<std::uint32_t>(task.answer.size())});
  MOE_ASSIGN_OR_RETURN(const auto outputs, judge.Run(std::move(requests)));
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    TaskScore& score = result.tasks[options.tasks[i].language];
    ++score.tasks;
    if (outputs[i]->token_ids == ByteTokens(options.tasks[i].answer)) ++score.right;
  }
  return Status::Ok();
}

}  // namespace

Result<std::vector<QualityResult>> RunQuality(const QualityOptions& options,
                                              const std::function<void(const std::string&)>& note) {
  if (options.weight_types.empty()) return InvalidArgument("--weight-type is empty, at least one is needed");
  RankOptions rank = options.rank;
  rank.weight_type.reset();
  MOE_ASSIGN_OR_RETURN(const RankSetup stored, PrepareEmbedded(rank));
  MOE_RETURN_IF_ERROR(CheckFit(options, stored.config));
  std::unique_ptr<Judge> reference;
  std::vector<QualityResult> results;
  for (const std::optional<WeightType> wanted : options.weight_types) {
    const WeightType type = wanted.value_or(stored.weight_types.mlps);
    note(Cat("loading as ", Name(type)));
    const KvType kv_type = options.rank.kv_type;
    const bool is_reference = type == WeightType::kF32 && kv_type == KvType::kF32;
    if (!reference) {
      MOE_ASSIGN_OR_RETURN(reference, Judge::Load(options, WeightType::kF32, KvType::kF32));
    }
    std::unique_ptr<Judge> own;
    if (!is_reference) {
      MOE_ASSIGN_OR_RETURN(own, Judge::Load(options, type, kv_type));
      own->TellAboutWeightCache(note);
    }
    Judge& judge = is_reference ? *reference : *own;
    QualityResult& result = results.emplace_back(QualityResult{.weight_type = type, .kv_type = kv_type});
    note(Cat("text as ", Name(type)));
    MOE_RETURN_IF_ERROR(JudgeText(options, judge, is_reference ? nullptr : reference.get(), result));
    if (options.tasks.empty()) continue;
    note(Cat("tasks as ", Name(type)));
    MOE_RETURN_IF_ERROR(JudgeTasks(options, judge, result));
  }
  return results;
}

}  // namespace moe
