#include "apps/plan_options.h"

#include <CLI/CLI.hpp>
#include <array>
#include <sstream>

#include "apps/flags.h"
#include "bench/plan/devices.h"
#include "bench/plan/units.h"
#include "build_info.h"
#include "core/machine.h"
#include "core/text.h"
#include "kernels/kernels.h"

namespace moe {
namespace {

constexpr const char* kExamples = R"(Examples:
  moe_plan params mixtral-8x7b                     total, active and by part; --list names the built-in models
  moe_plan memory deepseek-v3 --workers 16 --device h200-sxm --weight-type fp8
  moe_plan cost gpt-oss-120b --device h100-sxm --batch 1,32,256 --price-per-hour 2.5
  moe_plan compare mixtral-8x7b llama-2-70b        side by side
  moe_plan placement --loads loads.json --workers 7 --slots 12
A model is a built-in name, a folder with a config.json, or such a file; weights are not needed. Every flag can also be
given in a TOML file (--config FILE, a section for each command) and in the environment (--max-step-tokens as
MOE_MAX_STEP_TOKENS). Formulas and assumptions: docs/planner.md.
Exit code: 0 done, 1 failed, 2 bad usage.)";

constexpr const char* kParamsExamples = R"(Examples:
  moe_plan params mixtral-8x7b
  moe_plan params --model path/to/config.json --json
  moe_plan params --list)";

constexpr const char* kMemoryExamples = R"(Examples:
  moe_plan memory mixtral-8x7b                              in this machine's memory, every weight type
  moe_plan memory deepseek-v3 --device-memory 80GB --weight-type fp8 --workers 16 --context 32768 --batch 8
  moe_plan memory gpt-oss-120b --device h100-sxm --weight-type mxfp4 --kv-type bf16 --redundant-experts 16 --workers 4)";

constexpr const char* kCostExamples = R"(Examples:
  moe_plan cost mixtral-8x7b --device h100-sxm --batch 1,8,64 --price-per-hour 2.5
  moe_plan cost deepseek-v3 --device h200-sxm --workers 16 --network 50GB/s --latency-us 20 --balancedness 0.8
  moe_plan cost olmoe-1b-7b --bandwidth 40GB/s --flops 1.5T --watts 120 --efficiency 0.7 --json)";

constexpr const char* kCompareExamples = R"(Examples:
  moe_plan compare mixtral-8x7b llama-2-70b mistral-7b-v0.1
  moe_plan compare qwen3-30b-a3b gpt-oss-20b --weight-type bf16,int4 --read-type bf16 --json)";

constexpr const char* kPlacementExamples = R"(Examples:
  moe_plan placement --loads loads.json --workers 8 --slots 72
  moe_plan placement --loads loads.json --algorithm eplb --workers 8 --slots 72 --nodes 2 --groups 4 --json
  moe_plan placement --loads loads.json --workers 8 --slots 72 --current now.json --bytes-per-expert 44MB --output new.json)";

/// Flags that become something else once all are known.
struct RawFlags {
  std::string device;
  std::string device_memory;
  std::string bandwidth;
  std::string flops;
  std::string network;
  double latency_us = 0;
  std::vector<std::string> weight_types;
  std::vector<std::size_t> batches;
  std::string bytes_per_expert;
  std::vector<std::size_t> worker_slots;
};

std::string DeviceNames() {
  std::string names;
  for (const DevicePreset& preset : DevicePresets()) names += Cat(names.empty() ? "" : ", ", preset.name);
  return names;
}

void AddModel(FlagAdder& add, PlanOptions& o) {
  add.Add("model,--model", o.model, "Built-in name, folder with a config.json, or such a file");
}

void AddJson(FlagAdder& add, PlanOptions& o) { add.AddSwitch("--json", o.json, "JSON instead of a table"); }

void AddAttentionType(FlagAdder& add, PlanOptions& o) {
  add.AddChoice<std::optional<WeightType>>("--attention-weight-type", o.attention_weight_type, WeightTypeChoices(),
                                           "auto",
                                           "Type of attention and head, where the weights are f32, bf16, f16, int8 or "
                                           "int4; auto: int8 with int4, else theirs");
}

void AddWeightTypes(FlagAdder& add, RawFlags& raw, const std::vector<std::string>& shown) {
  raw.weight_types = shown;
  add.Add("--weight-type", raw.weight_types, "Some of stored, f32, bf16, f16, int8, int4, mxfp4, fp8")->delimiter(',');
}

