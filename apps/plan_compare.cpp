#include <CLI/CLI.hpp>

#include "apps/plan_commands.h"
#include "bench/plan/compare_report.h"

namespace moe {
namespace {

constexpr const char* kCompareExamples = R"(Examples:
  moe_plan compare mixtral-8x7b llama-2-70b mistral-7b-v0.1
  moe_plan compare qwen3-30b-a3b gpt-oss-20b --weight-type bf16,int4 --read-type bf16 --json)";

struct CompareFlags {
  std::vector<std::string> models;
  std::vector<std::string> weight_types = {"f32", "bf16", "int8", "int4", "mxfp4"};
  std::string read_type = "stored";
  std::optional<WeightType> attention_weight_type;
  std::vector<std::size_t> batches = {1, 64};
  std::uint64_t kv_element_bytes = 4;
  bool json = false;
};

void AddCompareFlags(FlagAdder& add, CompareFlags& flags) {
  add.Add("models,--models", flags.models, "Built-in names, folders or files");
  AddWeightTypesFlag(add, flags.weight_types);
  add.Add("--read-type", flags.read_type, "Weight type whose bytes a token reads");
  AddAttentionTypeFlag(add, flags.attention_weight_type);
  AddBatchesFlag(add, flags.batches);
  AddKvTypeFlag(add, flags.kv_element_bytes);
  AddJsonFlag(add, flags.json);
}

Result<std::string> Compare(const CompareFlags& flags) {
  if (flags.models.empty()) return InvalidArgument("compare: models are missing (moe_plan params --list names some)");
  const CompareOptions compare{.weight_types = flags.weight_types,
                               .read_type = flags.read_type,
                               .batches = {flags.batches.begin(), flags.batches.end()},
                               .kv_element_bytes = flags.kv_element_bytes,
                               .attention_weight_type = flags.attention_weight_type};
  std::vector<ComparedModel> models;
  for (const std::string& name : flags.models) {
    MOE_ASSIGN_OR_RETURN(const NamedModel model, OpenPlanModel(name));
    MOE_ASSIGN_OR_RETURN(ComparedModel compared, CompareModel(model, compare));
    models.push_back(std::move(compared));
  }
  return flags.json ? CompareJson(models, compare) : CompareText(models, compare);
}

}  // namespace

PlanCommand AddCompareCommand(CLI::App& app) {
  return MakePlanCommand(NewPlanCommand(app, "compare", "Show models side by side.", kCompareExamples), AddCompareFlags,
                         Compare);
}

}  // namespace moe
