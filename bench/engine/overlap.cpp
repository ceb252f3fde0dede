#include "bench/engine/overlap.h"

#include <algorithm>

#include "core/check.h"

namespace moe {

// Two bounds, of which the larger holds. Either the slower side never rests: it has m · L things to do, and what is
// before its first and after its last is the rest of one round. Or a part is back before the others are done with: the
// first part takes L whole rounds, and the m − 1 behind it come at the pace of the slower side.
double OverlappedSeconds(const OverlapTimes& times, int micro_batches, std::size_t layers) {
  MOE_CHECK(micro_batches >= 1 && layers >= 1);
  const double slower = std::max(times.dense, times.expert);
  const double round = times.dense + times.expert + 2 * times.transfer;
  const auto parts = static_cast<double>(micro_batches);
  const auto depth = static_cast<double>(layers);
  return std::max(round + slower * (parts * depth - 1), depth * round + (parts - 1) * slower);
}

void StepPhases::Add(const StepReport& report) {
  MOE_CHECK(report.micro_batches == 1, "phases of micro-batches overlap");
  ++steps_;
  dense_ += report.attention_seconds + report.gate_seconds + report.exchange.dispatch + report.exchange.combine;
  wait_ += report.exchange.wait;
  experts_ += report.exchange.experts;
  busy_.resize(std::max(busy_.size(), report.workers.size()));
  for (std::size_t w = 0; w < report.workers.size(); ++w) busy_[w] += report.workers[w].busy_seconds;
}

StepPhases& StepPhases::operator+=(const StepPhases& other) {
  steps_ += other.steps_;
  dense_ += other.dense_;
  wait_ += other.wait_;
  experts_ += other.experts_;
  busy_.resize(std::max(busy_.size(), other.busy_.size()));
  for (std::size_t w = 0; w < other.busy_.size(); ++w) busy_[w] += other.busy_[w];
  return *this;
}

OverlapTimes StepPhases::times(std::size_t sparse_layers) const {
  MOE_CHECK(steps_ > 0 && sparse_layers > 0);
  const auto layers = static_cast<double>(sparse_layers);
  // Where the router computes shared experts meanwhile, it waits for a part of the workers' computing only; what the
  // busiest one says is left then. It is the smaller of the two otherwise: another worker may be the longest in each
  // layer.
  const double busiest = busy_.empty() ? 0 : *std::ranges::max_element(busy_);
  const double expert = std::max(experts_, busiest);
  return {.dense = mean(dense_) / layers,
          .expert = mean(expert) / layers,
          .transfer = mean(std::max(0.0, wait_ - expert)) / layers / 2};
}

double StepPhases::rest(double step_seconds) const {
  MOE_CHECK(steps_ > 0);
  return std::max(0.0, step_seconds - mean(dense_ + wait_));
}

int MicroBatchesOf(std::size_t rows, int asked) {
  return static_cast<int>(std::min(rows, static_cast<std::size_t>(asked)));
}

std::size_t RowsOfPart(std::size_t rows, int micro_batches) {
  const auto parts = static_cast<std::size_t>(micro_batches);
  return (rows + parts - 1) / parts;
}

OverlapPrediction PredictOverlap(const StepPhases& part, const StepPhases& whole, double whole_step_seconds,
                                 int micro_batches, std::size_t sparse_layers) {
  OverlapPrediction prediction{
      .times = part.times(sparse_layers), .rest_seconds = whole.rest(whole_step_seconds), .layers = sparse_layers};
  prediction.step_seconds = prediction.rest_seconds + OverlappedSeconds(prediction.times, micro_batches, sparse_layers);
  return prediction;
}

}  // namespace moe