void AddContext(FlagAdder& add, PlanOptions& o) {
  add.Add("--context", o.context, "Positions of each sequence; 0: 4096 or the model's limit, if that is less")
      ->check(CLI::Range(std::size_t{0}, std::size_t{kMostContext}));
  add.Add("--encoder-tokens", o.encoder_tokens, "Of each sequence, where there is an encoder; 0: as --context")
      ->check(CLI::Range(std::size_t{0}, std::size_t{kMostContext}));
}

void AddKvType(FlagAdder& add, std::uint64_t& element_bytes) {
  add.AddChoice<std::uint64_t>("--kv-type", element_bytes, {{"f32", 4}, {"bf16", 2}}, "f32",
                               "Type of keys and values in the cache");
}

void AddDevice(FlagAdder& add, RawFlags& raw) {
  add.Add("--device", raw.device, Cat("Take the figures of a data sheet: ", DeviceNames()));
}

CLI::Option* AddBatches(FlagAdder& add, RawFlags& raw, const std::vector<std::size_t>& shown) {
  raw.batches = shown;
  return add.Add("--batch", raw.batches, "Sequences that a step decodes together, a list")
      ->delimiter(',')
      ->check(CLI::Range(std::size_t{1}, std::size_t{kMostBatch}));
}

void AddParams(CLI::App& command, PlanOptions& o) {
  FlagAdder add(command);
  AddModel(add, o);
  add.AddSwitch("--list", o.list, "All built-in models instead");
  AddJson(add, o);
  command.footer(kParamsExamples);
}

void AddMemory(CLI::App& command, PlanOptions& o, RawFlags& raw) {
  FlagAdder add(command);
  MemoryOptions& m = o.memory;
  m.kv.page_tokens = kPageTokens;
  m.kv.prefill_chunk = 0;
  m.usable_share = 0.9;
  AddModel(add, o);
  AddWeightTypes(add, raw, {"f32", "bf16", "int8", "int4", "mxfp4"});
  AddAttentionType(add, o);
  AddContext(add, o);
  add.Add("--batch", m.kv.batch, "Sequences at a time")->check(CLI::Range(std::size_t{1}, std::size_t{kMostBatch}));
  AddKvType(add, m.kv.element_bytes);
  add.Add("--max-step-tokens", m.step.max_step_tokens, "Tokens of an engine step")
      ->check(CLI::Range(std::size_t{1}, std::size_t{kMostStepTokens}));
  add.Add("--prefill-chunk", m.kv.prefill_chunk, "Prompt tokens of a sequence in a step; 0: as many as fit")
      ->check(CLI::Range(std::size_t{0}, std::size_t{kMostStepTokens}));
  add.AddChoice<ExchangeType>("--exchange-type", m.step.exchange_type,
                              {{"f32", ExchangeType::kF32}, {"bf16", ExchangeType::kBf16}}, "f32",
                              "Type of the rows between router and workers");
  add.Add("--workers", m.workers, "Expert workers beside the router; 0: one process")
      ->check(CLI::Range(0, kMostWorkers));
  add.Add("--placement", m.placement, "linear, round_robin or a placement file");
  add.Add("--redundant-experts", m.redundant_experts, "Extra slots per layer, over all workers")
      ->check(CLI::Range(0, kMostRedundant));
  AddDevice(add, raw);
  add.Add("--device-memory", raw.device_memory, "Memory of each rank: 80GiB, 24GB; absent: this machine's");
  add.Add("--memory-share", m.usable_share, "Share of it that a rank may use, in (0, 1]");
  AddJson(add, o);
  command.footer(kMemoryExamples);
}

