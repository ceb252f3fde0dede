#include "bench/engine/replay_bench.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "bench/random_stream.h"
#include "bench/statistics.h"
#include "core/aligned_buffer.h"
#include "core/clock.h"
#include "kernels/kernels.h"
#include "model/weight_bytes.h"
#include "placement/figures.h"
#include "router/expert_exchange.h"

namespace moe {
namespace {

// Before anything is counted: memory is faulted in, and threads and workers are awake.
constexpr std::size_t kWarmupSteps = 4;

Status CheckHeader(const TraceHeader& trace, const RankSetup& setup) {
  const TraceHeader own = MakeTraceHeader(setup.config, setup.placement);
  if (trace.num_experts != own.num_experts || trace.experts_per_token != own.experts_per_token)
    return InvalidArgument("the trace is of ", trace.num_experts, " experts of which a token takes ",
                           trace.experts_per_token, ", the model has ", own.num_experts, " and takes ",
                           own.experts_per_token);
  if (trace.layers != own.layers || trace.encoder_layers != own.encoder_layers)
    return InvalidArgument("the trace is of ", trace.layers.size(), " sparse layers (", trace.encoder_layers,
                           " of an encoder), the model has ", own.layers.size(), " (", own.encoder_layers,
                           "), or others");
  return Status::Ok();
}

// Rows of normal deviates, as a norm before the experts leaves them; by Box and Muller.
AlignedBuffer<float> RandomRows(std::size_t elements, std::uint64_t seed) {
  AlignedBuffer<float> rows(elements);
  RandomStream stream({seed, elements});
  const auto unit = [&] { return (static_cast<double>(stream.Next() >> 11) + 1) * 0x1p-53; };
  for (float& value : rows.span())
    value = static_cast<float>(std::sqrt(-2 * std::log(unit())) * std::cos(2 * 3.14159265358979323846 * unit()));
  return rows;
}

StepSeconds SummaryOf(std::vector<double> steps) {
  const std::optional<Summary> summary = Summarize(std::move(steps));
  if (!summary) return {};
  return {.mean = summary->mean, .p50 = summary->p50, .p95 = summary->p95};
}

// Of each part, over the passes.
ExchangeSeconds MedianOf(const std::vector<ExchangeSeconds>& passes) {
  const auto median = [&](const auto& part) {
    std::vector<double> values;
    for (const ExchangeSeconds& pass : passes) values.push_back(part(pass));
    return Summarize(std::move(values))->median;
  };
  ExchangeSeconds seconds{.dispatch = median([](const ExchangeSeconds& pass) { return pass.dispatch; }),
                          .wait = median([](const ExchangeSeconds& pass) { return pass.wait; }),
                          .combine = median([](const ExchangeSeconds& pass) { return pass.combine; })};
  for (std::size_t w = 0; w < passes.front().busy.size(); ++w)
    seconds.busy.push_back(median([w](const ExchangeSeconds& pass) { return pass.busy[w]; }));
  return seconds;
}

// What one pass after the other makes of the trace.
class Replay {
 public:
  Replay(const ReplayOptions& options, const RankSetup& setup, ThreadPool& pool, Transport& transport)
      : options_(options),
        setup_(setup),
        k_(setup.exchange.experts_per_token),
        workers_(static_cast<std::size_t>(transport.num_workers())),
        exchange_(setup.exchange, transport, setup.placement, SimdKernels(), pool, nullptr),
        replicas_(setup.placement),
        plan_({.max_tokens = setup.exchange.max_tokens,
               .experts_per_token = k_,
               .num_experts = setup.exchange.num_experts,
               .workers = transport.num_workers()}),
        counter_(setup.exchange.hidden, setup.exchange.type),
        in_(RandomRows(setup.exchange.max_tokens * setup.exchange.hidden, options.seed)),
        residual_(setup.exchange.max_tokens * setup.exchange.hidden),
        ids_(setup.exchange.max_tokens * k_) {
    if (!options.local.empty()) {
      exchange_.SetLocal(options.local);
      plan_.SetLocal(options.local);
    }
    std::ranges::fill(residual_.span(), 0.0f);
    for (const int layer : setup.config.sparse_layers()) {
      bytes_per_expert_.push_back(ExpertBytes(setup.config, layer, setup.weight_types));
      result_.layers.push_back({.layer = layer,
                                .expert_tokens = std::vector<std::uint64_t>(setup.exchange.num_experts),
                                .worker_rows = std::vector<std::uint64_t>(workers_)});
    }
  }

