#include "bench/progress_bar.h"

#include <algorithm>
#include <cstdio>
#include <utility>

namespace moe {

ProgressBar::ProgressBar(bool enabled, std::string title, std::size_t total)
    : enabled_(enabled), title_(std::move(title)), total_(std::max<std::size_t>(total, 1)) {}

ProgressBar::~ProgressBar() {
  if (enabled_ && drawn_ != TimePoint{}) std::fputs("\r\033[K", stderr);
}

void ProgressBar::Show(std::size_t done) {
  constexpr std::chrono::milliseconds kRedraw{200};
  constexpr std::size_t kWidth = 40;  // characters of the bar itself
  if (!enabled_ || Clock::now() - drawn_ < kRedraw) return;
  drawn_ = Clock::now();
  const std::size_t filled = std::min(done, total_) * kWidth / total_;
  const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
  std::fprintf(stderr, "\r%s [%s] %zu/%zu calls, %.0f s ", title_.c_str(), bar.c_str(), done, total_,
               Seconds(drawn_ - start_));
}

}  // namespace moe