void AddCost(CLI::App& command, PlanOptions& o, RawFlags& raw) {
  FlagAdder add(command);
  CostOptions& c = o.cost;
  AddModel(add, o);
  add.Add("--weight-type", o.weight_type, "stored, f32, bf16, f16, int8, int4, mxfp4 or fp8");
  AddAttentionType(add, o);
  AddContext(add, o);
  AddBatches(add, raw, {1, 8, 64});
  AddKvType(add, c.kv_element_bytes);
  AddDevice(add, raw);
  add.Add("--bandwidth", raw.bandwidth, "Of a device's memory: 3.35TB/s; instead of the data sheet's");
  add.Add("--flops", raw.flops, "Operations a second of a device: 989T; instead of the data sheet's");
  add.Add("--efficiency", c.efficiency, "Share of both roofs that is reached, in (0, 1]; 1: an upper bound");
  add.Add("--devices", c.devices, "Devices that share everything evenly and at no cost")
      ->check(CLI::Range(1, kMostWorkers));
  add.Add("--workers", c.workers, "Devices for the experts, beside one for the rest; 0: no split")
      ->check(CLI::Range(0, kMostWorkers));
  add.Add("--balancedness", c.balancedness, "With --workers: mean over largest load of a worker, in (0, 1]");
  add.Add("--network", raw.network, "With --workers: the router's link: 50GB/s; absent: free");
  add.Add("--latency-us", raw.latency_us, "With --workers: microseconds of an exchange, once a sparse layer");
  add.AddChoice<std::uint64_t>("--exchange-type", c.exchange_bytes, {{"f32", 4}, {"bf16", 2}}, "f32",
                               "Type of the rows between router and workers");
  add.Add("--price-per-hour", c.price_per_hour, "Of one device, in any currency; 0: not shown");
  add.Add("--watts", c.watts, "Of one device; 0: the data sheet's, or not shown");
  AddJson(add, o);
  command.footer(kCostExamples);
}

void AddCompare(CLI::App& command, PlanOptions& o, RawFlags& raw) {
  FlagAdder add(command);
  add.Add("models,--models", o.models, "Built-in names, folders or files");
  AddWeightTypes(add, raw, {"f32", "bf16", "int8", "int4", "mxfp4"});
  add.Add("--read-type", o.weight_type, "Weight type whose bytes a token reads");
  AddAttentionType(add, o);
  AddBatches(add, raw, {1, 64});
  AddKvType(add, o.memory.kv.element_bytes);
  AddJson(add, o);
  command.footer(kCompareExamples);
}

void AddPlacement(CLI::App& command, PlanOptions& o, RawFlags& raw) {
  FlagAdder add(command);
  PlacementProblem& p = o.placement;
  Choices<PlacementAlgorithm> algorithms;
  for (const PlacementAlgorithm algorithm : {PlacementAlgorithm::kLinear, PlacementAlgorithm::kRoundRobin,
                                             PlacementAlgorithm::kEplb, PlacementAlgorithm::kAuto})
    algorithms[std::string(Name(algorithm))] = algorithm;
  add.Add("--loads", o.loads, "JSON file with the tokens of each expert in each layer (docs/placement-format.md)");
  add.AddChoice<PlacementAlgorithm>("--algorithm", o.algorithm, algorithms, "auto",
                                    "Who decides; auto: near the lower bound with few experts moved");
  add.Add("--workers", p.workers, "Hosts of experts")->check(CLI::Range(1, kMostWorkers));
  add.Add("--slots", p.slots, "Of a layer, over all workers; 0: one for each expert")
      ->check(CLI::Range(0, kMostRedundant * 2));
  add.Add("--nodes", p.nodes, "For eplb: nodes that the workers are on, evenly")->check(CLI::Range(1, kMostWorkers));
  add.Add("--groups", p.groups, "For eplb: groups of experts, each of which stays on a node if nodes divide them")
      ->check(CLI::Range(1, kMostRedundant));
  add.Add("--current", o.current, "Placement file that is in force; absent: none, and figures are beside linear's");
  add.Add("--bytes-per-expert", raw.bytes_per_expert, "Size of an expert in one layer: 44MB, 352MiB");
  add.Add("--cost-per-byte", p.cost_per_byte,
          "For auto: tokens that the slowest worker must be relieved of for each byte moved")
      ->check(CLI::Range(0.0, 1e12));
  add.Add("--worker-speeds", p.worker_speeds, "For auto: speed of each worker, a list; absent: all alike")
      ->delimiter(',');
  add.Add("--worker-slots", raw.worker_slots, "For auto: most slots of each worker, a list; absent: as even as can be")
      ->delimiter(',')
      ->check(CLI::Range(std::size_t{0}, std::size_t{kMostRedundant}));
  add.Add("--output", o.output, "File to write the placement to");
  AddJson(add, o);
  command.footer(kPlacementExamples);
}

