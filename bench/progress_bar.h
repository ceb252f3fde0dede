// A line on stderr that shows how far a run is; drawn again in place, and wiped when done.
#pragma once

#include <cstddef>
#include <string>

#include "core/clock.h"

namespace moe {

class ProgressBar {
 public:
  /// Does nothing at all unless `enabled` (the caller asks whether stderr is a terminal).
  ProgressBar(bool enabled, std::string title, std::size_t total);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  /// At most five times a second something is drawn.
  void Show(std::size_t done);

 private:
  const bool enabled_;
  const std::string title_;
  const std::size_t total_;
  const TimePoint start_ = Clock::now();
  TimePoint drawn_{};
};

}  // namespace moe