  Status WarmUp() {
    std::size_t index = 0;
    return Read([&](const TraceHeader& header, const TraceStep& step) {
             return index++ < kWarmupSteps ? RunStep(header, step, /*counts=*/false) : Status::Ok();
           })
        .status();
  }

  /// With the workers and their kernels.
  Status Pass() {
    std::size_t index = 0;
    calibration_ = 0;
    return Read([&](const TraceHeader& header, const TraceStep& step) {
             calibrates_ = Calibrates(index);
             step_seconds_ = 0;
             if (index == seconds_.size()) seconds_.emplace_back();
             MOE_RETURN_IF_ERROR(RunStep(header, step, /*counts=*/true));
             seconds_[index++].push_back(step_seconds_);
             return Status::Ok();
           })
        .status();
  }

  /// Without them: what the plan says, and what that should take.
  Result<ReplayResult> Finish() {
    for (std::vector<double>& of_step : seconds_) medians_.push_back(Summarize(std::move(of_step))->median);
    if (medians_.empty()) return InvalidArgument("trace ", options_.trace.string(), " has no steps");
    std::optional<CostModel> model;
    if (!observed_.empty()) {
      MOE_ASSIGN_OR_RETURN(model, FitModel());
    }
    std::size_t index = 0;
    Result<TraceSummary> trace = Read([&](const TraceHeader& header, const TraceStep& step) {
      PlanStep(header, step, model, index++);
      return Status::Ok();
    });
    if (!trace.ok()) return trace.status();
    result_.trace = *std::move(trace);
    Summarise(model);
    return std::move(result_);
  }

 private:
  bool Calibrates(std::size_t index) const { return index % options_.calibrate == options_.calibrate - 1; }

  // The steps that are replayed.
  Result<TraceSummary> Read(const std::function<Status(const TraceHeader&, const TraceStep&)>& each) {
    std::size_t index = 0;
    bool checked = false;
    return ReadTraceFile(options_.trace, [&](const TraceHeader& header, const TraceStep& step) -> Status {
      if (!checked) MOE_RETURN_IF_ERROR(CheckHeader(header, setup_));
      checked = true;
      if (options_.steps > 0 && index++ >= options_.steps) return Status::Ok();
      const std::size_t rows = std::max(step.head.encoder_rows, step.head.decoder_rows);
      if (rows > setup_.exchange.max_tokens)
        return InvalidArgument("step ", step.head.step, " of the trace has ", rows, " rows, --max-step-tokens is ",
                               setup_.exchange.max_tokens);
      return each(header, step);
    });
  }

  DispatchPlan::Tokens TokensOf(const TraceHeader& header, const TraceStep& step, std::size_t layer) {
    const std::size_t rows = step.rows(header, layer);
    const std::size_t begin = step.begin(header, layer);
    for (std::size_t i = 0; i < rows * k_; ++i) ids_[i] = step.ids[begin + i];
    return {.sparse_index = layer, .ids = {ids_.data(), rows, k_}, .weights = {step.weights.data() + begin, rows, k_}};
  }

  Status RunStep(const TraceHeader& header, const TraceStep& step, bool counts) {
    for (std::size_t layer = 0; layer < result_.layers.size(); ++layer) {
      const DispatchPlan::Tokens tokens = TokensOf(header, step, layer);
      const std::size_t rows = tokens.ids.rows();
      if (rows == 0) continue;
      exchange_.BeginStep();
      MOE_RETURN_IF_ERROR(Exchange(tokens, rows));
      if (counts) Note();
    }
    return Status::Ok();
  }

