#include <CLI/CLI.hpp>

#include "apps/plan_commands.h"
#include "bench/plan/params_report.h"

namespace moe {
namespace {

constexpr const char* kParamsExamples = R"(Examples:
  moe_plan params mixtral-8x7b
  moe_plan params --model path/to/config.json --json
  moe_plan params --list)";

struct ParamsFlags {
  std::string model;
  bool list = false;
  bool json = false;
};

void AddParamsFlags(FlagAdder& add, ParamsFlags& flags) {
  AddModelFlag(add, flags.model);
  add.AddSwitch("--list", flags.list, "All built-in models instead");
  AddJsonFlag(add, flags.json);
}

Result<std::string> Params(const ParamsFlags& flags) {
  if (flags.list) return flags.json ? ModelListJson() : ModelListText();
  if (flags.model.empty()) return InvalidArgument("params: a model is missing (a name of --list, a folder or a file)");
  MOE_ASSIGN_OR_RETURN(const NamedModel model, OpenPlanModel(flags.model));
  const ParameterCount count = CountParameters(model.config);
  return flags.json ? ParamsJson(model, count) : ParamsText(model, count);
}

}  // namespace

PlanCommand AddParamsCommand(CLI::App& app) {
  return MakePlanCommand(NewPlanCommand(app, "params", "Count parameters: total, active, by part.", kParamsExamples),
                         AddParamsFlags, Params);
}

}  // namespace moe
