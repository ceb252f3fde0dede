// Steps told apart by their rows, so that some can be set beside others that had as much to do.
#pragma once

#include <array>
#include <cstddef>

namespace moe {

/// How many steps of each size there were and what they took. Two sizes differ when the rows lie between other powers
/// of two. Allocates nothing.
class StepSizes {
 public:
  void Add(std::size_t rows, double seconds);
  /// What has been added weighs `keep` of what it did.
  void Fade(double keep);
  double steps() const { return all_.steps; }

 private:
  friend struct StepComparison;
  struct Sum {
    double steps = 0;  // weights
    double rows = 0;
    double seconds = 0;
  };
  static constexpr std::size_t kSizes = 24;  // the last one: 2^23 rows and more

  Sum all_;
  std::array<Sum, kSizes> sizes_{};
};

/// Steps beside others that had as much to do: of each size of `steps`, the others' mean step stands for what these
/// would have taken. Those of a size that the others lack are left out.
struct StepComparison {
  StepComparison() = default;
  StepComparison(const StepSizes& steps, const StepSizes& others);

  double steps = 0;  // that are compared
  double steps_left_out = 0;
  double rows = 0;         // of a mean one of them
  double rows_before = 0;  // of the others that stand for it
  double seconds = 0;      // that a mean one of them took
  double seconds_before = 0;

  /// Whether like stands beside like: at least half of the steps, whose rows differ by a tenth at most.
  bool fair() const;
};

}  // namespace moe