  Status Exchange(const DispatchPlan::Tokens& tokens, std::size_t rows) {
    const std::size_t hidden = setup_.exchange.hidden;
    const auto layer = static_cast<std::size_t>(result_.layers[tokens.sparse_index].layer);
    MOE_RETURN_IF_ERROR(exchange_.Start({.layer = static_cast<std::uint32_t>(layer),
                                         .sparse_index = tokens.sparse_index,
                                         .scales_input = setup_.config.layers[layer].moe->gate.scales_input,
                                         .in = {in_.data(), rows, hidden},
                                         .ids = tokens.ids,
                                         .weights = tokens.weights}));
    return exchange_.Finish({.residual = {residual_.data(), rows, hidden}});
  }

  void Note() {
    const ExchangeTimes& times = exchange_.times();
    times_.dispatch += times.dispatch;
    times_.wait += times.wait;
    times_.combine += times.combine;
    step_seconds_ += times.dispatch + times.wait + times.combine;
    if (!calibrates_ || calibration_ == CostFit::kMostExchanges) return;
    // Its counts are taken later: the router is to be no busier than in other steps.
    ExchangeSeconds seconds{.dispatch = times.dispatch, .wait = times.wait, .combine = times.combine};
    for (const WorkerStep& worker : exchange_.workers()) seconds.busy.push_back(worker.busy_seconds);
    if (calibration_ == observed_.size()) observed_.emplace_back();
    observed_[calibration_++].push_back(std::move(seconds));
  }

  Result<CostModel> FitModel() {
    CostFit fit;
    std::size_t index = 0;
    const Result<TraceSummary> read = Read([&](const TraceHeader& header, const TraceStep& step) {
      if (!Calibrates(index++)) return Status::Ok();
      for (std::size_t layer = 0; layer < result_.layers.size(); ++layer) {
        const DispatchPlan::Tokens tokens = TokensOf(header, step, layer);
        if (tokens.ids.rows() == 0 || fit.exchanges() == observed_.size()) continue;
        plan_.Build(replicas_, tokens);
        counter_.Count(plan_, workers_, bytes_per_expert_[layer], work_);
        fit.Add(work_, MedianOf(observed_[fit.exchanges()]));
      }
      return Status::Ok();
    });
    if (!read.ok()) return read.status();
    return fit.Fit();
  }

  void PlanStep(const TraceHeader& header, const TraceStep& step, const std::optional<CostModel>& model,
                std::size_t index) {
    double predicted = 0;
    result_.rows += step.head.encoder_rows + step.head.decoder_rows;
    for (std::size_t layer = 0; layer < result_.layers.size(); ++layer) {
      const DispatchPlan::Tokens tokens = TokensOf(header, step, layer);
      if (tokens.ids.rows() == 0) continue;
      const TimePoint begin = Clock::now();
      plan_.Build(replicas_, tokens);
      plan_seconds_ += Seconds(Clock::now() - begin);
      counter_.Count(plan_, workers_, bytes_per_expert_[layer], work_);
      Count(result_.layers[layer]);
      if (model) predicted += model->Seconds(work_);
    }
    if (!model || Calibrates(index)) return;
    predicted_.push_back(predicted);
    measured_.push_back(medians_[index]);
  }

  void Count(ReplayLayer& layer) {
    ++exchanges_;
    result_.request_bytes += work_.request_bytes;
    result_.reply_bytes += work_.reply_bytes;
    std::vector<double> rows;
    for (std::size_t w = 0; w < workers_; ++w) {
      rows.push_back(static_cast<double>(work_.workers[w].pairs));
      layer.worker_rows[w] += work_.workers[w].pairs;
      if (work_.workers[w].pairs > 0) ++result_.messages;
    }
    balancedness_ += Balancedness(std::span<const double>(rows));
    for (std::size_t e = 0; e < layer.expert_tokens.size(); ++e) layer.expert_tokens[e] += plan_.expert_tokens()[e];
  }

