// The results of `moe_bench quality` as JSON and as a table.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "bench/engine/quality.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

std::string Format(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

TaskScore All(const TaskScores& scores) {
  TaskScore all;
  for (const auto& [language, score] : scores) {
    all.right += score.right;
    all.tasks += score.tasks;
  }
  return all;
}

}  // namespace

std::string QualityResultsJson(const std::vector<QualityResult>& results) {
  Json list = Json::array();
  for (const QualityResult& result : results) {
    Json tasks = Json::object();
    for (const auto& [language, score] : result.tasks) tasks[language] = score.share();
    const TaskScore all = All(result.tasks);
    list.push_back({{"weight_type", Name(result.weight_type)},
                    {"kv_type", Name(result.kv_type)},
                    {"mean_nll", result.mean_nll},
                    {"kl", result.kl},
                    {"tokens", result.tokens},
                    {"tasks", std::move(tasks)},
                    {"tasks_right", all.tasks > 0 ? Json(all.share()) : Json(nullptr)},
                    {"num_tasks", all.tasks}});
  }
  return list.dump();
}

std::string QualityTable(const std::vector<QualityResult>& results) {
  std::string text;
  char line[128];
  std::snprintf(line, sizeof(line), "%-12s %-8s %12s %14s %10s %8s\n", "weight type", "KV type", "nats a token",
                "KL from f32", "tokens", "tasks");
  text += line;
  for (const QualityResult& result : results) {
    const TaskScore all = All(result.tasks);
    std::snprintf(line, sizeof(line), "%-12s %-8s %12.6f %14s %10llu %8s\n",
                  std::string(Name(result.weight_type)).c_str(), std::string(Name(result.kv_type)).c_str(),
                  result.mean_nll, Format("%.3e", result.kl).c_str(), static_cast<unsigned long long>(result.tokens),
                  all.tasks > 0 ? Format("%.1f%%", 100 * all.share()).c_str() : "-");
    text += line;
  }
  if (results.empty() || results.front().tasks.empty()) return text;
  text += Cat("\nshare of tasks answered exactly\n");
  std::snprintf(line, sizeof(line), "%-12s %8s", "language", "tasks");
  text += line;
  for (const QualityResult& result : results) {
    std::snprintf(line, sizeof(line), " %8s", std::string(Name(result.weight_type)).c_str());
    text += line;
  }
  for (const auto& [language, first] : results.front().tasks) {
    std::snprintf(line, sizeof(line), "\n%-12.60s %8llu", language.c_str(),
                  static_cast<unsigned long long>(first.tasks));
    text += line;
    for (const QualityResult& result : results) text += Format(" %7.1f%%", 100 * result.tasks.at(language).share());
  }
  return text + "\n";
}

}  // namespace moe
