#include "bench/plan/cost_report.h"

#include <nlohmann/json.hpp>

#include "bench/table.h"
#include "core/units.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

// Absent instead of 0 where 0 means that a flag was not given.
Json Given(double value, double figure) { return value > 0 ? Json(figure) : Json(nullptr); }

Json AssumptionsJson(const CostReport& report) {
  const CostOptions& o = report.options;
  return {{"weight_type", report.scheme.name},
          {"held_as", Describe(report.scheme)},
          {"context", o.context},
          {"encoder_tokens", report.model.config.has_encoder() ? Json(o.encoder_tokens) : Json(nullptr)},
          {"kv_element_bytes", o.kv_element_bytes},
          {"device", report.device},
          {"device_source", report.device_source},
          {"bandwidth", o.bandwidth},
          {"flops", o.flops},
          {"efficiency", o.efficiency},
          {"devices", o.devices},
          {"workers", o.workers},
          {"paid_devices", PaidDevices(o)},
          {"balancedness", o.balancedness},
          {"network", Given(o.network, o.network)},
          {"exchange_latency_seconds", o.latency_s},
          {"exchange_element_bytes", o.exchange_bytes},
          {"price_per_hour", Given(o.price_per_hour, o.price_per_hour)},
          {"watts", Given(o.watts, o.watts)},
          {"routing", "uniform"},
          {"operations_per_parameter", 2}};
}

Json PointJson(const CostPoint& point, const CostOptions& options) {
  const StepWork& work = point.work;
  return {
      {"batch", point.batch},
      {"distinct_experts", work.distinct_experts},
      {"bytes",
       {{"dense", work.dense_bytes}, {"experts", work.expert_bytes}, {"kv", work.kv_bytes}, {"total", work.bytes()}}},
      {"flops",
       {{"dense", work.dense_flops},
        {"experts", work.expert_flops},
        {"attention", work.attention_flops},
        {"total", work.flops()}}},
      {"exchange_bytes", work.exchange_bytes},
      {"memory_seconds", point.memory_seconds},
      {"compute_seconds", point.compute_seconds},
      {"network_seconds", point.network_seconds},
      {"step_seconds", point.step_seconds},
      {"bound", Name(point.bound)},
      {"tokens_per_s", point.tokens_per_s},
      {"tokens_per_s_per_sequence", point.tokens_per_s_per_sequence},
      {"price_per_million_tokens", Given(options.price_per_hour, point.price_per_million_tokens)},
      {"joules_per_token", Given(options.watts, point.joules_per_token)}};
}

std::string AssumptionLines(const CostReport& report) {
  const CostOptions& o = report.options;
  std::string text = Cat(report.model.name, ", weights ", report.scheme.name, " (", Describe(report.scheme), "), ",
                         o.kv_element_bytes, "-byte KV cache, ", WithSeparators(o.context),
                         " positions behind each sequence, one new token each, uniform routing.\n");
  if (report.model.config.has_encoder())
    text += Cat("The encoder has run over ", WithSeparators(o.encoder_tokens), " positions and is not in a step.\n");
  text += Cat("Device (", report.device, report.device_source.empty() ? "" : ": " + report.device_source,
              "): ", Significant(o.bandwidth / 1e9), " GB/s, ", Significant(o.flops / 1e12), " TFLOP/s, of which ",
              Significant(100 * o.efficiency, 3), " % are reached.\n");
  if (o.workers > 0) {
    text += Cat("A router's device and then ", o.workers, " workers' (balancedness ", Significant(o.balancedness, 3),
                "); network ", o.network > 0 ? Significant(o.network / 1e9) + " GB/s" : std::string("free"), ", ",
                Significant(o.latency_s * 1e6), " µs an exchange, ", o.exchange_bytes, " bytes an element.\n");
  } else {
    text += Cat(o.devices, " device(s) that share everything evenly and at no cost.\n");
  }
  if (o.price_per_hour > 0) text += Cat("Price: ", Significant(o.price_per_hour), " an hour and device.\n");
  if (o.watts > 0) text += Cat("Power: ", Significant(o.watts), " W a device.\n");
  return text + "Two operations a parameter and token, and attention; a step takes the larger of its two roofs.\n";
}

}  // namespace

std::string CostJson(const CostReport& report) {
  Json points = Json::array();
  for (const CostPoint& point : report.points) points.push_back(PointJson(point, report.options));
  const Json json = {{"name", report.model.name}, {"assumptions", AssumptionsJson(report)}, {"batches", points}};
  return json.dump(2) + "\n";
}

std::string CostText(const CostReport& report) {
  const CostOptions& o = report.options;
  std::vector<std::string> header = {"batch", "distinct experts", "weights read", "KV read",
                                     "GFLOP", "memory ms",        "compute ms",   "step ms",
                                     "bound", "tokens/s",         "a sequence"};
  if (o.workers > 0) header.insert(header.begin() + 7, "network ms");
  if (o.price_per_hour > 0) header.emplace_back("per million");
  if (o.watts > 0) header.emplace_back("J/token");
  TextTable table(header);
  for (const CostPoint& point : report.points) {
    const StepWork& work = point.work;
    std::vector<std::string> row = {Cat(point.batch),
                                    Significant(work.distinct_experts),
                                    ShortBytes(work.dense_bytes + work.expert_bytes),
                                    ShortBytes(work.kv_bytes),
                                    Significant(work.flops() / 1e9),
                                    Significant(point.memory_seconds * 1e3),
                                    Significant(point.compute_seconds * 1e3),
                                    Significant(point.step_seconds * 1e3),
                                    std::string(Name(point.bound)),
                                    Significant(point.tokens_per_s),
                                    Significant(point.tokens_per_s_per_sequence)};
    if (o.workers > 0) row.insert(row.begin() + 7, Significant(point.network_seconds * 1e3));
    if (o.price_per_hour > 0) row.push_back(Significant(point.price_per_million_tokens));
    if (o.watts > 0) row.push_back(Significant(point.joules_per_token));
    table.Add(row);
  }
  return AssumptionLines(report) + Cat("\n", table.Text());
}

}  // namespace moe
