// The results of `moe_bench quality` as JSON and as a table.
#include <nlohmann/json.hpp>

#include "bench/engine/quality.h"
#include "bench/table.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

std::string Percent(double share) { return Format("%.1f%%", 100 * share); }

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
  TextTable table({"weight type", "KV type", "nats a token", "KL from f32", "tokens", "tasks"});
  for (const QualityResult& result : results) {
    const TaskScore all = All(result.tasks);
    table.Add({std::string(Name(result.weight_type)), std::string(Name(result.kv_type)),
               Format("%.6f", result.mean_nll), Format("%.3e", result.kl), std::to_string(result.tokens),
               all.tasks > 0 ? Percent(all.share()) : "-"});
  }
  if (results.empty() || results.front().tasks.empty()) return table.Text();
  std::vector<std::string> header = {"language", "tasks"};
  for (const QualityResult& result : results) header.emplace_back(Name(result.weight_type));
  TextTable languages(std::move(header));
  for (const auto& [language, first] : results.front().tasks) {
    std::vector<std::string> cells = {language, std::to_string(first.tasks)};
    for (const QualityResult& result : results) cells.push_back(Percent(result.tasks.at(language).share()));
    languages.Add(std::move(cells));
  }
  return table.Text() + "\nshare of tasks answered exactly\n" + languages.Text();
}

}  // namespace moe
