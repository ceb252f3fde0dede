#include "router/micro_batch_choice.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/check.h"

namespace moe {
namespace {

std::size_t ClassOf(std::size_t rows) { return static_cast<std::size_t>(std::bit_width(rows)); }

}  // namespace

MicroBatchChoice::MicroBatchChoice(Options options, std::size_t max_rows, Observer observer)
    : options_(options), observer_(std::move(observer)), classes_(ClassOf(max_rows) + 1) {
  MOE_CHECK(options.most >= 1 && options.most <= kMaxMicroBatches);
}

// Whether there is anything to choose; fewer rows than micro-batches would be a choice of their own.
bool MicroBatchChoice::Decides(std::size_t rows) const {
  return fixed_ == 0 && options_.measure && options_.most > 1 && rows >= static_cast<std::size_t>(options_.most);
}

int MicroBatchChoice::Next(std::size_t rows) const {
  if (fixed_ > 0) return static_cast<int>(std::min(rows, static_cast<std::size_t>(fixed_)));
  if (!options_.measure) return static_cast<int>(std::min(rows, static_cast<std::size_t>(options_.most)));
  if (!Decides(rows)) return 1;
  const SizeClass& size = classes_[ClassOf(rows)];
  if (!Tries(rows)) return size.chosen;
  return static_cast<int>(size.steps % static_cast<std::size_t>(options_.most)) + 1;
}

bool MicroBatchChoice::Tries(std::size_t rows) const {
  return Decides(rows) && classes_[ClassOf(rows)].steps < trials();
}

void MicroBatchChoice::DecideOnce() {
  once_ = true;
  std::ranges::fill(classes_, SizeClass{});
}

void MicroBatchChoice::Fix(int count) {
  MOE_CHECK(count >= 1 && count <= options_.most);
  fixed_ = count;
}

void MicroBatchChoice::Note(std::size_t rows, int count, double seconds) {
  if (!Decides(rows)) return;
  const std::size_t index = ClassOf(rows);
  SizeClass& size = classes_[index];
  if (Tries(rows)) {
    size.row_seconds[static_cast<std::size_t>(count - 1)][size.steps / static_cast<std::size_t>(options_.most)] =
        seconds / static_cast<double>(rows);
  }
  ++size.steps;
  if (size.steps == trials()) Decide(index);
  if (size.steps == trials() + kKept && !once_) size.steps = 0;
}

void MicroBatchChoice::Decide(std::size_t index) {
  SizeClass& size = classes_[index];
  MicroBatchDecision decision{.first_rows = std::size_t{1} << (index - 1), .end_rows = std::size_t{1} << index};
  for (int count = 1; count <= options_.most; ++count) {
    std::array<double, kTrials>& trials = size.row_seconds[static_cast<std::size_t>(count - 1)];
    std::ranges::nth_element(trials, trials.begin() + kTrials / 2);
    const double median = trials[kTrials / 2];
    decision.row_seconds[static_cast<std::size_t>(count - 1)] = median;
    if (median < (1 - kGain) * decision.row_seconds[static_cast<std::size_t>(decision.count - 1)])
      decision.count = count;
  }
  const bool news = !size.decided || size.chosen != decision.count;
  size.decided = true;
  size.chosen = decision.count;
  if (news && observer_) observer_(decision);
}

}  // namespace moe
