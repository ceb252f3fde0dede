// What micro-batches should win: the time of a step whose parts take turns with the dense side and the expert side, as
// predicted from what one part takes alone. (Idea: MegaScale-Infer, arXiv 2504.02263.) docs/benchmarks.md restates it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "router/engine.h"

namespace moe {

/// Seconds of one micro-batch in one sparse layer, nothing else in flight.
struct OverlapTimes {
  double dense = 0;     // T_a: of the router
  double expert = 0;    // T_e: of the longest worker
  double transfer = 0;  // T_c: one way
};

/// Seconds of all `layers` (at least 1) over `micro_batches` (at least 1) equal parts. Each side does one thing at a
/// time, in the order of layers, then parts; any number of transfers may be under way.
double OverlappedSeconds(const OverlapTimes& times, int micro_batches, std::size_t layers);

/// Sums over steps, none of them cut, of what the router did and waited for.
class StepPhases {
 public:
  void Add(const StepReport& report);
  StepPhases& operator+=(const StepPhases& other);

  std::uint64_t steps() const { return steps_; }
  /// Of a layer, from the mean step of a model with so many sparse layers (at least 1).
  OverlapTimes times(std::size_t sparse_layers) const;
  /// Of the mean step, all that is of no layer's: head, sampling, and what is between steps when a step takes
  /// `step_seconds`.
  double rest(double step_seconds) const;

 private:
  double mean(double sum) const { return sum / static_cast<double>(steps_); }

  std::uint64_t steps_ = 0;
  double dense_ = 0;          // attention, dense MLPs and shared experts, gate, dispatch, combine
  double wait_ = 0;           // for workers
  double experts_ = 0;        // of wait_, at most the longest worker's own computing
  std::vector<double> busy_;  // by worker, as they say
};

/// Into how many micro-batches a step of `rows` rows is cut when `asked` are asked for.
int MicroBatchesOf(std::size_t rows, int asked);

/// Of a step of that shape the rows of the largest part.
std::size_t RowsOfPart(std::size_t rows, int micro_batches);

/// What a step in `micro_batches` is made of, and what follows.
struct OverlapPrediction {
  OverlapTimes times;
  double rest_seconds = 0;
  std::size_t layers = 0;
  double step_seconds = 0;

  /// Share of `measured` by which the prediction is above it; below 0: under it.
  double error(double measured) const { return step_seconds / measured - 1; }
};

/// `part`: steps as large as a micro-batch. `whole`: the steps themselves, uncut, of `whole_step_seconds` each.
OverlapPrediction PredictOverlap(const StepPhases& part, const StepPhases& whole, double whole_step_seconds,
                                 int micro_batches, std::size_t sparse_layers);

}  // namespace moe
