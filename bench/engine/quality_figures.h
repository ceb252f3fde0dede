// The figures of `moe_bench quality` as pure functions: windows of a text, divergence of two predictions, tasks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace moe {

/// `text` cut into windows of `window` bytes one after the other, the last one shorter; a window of one byte, which
/// would score nothing, is left out. At most `max_windows` of them (0: all).
std::vector<std::string_view> Windows(std::string_view text, std::size_t window, std::size_t max_windows);

/// A byte is a token id: text for byte-level models.
std::vector<std::uint32_t> ByteTokens(std::string_view text);

/// KL(p || q) in nats of the two distributions that softmax makes of logits of one size, in double.
double KlDivergence(std::span<const float> p_logits, std::span<const float> q_logits);

/// A mean over positions, added up in double.
class Mean {
 public:
  void Add(double value) {
    sum_ += value;
    ++count_;
  }
  std::uint64_t count() const { return count_; }
  double value() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }

 private:
  double sum_ = 0;
  std::uint64_t count_ = 0;
};

struct Task {
  std::string language;
  std::string prompt;
  std::string answer;
};

/// One JSON object a line with the strings "language", "prompt" and "answer", none empty; at most `max_tasks` lines (0:
/// all). INVALID_ARGUMENT naming the line.
Result<std::vector<Task>> ParseTasks(std::string_view text, std::size_t max_tasks);

/// Tasks of a language, and how many of them were answered exactly.
struct TaskScore {
  std::uint64_t right = 0;
  std::uint64_t tasks = 0;

  double share() const { return tasks == 0 ? 0 : static_cast<double>(right) / static_cast<double>(tasks); }
};
using TaskScores = std::map<std::string, TaskScore>;  // by language

}  // namespace moe
