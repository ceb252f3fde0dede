#include <CLI/CLI.hpp>

#include "apps/plan_commands.h"
#include "bench/plan/devices.h"
#include "bench/plan/memory_report.h"
#include "core/machine.h"
#include "core/units.h"
#include "kernels/kernels.h"

namespace moe {
namespace {

constexpr const char* kMemoryExamples = R"(Examples:
  moe_plan memory mixtral-8x7b                              in this machine's memory, every weight type
  moe_plan memory deepseek-v3 --device-memory 80GB --weight-type fp8 --workers 16 --context 32768 --batch 8
  moe_plan memory gpt-oss-120b --device h100-sxm --weight-type mxfp4 --kv-type bf16 --redundant-experts 16 --workers 4)";

struct MemoryFlags {
  std::string model;
  std::vector<std::string> weight_types = {"f32", "bf16", "int8", "int4", "mxfp4"};
  std::optional<WeightType> attention_weight_type;
  ContextFlags context;
  MemoryOptions memory;
  std::string device;
  std::string device_memory;
  bool json = false;
};

void AddMemoryFlags(FlagAdder& add, MemoryFlags& flags) {
  MemoryOptions& m = flags.memory;
  m.kv.page_tokens = kPageTokens;
  m.kv.prefill_chunk = 0;
  m.usable_share = 0.9;
  AddModelFlag(add, flags.model);
  AddWeightTypesFlag(add, flags.weight_types);
  AddAttentionTypeFlag(add, flags.attention_weight_type);
  AddContextFlags(add, flags.context);
  add.Add("--batch", m.kv.batch, "Sequences at a time")->check(CLI::Range(std::size_t{1}, std::size_t{kMostBatch}));
  AddKvTypeFlag(add, m.kv.element_bytes);
  add.Add("--max-step-tokens", m.step.max_step_tokens, "Tokens of an engine step")
      ->check(CLI::Range(std::size_t{1}, std::size_t{kMostStepTokens}));
  add.Add("--prefill-chunk", m.kv.prefill_chunk, "Prompt tokens of a sequence in a step; 0: as many as fit")
      ->check(CLI::Range(std::size_t{0}, std::size_t{kMostStepTokens}));
  add.AddChoice<ExchangeType>("--exchange-type", m.step.exchange_type,
                              {{"f32", ExchangeType::kF32}, {"bf16", ExchangeType::kBf16}}, "f32",
                              "Type of the rows between router and workers");
  add.Add("--workers", m.workers, "Expert workers beside the router; 0: one process")
      ->check(CLI::Range(0, kMostWorkers));
  AddNamedPlacementFlags(add, m.placement, m.loads);
  add.Add("--redundant-experts", m.redundant_experts, "Extra slots per layer, over all workers")
      ->check(CLI::Range(0, kMostRedundant));
  AddDeviceFlag(add, flags.device);
  add.Add("--device-memory", flags.device_memory, "Memory of each rank: 80GiB, 24GB; absent: this machine's");
  add.Add("--memory-share", m.usable_share, "Share of it that a rank may use, in (0, 1]");
  AddJsonFlag(add, flags.json);
}

/// The device's name, and its memory.
Result<std::string> FindDeviceMemory(const MemoryFlags& flags, std::uint64_t& bytes) {
  if (!flags.device.empty() && !flags.device_memory.empty())
    return InvalidArgument("--device ", flags.device, " and --device-memory ", flags.device_memory,
                           " exclude each other");
  if (!flags.device.empty()) {
    MOE_ASSIGN_OR_RETURN(const DevicePreset preset, FindDevice(flags.device));
    bytes = preset.memory_bytes;
    return std::string(preset.name);
  }
  if (!flags.device_memory.empty()) {
    const Result<std::uint64_t> given = ParseBytes(flags.device_memory);
    if (!given.ok()) return given.status().WithContext("--device-memory");
    bytes = *given;
    return std::string("--device-memory");
  }
  bytes = MachineMemoryBytes();
  return std::string("this machine");
}

Result<std::string> Memory(const MemoryFlags& flags) {
  if (flags.model.empty()) return InvalidArgument("memory: a model is missing (moe_plan params --list names some)");
  MemoryOptions memory = flags.memory;
  MOE_ASSIGN_OR_RETURN(const std::string device, FindDeviceMemory(flags, memory.device_bytes));
  MOE_ASSIGN_OR_RETURN(const NamedModel model, OpenPlanModel(flags.model));
  const ContextFlags context = ContextOf(flags.context, model.config);
  memory.kv.context = context.context;
  memory.kv.encoder_tokens = context.encoder_tokens;
  memory.kv.step_tokens = memory.step.max_step_tokens;
  if (memory.kv.prefill_chunk == 0) memory.kv.prefill_chunk = memory.step.max_step_tokens;
  MemoryReport report{.model = model, .options = memory, .device = device};
  for (const std::string& type : flags.weight_types) {
    MOE_ASSIGN_OR_RETURN(WeightScheme scheme, MakeWeightScheme(type, model.config, flags.attention_weight_type));
    MOE_ASSIGN_OR_RETURN(MemoryPlan plan, PlanMemory(model.config, scheme, memory));
    report.entries.push_back({std::move(scheme), std::move(plan)});
  }
  return flags.json ? MemoryJson(report) : MemoryText(report);
}

}  // namespace

PlanCommand AddMemoryCommand(CLI::App& app) {
  return MakePlanCommand(
      NewPlanCommand(app, "memory", "Plan what each rank holds, what fits, how many workers it takes.",
                     kMemoryExamples),
      AddMemoryFlags, Memory);
}

}  // namespace moe
