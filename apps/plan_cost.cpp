#include <CLI/CLI.hpp>

#include "apps/plan_commands.h"
#include "bench/plan/cost_report.h"
#include "bench/plan/devices.h"
#include "bench/plan/memory_plan.h"
#include "core/text.h"
#include "core/units.h"

namespace moe {
namespace {

constexpr const char* kCostExamples = R"(Examples:
  moe_plan cost mixtral-8x7b --device h100-sxm --batch 1,8,64 --price-per-hour 2.5
  moe_plan cost deepseek-v3 --device h200-sxm --workers 16 --network 50GB/s --latency-us 20 --balancedness 0.8
  moe_plan cost olmoe-1b-7b --bandwidth 40GB/s --flops 1.5T --watts 120 --efficiency 0.7 --json)";

struct CostFlags {
  std::string model;
  std::string weight_type = "stored";
  std::optional<WeightType> attention_weight_type;
  ContextFlags context;
  std::vector<std::size_t> batches = {1, 8, 64};
  CostOptions cost;
  std::string device;
  std::string bandwidth;
  std::string flops;
  std::string network;
  double latency_us = 0;
  bool json = false;
};

void AddCostFlags(FlagAdder& add, CostFlags& flags) {
  CostOptions& c = flags.cost;
  AddModelFlag(add, flags.model);
  add.Add("--weight-type", flags.weight_type, "stored, f32, bf16, f16, int8, int4, mxfp4 or fp8");
  AddAttentionTypeFlag(add, flags.attention_weight_type);
  AddContextFlags(add, flags.context);
  AddBatchesFlag(add, flags.batches);
  AddKvTypeFlag(add, c.kv_element_bytes);
  AddDeviceFlag(add, flags.device);
  add.Add("--bandwidth", flags.bandwidth, "Of a device's memory: 3.35TB/s; instead of the data sheet's");
  add.Add("--flops", flags.flops, "Operations a second of a device: 989T; instead of the data sheet's");
  add.Add("--efficiency", c.efficiency, "Share of both roofs that is reached, in (0, 1]; 1: an upper bound");
  add.Add("--devices", c.devices, "Devices that share everything evenly and at no cost")
      ->check(CLI::Range(1, kMostWorkers));
  add.Add("--workers", c.workers, "Devices for the experts, beside one for the rest; 0: no split")
      ->check(CLI::Range(0, kMostWorkers));
  add.Add("--balancedness", c.balancedness, "With --workers: mean over largest load of a worker, in (0, 1]");
  add.Add("--network", flags.network, "With --workers: the router's link: 50GB/s; absent: free");
  add.Add("--latency-us", flags.latency_us, "With --workers: microseconds of an exchange, once a sparse layer");
  add.AddChoice<std::uint64_t>("--exchange-type", c.exchange_bytes, {{"f32", 4}, {"bf16", 2}}, "f32",
                               "Type of the rows between router and workers");
  add.Add("--price-per-hour", c.price_per_hour, "Of one device, in any currency; 0: not shown");
  add.Add("--watts", c.watts, "Of one device; 0: the data sheet's, or not shown");
  AddJsonFlag(add, flags.json);
}

// A rate that a flag gives goes before the data sheet's.
Status ReadRate(const char* flag, const std::string& text, Result<double> (*parse)(std::string_view), double& value) {
  if (text.empty()) return Status::Ok();
  const Result<double> rate = parse(text);
  if (!rate.ok()) return rate.status().WithContext(flag);
  value = *rate;
  return Status::Ok();
}

/// The options, and whose figures they are.
struct PlannedDevice {
  CostOptions cost;
  std::string name = "given by flags";
  std::string source;
};

Result<PlannedDevice> PlanDevice(const CostFlags& flags) {
  const bool given = !flags.bandwidth.empty() && !flags.flops.empty();
  if (flags.device.empty() && !given)
    return InvalidArgument("cost: which device is missing: --bandwidth and --flops, or --device (", DeviceNames(), ")");
  PlannedDevice device{.cost = flags.cost};
  CostOptions& cost = device.cost;
  if (!flags.device.empty()) {
    MOE_ASSIGN_OR_RETURN(const DevicePreset preset, FindDevice(flags.device));
    const bool changed = !flags.bandwidth.empty() || !flags.flops.empty() || cost.watts > 0;
    device.name = Cat(preset.name, changed ? ", changed by flags" : "");
    device.source = preset.source;
    cost.bandwidth = preset.bandwidth_bytes_per_s;
    cost.flops = preset.flops;
    if (cost.watts == 0) cost.watts = preset.watts;
  }
  MOE_RETURN_IF_ERROR(ReadRate("--bandwidth", flags.bandwidth, ParseBandwidth, cost.bandwidth));
  MOE_RETURN_IF_ERROR(ReadRate("--flops", flags.flops, ParseFlops, cost.flops));
  MOE_RETURN_IF_ERROR(ReadRate("--network", flags.network, ParseBandwidth, cost.network));
  if (cost.workers == 0 && (cost.network > 0 || flags.latency_us > 0))
    return InvalidArgument("--network and --latency-us need --workers: without them nothing is exchanged");
  cost.latency_s = flags.latency_us * 1e-6;
  return device;
}

Result<std::string> Cost(const CostFlags& flags) {
  if (flags.model.empty()) return InvalidArgument("cost: a model is missing (moe_plan params --list names some)");
  MOE_ASSIGN_OR_RETURN(PlannedDevice device, PlanDevice(flags));
  MOE_ASSIGN_OR_RETURN(const NamedModel model, OpenPlanModel(flags.model));
  const ContextFlags context = ContextOf(flags.context, model.config);
  device.cost.context = context.context;
  device.cost.encoder_tokens = context.encoder_tokens;
  MOE_ASSIGN_OR_RETURN(const WeightScheme scheme,
                       MakeWeightScheme(flags.weight_type, model.config, flags.attention_weight_type));
  MOE_ASSIGN_OR_RETURN(std::vector<CostPoint> points, PlanCost(model.config, scheme, device.cost, flags.batches));
  const CostReport report{.model = model,
                          .scheme = scheme,
                          .options = device.cost,
                          .device = device.name,
                          .device_source = device.source,
                          .points = std::move(points)};
  return flags.json ? CostJson(report) : CostText(report);
}

}  // namespace

PlanCommand AddCostCommand(CLI::App& app) {
  return MakePlanCommand(
      NewPlanCommand(app, "cost", "Estimate tokens per second, price and energy from two roofs.", kCostExamples),
      AddCostFlags, Cost);
}

}  // namespace moe
