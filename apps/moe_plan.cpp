// moe_plan: counts parameters, plans memory, estimates cost, compares models, places experts; without a server. Flags
// and wiring only; what they do is in bench/plan/.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>

#include "apps/plan_options.h"
#include "bench/plan/compare_report.h"
#include "bench/plan/cost_report.h"
#include "bench/plan/memory_report.h"
#include "bench/plan/models.h"
#include "bench/plan/params_report.h"
#include "bench/plan/placement_report.h"
#include "core/replace_file.h"
#include "placement/loads_file.h"

namespace moe {
namespace {

constexpr int kFailed = 1;
constexpr int kBadUsage = 2;

/// The text for stdout, or why there is none.
using Output = Result<std::string>;

void Warn(const NamedModel& model) {
  for (const std::string& warning : model.config.warnings) std::fprintf(stderr, "moe_plan: %s\n", warning.c_str());
}

Result<NamedModel> Open(const std::string& what) {
  Result<NamedModel> model = OpenModel(what);
  if (model.ok()) Warn(*model);
  return model;
}

Output Params(const PlanOptions& options) {
  if (options.list) return options.json ? ModelListJson() : ModelListText();
  if (options.model.empty())
    return InvalidArgument("params: a model is missing (a name of --list, a folder or a file)");
  MOE_ASSIGN_OR_RETURN(const NamedModel model, Open(options.model));
  const ParameterCount count = CountParameters(model.config);
  return options.json ? ParamsJson(model, count) : ParamsText(model, count);
}

/// `asked`, or 4096 as far as the model's context goes.
std::uint64_t Context(const PlanOptions& options, const ModelConfig& config) {
  constexpr std::uint64_t kDefault = 4096;
  if (options.context > 0) return options.context;
  return config.context_length > 0 ? std::min(kDefault, static_cast<std::uint64_t>(config.context_length)) : kDefault;
}

Output Memory(const PlanOptions& options) {
  MOE_ASSIGN_OR_RETURN(const NamedModel model, Open(options.model));
  MemoryOptions memory = options.memory;
  memory.kv.context = Context(options, model.config);
  memory.kv.encoder_tokens = options.encoder_tokens > 0 ? options.encoder_tokens : memory.kv.context;
  memory.kv.step_tokens = memory.step.max_step_tokens;
  if (memory.kv.prefill_chunk == 0) memory.kv.prefill_chunk = memory.step.max_step_tokens;
  MemoryReport report{.model = model, .options = memory, .device = options.device_name};
  for (const std::string& type : options.weight_types) {
    MOE_ASSIGN_OR_RETURN(WeightScheme scheme, MakeWeightScheme(type, model.config, options.attention_weight_type));
    MOE_ASSIGN_OR_RETURN(MemoryPlan plan, PlanMemory(model.config, scheme, memory));
    report.entries.push_back({std::move(scheme), std::move(plan)});
  }
  return options.json ? MemoryJson(report) : MemoryText(report);
}

Output Cost(const PlanOptions& options) {
  MOE_ASSIGN_OR_RETURN(const NamedModel model, Open(options.model));
  CostOptions cost = options.cost;
  cost.context = Context(options, model.config);
  cost.encoder_tokens = options.encoder_tokens > 0 ? options.encoder_tokens : cost.context;
  MOE_ASSIGN_OR_RETURN(const WeightScheme scheme,
                       MakeWeightScheme(options.weight_type, model.config, options.attention_weight_type));
  MOE_ASSIGN_OR_RETURN(std::vector<CostPoint> points, PlanCost(model.config, scheme, cost, options.batches));
  const CostReport report{.model = model,
                          .scheme = scheme,
                          .options = cost,
                          .device = options.device_name,
                          .device_source = options.device_source,
                          .points = std::move(points)};
  return options.json ? CostJson(report) : CostText(report);
}

Output Compare(const PlanOptions& options) {
  const CompareOptions compare{.weight_types = options.weight_types,
                               .read_type = options.weight_type,
                               .batches = options.batches,
                               .kv_element_bytes = options.memory.kv.element_bytes,
                               .attention_weight_type = options.attention_weight_type};
  std::vector<ComparedModel> models;
  for (const std::string& name : options.models) {
    MOE_ASSIGN_OR_RETURN(const NamedModel model, Open(name));
    MOE_ASSIGN_OR_RETURN(ComparedModel compared, CompareModel(model, compare));
    models.push_back(std::move(compared));
  }
  return options.json ? CompareJson(models, compare) : CompareText(models, compare);
}

Status WritePlacement(const std::filesystem::path& path, const Placement& placement) {
  if (ReplaceFile(path, PlacementJson(placement) + "\n")) return Status::Ok();
  return Internal("--output ", path.string(), " could not be written");
}

Output PlaceExperts(const PlanOptions& options) {
  PlacementProblem problem = options.placement;
  MOE_ASSIGN_OR_RETURN(problem.loads, ReadLoadsFile(options.loads));
  problem.num_experts = static_cast<int>(problem.loads.front().mean.size());
  if (problem.slots == 0) problem.slots = problem.num_experts;
  if (!options.current.empty()) {
    MOE_ASSIGN_OR_RETURN(problem.current, ReadPlacementFile(options.current));
  }
  MOE_ASSIGN_OR_RETURN(const PlacementPlan plan, PlanPlacement(options.algorithm, problem));
  if (!options.output.empty()) MOE_RETURN_IF_ERROR(WritePlacement(options.output, plan.placement));
  return options.json ? PlacementPlanJson(plan, problem) : PlacementPlanText(plan, problem);
}

Output Run(const PlanOptions& options) {
  switch (options.command) {
    case PlanCommand::kParams: return Params(options);
    case PlanCommand::kMemory: return Memory(options);
    case PlanCommand::kCost: return Cost(options);
    case PlanCommand::kCompare: return Compare(options);
    case PlanCommand::kPlacement: return PlaceExperts(options);
  }
  return Internal("a command without an implementation");
}

int Main(int argc, char** argv) {
  const ParsedPlanOptions parsed = ParsePlanOptions(argc, argv);
  if (!parsed.run) {
    if (parsed.exit_code == 0) {
      std::fputs(parsed.text.c_str(), stdout);
    } else {
      std::fprintf(stderr, "moe_plan: %s\n", parsed.text.c_str());
    }
    return parsed.exit_code;
  }
  const Output output = Run(parsed.options);
  if (!output.ok()) {
    std::fprintf(stderr, "moe_plan: %s\n", output.status().message().c_str());
    return output.status().code() == StatusCode::kInternal ? kFailed : kBadUsage;
  }
  const bool written = std::fputs(output->c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  if (!written) std::fprintf(stderr, "moe_plan: the results could not be written to standard output\n");
  return written ? 0 : kFailed;
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) { return moe::Main(argc, argv); }