  void Summarise(const std::optional<CostModel>& model) {
    result_.steps = medians_.size();
    result_.seconds = std::accumulate(medians_.begin(), medians_.end(), 0.0);
    const double all = times_.dispatch + times_.wait + times_.combine;
    result_.wait_share = times_.wait / all;
    result_.dispatch_share = times_.dispatch / all;
    result_.combine_share = times_.combine / all;
    result_.plan_seconds = plan_seconds_ / static_cast<double>(exchanges_);
    result_.exchange_balancedness = balancedness_ / static_cast<double>(exchanges_);
    result_.step_seconds = SummaryOf(std::move(medians_));
    if (!model || predicted_.empty()) return;
    ReplayPrediction prediction{.model = *model,
                                .calibration_steps = result_.steps - predicted_.size(),
                                .calibration_exchanges = observed_.size(),
                                .steps = predicted_.size()};
    for (std::size_t i = 0; i < predicted_.size(); ++i)
      prediction.mean_absolute_error += std::abs(predicted_[i] / measured_[i] - 1);
    prediction.mean_absolute_error /= static_cast<double>(predicted_.size());
    prediction.measured = SummaryOf(std::move(measured_));
    prediction.predicted = SummaryOf(std::move(predicted_));
    result_.prediction = prediction;
  }

  const ReplayOptions& options_;
  const RankSetup& setup_;
  const std::size_t k_;
  const std::size_t workers_;
  ExpertExchange exchange_;
  const ReplicaTable replicas_;
  DispatchPlan plan_;  // the exchange's own, once more, for its counts
  WorkCounter counter_;
  ExchangeWork work_;
  std::vector<std::uint64_t> bytes_per_expert_;  // by sparse layer
  const AlignedBuffer<float> in_;                // (max_tokens, hidden)
  AlignedBuffer<float> residual_;                // (max_tokens, hidden): read by nobody
  std::vector<std::int32_t> ids_;                // (max_tokens, k)

  bool calibrates_ = false;  // the step that runs
  double step_seconds_ = 0;
  ExchangeTimes times_;
  std::vector<std::vector<double>> seconds_;            // (steps, passes)
  std::vector<double> medians_;                         // (steps)
  std::vector<std::vector<ExchangeSeconds>> observed_;  // (exchanges of steps that calibrate, passes)
  std::size_t calibration_ = 0;                         // of them, in this pass
  std::vector<double> predicted_, measured_;            // of the steps that did not calibrate
  std::size_t exchanges_ = 0;
  double plan_seconds_ = 0;
  double balancedness_ = 0;
  ReplayResult result_;
};

}  // namespace

Status CheckReplay(const ReplayOptions& options) {
  if (options.repetitions == 0) return InvalidArgument("--repetitions is 0, at least 1 is needed");
  if (options.calibrate < 2)
    return InvalidArgument("--calibrate is ", options.calibrate,
                           ": of 2 steps or more one is left out of the prediction, not all");
  return Status::Ok();
}

std::vector<std::uint64_t> ReplayResult::worker_rows() const {
  std::vector<std::uint64_t> sums(layers.empty() ? 0 : layers.front().worker_rows.size());
  for (const ReplayLayer& layer : layers)
    for (std::size_t w = 0; w < sums.size(); ++w) sums[w] += layer.worker_rows[w];
  return sums;
}

double ReplayResult::slowest_over_mean() const { return 1 / Balancedness(worker_rows()); }

double ReplayResult::balancedness() const {
  double sum = 0;
  for (const ReplayLayer& layer : layers) sum += Balancedness(layer.worker_rows);
  return layers.empty() ? 1 : sum / static_cast<double>(layers.size());
}

Result<ReplayResult> RunReplay(const ReplayOptions& options, const RankSetup& setup, ThreadPool& pool,
                               Transport& transport, const std::function<void(std::size_t)>& starting) {
  if (setup.exchange.num_experts == 0) return InvalidArgument("--model has no experts, there is nothing to replay");
  Replay replay(options, setup, pool, transport);
  MOE_RETURN_IF_ERROR(replay.WarmUp());
  for (std::size_t pass = 0; pass < options.repetitions; ++pass) {
    starting(pass);
    MOE_RETURN_IF_ERROR(replay.Pass());
  }
  return replay.Finish();
}

}  // namespace moe