Status FinishPlacement(const RawFlags& raw, PlanOptions& o) {
  if (o.loads.empty()) return InvalidArgument("placement: --loads FILE is missing");
  if (o.placement.workers == 0) return InvalidArgument("placement: --workers is missing");
  for (const std::size_t slots : raw.worker_slots) o.placement.worker_slots.push_back(static_cast<int>(slots));
  if (o.algorithm != PlacementAlgorithm::kAuto &&
      !(o.placement.worker_slots.empty() && o.placement.worker_speeds.empty()))
    return InvalidArgument("--worker-speeds and --worker-slots are for auto; ", Name(o.algorithm),
                           " does not look at them");
  if (raw.bytes_per_expert.empty()) {
    if (o.placement.cost_per_byte > 0) return InvalidArgument("--cost-per-byte needs --bytes-per-expert");
    return Status::Ok();
  }
  const Result<std::uint64_t> bytes = ParseBytes(raw.bytes_per_expert);
  if (!bytes.ok()) return bytes.status().WithContext("--bytes-per-expert");
  o.placement.bytes_per_expert = *bytes;
  return Status::Ok();
}

Status FinishMemory(const RawFlags& raw, PlanOptions& o) {
  if (!raw.device.empty() && !raw.device_memory.empty())
    return InvalidArgument("--device ", raw.device, " and --device-memory ", raw.device_memory, " exclude each other");
  o.device_name = "this machine";
  o.memory.device_bytes = MachineMemoryBytes();
  if (!raw.device.empty()) {
    MOE_ASSIGN_OR_RETURN(const DevicePreset preset, FindDevice(raw.device));
    o.device_name = preset.name;
    o.memory.device_bytes = preset.memory_bytes;
  }
  if (!raw.device_memory.empty()) {
    const Result<std::uint64_t> bytes = ParseBytes(raw.device_memory);
    if (!bytes.ok()) return bytes.status().WithContext("--device-memory");
    o.device_name = "--device-memory";
    o.memory.device_bytes = *bytes;
  }
  return Status::Ok();
}

// A rate that a flag gives goes before the data sheet's.
Status ReadRate(const char* flag, const std::string& text, Result<double> (*parse)(std::string_view), double& value) {
  if (text.empty()) return Status::Ok();
  const Result<double> rate = parse(text);
  if (!rate.ok()) return rate.status().WithContext(flag);
  value = *rate;
  return Status::Ok();
}

Status FinishCost(const RawFlags& raw, PlanOptions& o) {
  const bool given = !raw.bandwidth.empty() && !raw.flops.empty();
  if (raw.device.empty() && !given)
    return InvalidArgument("cost: which device is missing: --bandwidth and --flops, or --device (", DeviceNames(), ")");
  o.device_name = "given by flags";
  if (!raw.device.empty()) {
    MOE_ASSIGN_OR_RETURN(const DevicePreset preset, FindDevice(raw.device));
    const bool changed = !raw.bandwidth.empty() || !raw.flops.empty() || o.cost.watts > 0;
    o.device_name = Cat(preset.name, changed ? ", changed by flags" : "");
    o.device_source = preset.source;
    o.cost.bandwidth = preset.bandwidth_bytes_per_s;
    o.cost.flops = preset.flops;
    if (o.cost.watts == 0) o.cost.watts = preset.watts;
  }
  MOE_RETURN_IF_ERROR(ReadRate("--bandwidth", raw.bandwidth, ParseBandwidth, o.cost.bandwidth));
  MOE_RETURN_IF_ERROR(ReadRate("--flops", raw.flops, ParseFlops, o.cost.flops));
  MOE_RETURN_IF_ERROR(ReadRate("--network", raw.network, ParseBandwidth, o.cost.network));
  if (o.cost.workers == 0 && (o.cost.network > 0 || raw.latency_us > 0))
    return InvalidArgument("--network and --latency-us need --workers: without them nothing is exchanged");
  o.cost.latency_s = raw.latency_us * 1e-6;
  return CheckCostOptions({.context = 1,
                           .encoder_tokens = 1,
                           .bandwidth = o.cost.bandwidth,
                           .flops = o.cost.flops,
                           .efficiency = o.cost.efficiency,
                           .devices = o.cost.devices,
                           .workers = o.cost.workers});
}

