#include "bench/engine/quality_figures.h"

#include <algorithm>
#include <cmath>

#include "model/json.h"

namespace moe {
namespace {

// log(sum(exp(x - max))) + max
double LogSumExp(std::span<const float> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  return max + std::log(sum);
}

Result<Task> ParseTask(std::string_view line) {
  MOE_ASSIGN_OR_RETURN(const JsonValue json, ParseJson(line));
  const JsonValue::Object* object = json.AsObject();
  if (object == nullptr) return InvalidArgument(json.Excerpt(), " is no object");
  Task task;
  for (const auto& [key, value] : *object) {
    std::string* const field = key == "language" ? &task.language
                               : key == "prompt" ? &task.prompt
                               : key == "answer" ? &task.answer
                                                 : nullptr;
    if (field == nullptr)
      return InvalidArgument("key \"", Printable(key, 60), "\" is unknown (language, prompt, answer)");
    if (value.AsString() == nullptr) return InvalidArgument(key, " is ", value.Excerpt(), ", a string was expected");
    *field = *value.AsString();
  }
  for (const auto& [name, field] :
       {std::pair{"language", &task.language}, {"prompt", &task.prompt}, {"answer", &task.answer}})
    if (field->empty()) return InvalidArgument(name, " is missing or empty");
  return task;
}

}  // namespace

std::vector<std::string_view> Windows(std::string_view text, std::size_t window, std::size_t max_windows) {
  std::vector<std::string_view> windows;
  for (std::size_t begin = 0; begin + 1 < text.size(); begin += window) {
    const std::string_view bytes = text.substr(begin, window);
    if (bytes.size() < 2 || (max_windows > 0 && windows.size() == max_windows)) break;
    windows.push_back(bytes);
  }
  return windows;
}

std::vector<std::uint32_t> ByteTokens(std::string_view text) {
  std::vector<std::uint32_t> tokens;
  tokens.reserve(text.size());
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

double KlDivergence(std::span<const float> p_logits, std::span<const float> q_logits) {
  const double p_norm = LogSumExp(p_logits);
  const double q_norm = LogSumExp(q_logits);
  double sum = 0;
  for (std::size_t i = 0; i < p_logits.size(); ++i) {
    const double log_p = p_logits[i] - p_norm;
    sum += std::exp(log_p) * (log_p - (q_logits[i] - q_norm));
  }
  return sum;
}

Result<std::vector<Task>> ParseTasks(std::string_view text, std::size_t max_tasks) {
  std::vector<Task> tasks;
  for (std::size_t line_number = 1; !text.empty() && (max_tasks == 0 || tasks.size() < max_tasks); ++line_number) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    Result<Task> task = ParseTask(line);
    if (!task.ok()) return task.status().WithContext(Cat("line ", line_number));
    tasks.push_back(*std::move(task));
  }
  if (tasks.empty()) return InvalidArgument("there are no tasks in it");
  return tasks;
}

}  // namespace moe
