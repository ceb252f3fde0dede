// How many micro-batches a step is cut into: as asked for, or as measured. Two in flight hide the exchange and let both
// sides compute at a time, but each reads the weights of the experts that it touches, so that what both touch is read
// twice. Which of the two weighs more depends on the machine, the network, the model and the rows of a step.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "router/micro_batches.h"

namespace moe {

/// What was chosen for steps of [first_rows, end_rows) rows.
struct MicroBatchDecision {
  std::size_t first_rows = 0;
  std::size_t end_rows = 0;
  int count = 1;
  std::array<double, kMaxMicroBatches> row_seconds = {};  // median over the trials of 1, 2, … micro-batches
};

/// Steps are alike that have rows of one size class: between two powers of two. The first steps of a class are trials
/// that take turns with 1 … most; then the fastest is kept, and after a while tried again, because sequences grow and
/// machines get other work. Used by the engine thread alone; allocates nothing.
class MicroBatchChoice {
 public:
  struct Options {
    int most = 1;
    bool measure = false;  // else always `most`
  };
  /// Told of a class's first decision, and of every other one.
  using Observer = std::function<void(const MicroBatchDecision&)>;

  /// Trials of each count, an odd number: a median of five stands two disturbed steps.
  static constexpr std::size_t kTrials = 5;
  /// Steps of a class between two rounds of trials: with `most` 2, five of a thousand run the slower way.
  static constexpr std::size_t kKept = 1000;
  /// More micro-batches must be faster by this share: below it is noise.
  static constexpr double kGain = 0.02;

  MicroBatchChoice(Options options, std::size_t max_rows, Observer observer);

  /// For a step of so many rows; at most as many.
  int Next(std::size_t rows) const;
  /// Whether a step of so many rows would be a trial.
  bool Tries(std::size_t rows) const;
  /// A step of so many rows took `seconds` in that many micro-batches, which Next has said.
  void Note(std::size_t rows, int count, double seconds);
  /// Forgets all choices; from now on, what a class's trials choose is kept for good.
  void DecideOnce();
  /// From now on always `count`, at most options.most; nothing is tried.
  void Fix(int count);

 private:
  struct SizeClass {
    std::size_t steps = 0;  // of this round
    int chosen = 1;
    bool decided = false;
    std::array<std::array<double, kTrials>, kMaxMicroBatches> row_seconds = {};
  };

  std::size_t trials() const { return kTrials * static_cast<std::size_t>(options_.most); }
  bool Decides(std::size_t rows) const;
  void Decide(std::size_t index);

  const Options options_;
  const Observer observer_;
  bool once_ = false;
  int fixed_ = 0;                   // 0: not
  std::vector<SizeClass> classes_;  // by the bits of the number of rows
};

}  // namespace moe