// What CLI11 does not check by itself.
Status Finish(const RawFlags& raw, PlanOptions& o) {
  o.weight_types = raw.weight_types;
  o.batches = raw.batches;
  switch (o.command) {
    case PlanCommand::kParams: return Status::Ok();
    case PlanCommand::kMemory:
      if (o.model.empty()) return InvalidArgument("memory: a model is missing (moe_plan params --list names some)");
      return FinishMemory(raw, o);
    case PlanCommand::kCost:
      if (o.model.empty()) return InvalidArgument("cost: a model is missing (moe_plan params --list names some)");
      return FinishCost(raw, o);
    case PlanCommand::kCompare:
      if (o.models.empty()) return InvalidArgument("compare: models are missing (moe_plan params --list names some)");
      return Status::Ok();
    case PlanCommand::kPlacement: return FinishPlacement(raw, o);
  }
  return Status::Ok();
}

/// The flags of one command: what it shares with others by name has its own value and default.
struct CommandFlags {
  CLI::App* app = nullptr;
  PlanOptions options;
  RawFlags raw;
};

/// The commands of moe_plan and where their flags go.
class Commands {
 public:
  explicit Commands(CLI::App& app) {
    AddCommand(app, PlanCommand::kParams, "params", "Count parameters: total, active, by part.");
    AddCommand(app, PlanCommand::kMemory, "memory", "Plan what each rank holds, what fits, how many workers it takes.");
    AddCommand(app, PlanCommand::kCost, "cost", "Estimate tokens per second, price and energy from two roofs.");
    AddCommand(app, PlanCommand::kCompare, "compare", "Show models side by side.");
    AddCommand(app, PlanCommand::kPlacement, "placement", "Place experts on workers by their loads.");
  }
  /// The one that was asked for.
  CommandFlags& chosen() {
    for (CommandFlags& flags : flags_)
      if (flags.app->parsed()) return flags;
    return flags_.front();
  }

 private:
  void AddCommand(CLI::App& app, PlanCommand command, const char* name, const char* help) {
    CommandFlags& flags = flags_[static_cast<std::size_t>(command)];
    flags.app = app.add_subcommand(name, help);
    flags.app->fallthrough();
    flags.options.command = command;
    switch (command) {
      case PlanCommand::kParams: AddParams(*flags.app, flags.options); break;
      case PlanCommand::kMemory: AddMemory(*flags.app, flags.options, flags.raw); break;
      case PlanCommand::kCost: AddCost(*flags.app, flags.options, flags.raw); break;
      case PlanCommand::kCompare: AddCompare(*flags.app, flags.options, flags.raw); break;
      case PlanCommand::kPlacement: AddPlacement(*flags.app, flags.options, flags.raw); break;
    }
  }

  std::array<CommandFlags, 5> flags_;
};

std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

std::string Explain(const CLI::App& app, const CLI::ParseError& error) {
  if (dynamic_cast<const CLI::ConfigError*>(&error) != nullptr)
    return Cat("--config: a key is unknown or wrong: ", FirstLine(error.what()));
  // CLI11 would only say that a command is missing.
  if (const std::vector<std::string> rest = app.remaining(); app.get_subcommands().empty() && !rest.empty())
    return Cat("\"", rest.front(),
               "\" is neither a command nor a flag (commands: params, memory, cost, compare, placement)");
  return FirstLine(error.what()) + " (moe_plan --help shows what is known)";
}

}  // namespace

ParsedPlanOptions ParsePlanOptions(int argc, char** argv) {
  constexpr int kBadUsage = 2;
  ParsedPlanOptions parsed;
  CLI::App app("Counts parameters, plans memory and placements, estimates cost and compares models; without a server.",
               "moe_plan");
  app.footer(kExamples);
  app.set_version_flag("--version", Cat("moe_plan ", kBuildVersion, " (", kBuildCommit, ")"));
  app.set_config("--config", "", "TOML file with flags, a section for each command, for example [memory]");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.require_subcommand(1);
  app.fallthrough();
  Commands commands(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    std::ostringstream err;
    const int code = app.exit(error, out, err);
    parsed.exit_code = code == 0 ? 0 : kBadUsage;
    parsed.text = code == 0 ? out.str() : Explain(app, error);
    return parsed;
  }
  CommandFlags& flags = commands.chosen();
  if (const Status status = Finish(flags.raw, flags.options); !status.ok()) {
    parsed.exit_code = kBadUsage;
    parsed.text = status.message();
    return parsed;
  }
  parsed.options = std::move(flags.options);
  parsed.run = true;
  return parsed;
}

}  // namespace moe
