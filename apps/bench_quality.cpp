#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "apps/bench_commands.h"
#include "apps/rank_flags.h"
#include "bench/engine/quality.h"
#include "core/date.h"
#include "core/text.h"
#include "model/json.h"

namespace moe {
namespace {

constexpr std::uint64_t kMaxFileBytes = std::uint64_t{1} << 30;

struct QualityFlags {
  QualityOptions options;
  std::string text;
  std::string tasks;
  std::size_t max_tasks = 0;
  std::vector<std::string> weight_types = {"f32"};
  OutputFlags output;
};

constexpr const char* kQualityExamples = R"(Examples:
  # loss on held-out text, what bf16 costs of it, and tasks answered, of a bundled model
  moe_bench quality --model models/eight-languages-moe --text models/held-out.txt --weight-type f32,bf16 \
      --tasks models/tasks.jsonl
  # a quick look at the beginning, JSON for a program
  moe_bench quality --model DIR --text FILE --window 128 --max-windows 16 --json
Text and tasks are taken byte by byte, a byte a token id: for byte-level models. Runs in one process.
Exit code: 0 done, 1 it could not be run, 2 bad usage. Definitions of all figures: docs/benchmarks.md.)";

void AddQualityFlags(CLI::App& command, QualityFlags& flags) {
  QualityOptions& options = flags.options;
  command.add_option("--model", options.rank.model, "Folder of a Hugging Face checkpoint")->required();
  command.add_option("--text", flags.text, "held-out text, a byte a token")->required()->check(CLI::ExistingFile);
  command.add_option("--window", options.window, "tokens of a window; the first of each is not scored")
      ->capture_default_str();
  command.add_option("--max-windows", options.max_windows, "the first so many only; 0: all")->capture_default_str();
  command
      .add_option("--weight-type", flags.weight_types,
                  "list of types to hold weights in: auto (as stored), f32, bf16, f16, int8, int4")
      ->delimiter(',')
      ->capture_default_str();
  FlagAdder add(command);
  AddWeightCacheFlag(add, options.rank.weight_cache);
  AddKvTypeFlag(add, options.rank.kv_type);
  command.add_option("--tasks", flags.tasks, "tasks with language, prompt and answer, a JSON object a line")
      ->check(CLI::ExistingFile);
  command.add_option("--max-tasks", flags.max_tasks, "the first so many only; 0: all")->capture_default_str();
  command.add_option("--threads", options.rank.threads, "compute threads; 0: every processor")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command.add_option("--max-step-tokens", options.rank.max_step_tokens, "tokens of an engine step")
      ->check(CLI::Range(std::size_t{2}, std::size_t{1} << 20))
      ->capture_default_str();
  AddOutputFlags(command, flags.output);
  command.footer(kQualityExamples);
}

// What CLI11 does not check by itself.
Status Finish(QualityFlags& flags) {
  QualityOptions& options = flags.options;
  MOE_ASSIGN_OR_RETURN(options.text, ReadSmallFile(flags.text, kMaxFileBytes));
  if (!flags.tasks.empty()) {
    MOE_ASSIGN_OR_RETURN(const std::string lines, ReadSmallFile(flags.tasks, kMaxFileBytes));
    Result<std::vector<Task>> tasks = ParseTasks(lines, flags.max_tasks);
    if (!tasks.ok()) return tasks.status().WithContext(Cat("--tasks ", flags.tasks));
    options.tasks = *std::move(tasks);
  }
  MOE_RETURN_IF_ERROR(CheckWeightCache(options.rank.weight_cache));
  for (const std::string& name : flags.weight_types) {
    const std::optional<WeightType> type = ParseWeightType(name);
    if (!type && name != "auto")
      return InvalidArgument("--weight-type \"", name, "\" is unknown (auto, f32, bf16, f16, int8, int4).");
    options.weight_types.push_back(type);
  }
  return Status::Ok();
}

Result<int> Quality(const CLI::App& command, QualityFlags& flags) {
  if (const Status status = Finish(flags); !status.ok()) return Fail(kExitBadUsage, status.message());
  MOE_RETURN_IF_ERROR(CheckOutput(flags.output));
  const std::string when = NowUtc();
  const Result<std::vector<QualityResult>> results = RunQuality(flags.options, Announce);
  if (!results.ok()) return results.status();
  return WriteReport(command, flags.output,
                     {.kind = "quality",
                      .when = when,
                      .host = DescribeHost(),
                      .results_json = QualityResultsJson(*results),
                      .table = QualityTable(*results)});
}

}  // namespace

BenchCommand AddQualityCommand(CLI::App& app) {
  return MakeCommand(app, "quality",
                     "Held-out loss, what smaller types of weights and cache cost of it, and tasks answered.",
                     AddQualityFlags, Quality);
}

}  // namespace moe
