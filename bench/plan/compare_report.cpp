#include "bench/plan/compare_report.h"

#include <nlohmann/json.hpp>

#include "bench/plan/cost_plan.h"
#include "bench/plan/kv_storage.h"
#include "bench/plan/memory_plan.h"
#include "bench/table.h"
#include "core/units.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

Json ModelJson(const ComparedModel& model, const CompareOptions& options) {
  Json weights = Json::object();
  for (std::size_t i = 0; i < options.weight_types.size(); ++i)
    weights[options.weight_types[i]] = model.weight_bytes[i];
  Json reads = Json::object();
  for (std::size_t i = 0; i < options.batches.size(); ++i)
    reads[std::to_string(options.batches[i])] = model.bytes_per_token[i];
  return {{"name", model.name},
          {"total", model.count.total},
          {"active", model.count.active},
          {"active_without_embedding", model.count.active_without_embedding},
          {"active_share", model.active_share()},
          {"experts", model.experts},
          {"experts_per_token", model.experts_per_token},
          {"weight_bytes", weights},
          {"weight_bytes_read_per_token", reads},
          {"kv_bytes_per_token", model.kv_bytes_per_token},
          {"kv_bytes_per_late_token", model.kv_bytes_per_late_token}};
}

/// One row: a label, and a cell for each model.
template <typename Cell>
void AddRow(TextTable& table, const std::string& label, std::span<const ComparedModel> models, Cell&& cell) {
  std::vector<std::string> row = {label};
  for (const ComparedModel& model : models) row.push_back(cell(model));
  table.Add(std::move(row));
}

}  // namespace

Result<ComparedModel> CompareModel(const NamedModel& model, const CompareOptions& options) {
  const ModelConfig& config = model.config;
  ComparedModel compared{.name = model.name,
                         .count = CountParameters(config),
                         .experts = config.num_experts(),
                         .experts_per_token = config.experts_per_token()};
  for (const std::string& type : options.weight_types) {
    MOE_ASSIGN_OR_RETURN(const WeightScheme scheme, MakeWeightScheme(type, config, options.attention_weight_type));
    compared.weight_bytes.push_back(CountWeightBytes(config, scheme).total);
  }
  MOE_ASSIGN_OR_RETURN(const WeightScheme read,
                       MakeWeightScheme(options.read_type, config, options.attention_weight_type));
  for (const std::uint64_t batch : options.batches) {
    if (batch < 1 || batch > kMostBatch) return InvalidArgument("batch ", batch, " is not in 1 … ", kMostBatch);
    const StepWork work = CountStepWork(config, read, {.tokens = batch});
    compared.bytes_per_token.push_back((work.dense_bytes + work.expert_bytes) / static_cast<double>(batch));
  }
  compared.kv_bytes_per_token = KvElementsPerToken(config) * options.kv_element_bytes;
  compared.kv_bytes_per_late_token = KvElementsPerLateToken(config) * options.kv_element_bytes;
  return compared;
}

std::string CompareJson(std::span<const ComparedModel> models, const CompareOptions& options) {
  Json list = Json::array();
  for (const ComparedModel& model : models) list.push_back(ModelJson(model, options));
  const Json json = {{"assumptions",
                      {{"read_weight_type", options.read_type},
                       {"kv_element_bytes", options.kv_element_bytes},
                       {"attention_weight_type",
                        options.attention_weight_type ? Json(Name(*options.attention_weight_type)) : Json(nullptr)},
                       {"routing", "uniform"}}},
                     {"models", list}};
  return json.dump(2) + "\n";
}

std::string CompareText(std::span<const ComparedModel> models, const CompareOptions& options) {
  std::vector<std::string> header = {""};
  for (const ComparedModel& model : models) header.push_back(model.name);
  TextTable table(header);
  const auto row = [&](const std::string& label, auto&& cell) { AddRow(table, label, models, cell); };
  const auto bytes = [](std::uint64_t value) { return ShortBytes(static_cast<double>(value)); };
  row("total", [](const ComparedModel& m) { return WithSeparators(m.count.total); });
  row("active", [](const ComparedModel& m) { return WithSeparators(m.count.active); });
  row("active without embedding",
      [](const ComparedModel& m) { return WithSeparators(m.count.active_without_embedding); });
  row("active / total", [](const ComparedModel& m) { return Cat(Significant(100 * m.active_share(), 3), " %"); });
  row("experts, a token", [](const ComparedModel& m) {
    return m.experts == 0 ? std::string("dense") : Cat(m.experts, ", ", m.experts_per_token);
  });
  for (std::size_t i = 0; i < options.weight_types.size(); ++i)
    row(Cat("weights ", options.weight_types[i]), [&](const ComparedModel& m) { return bytes(m.weight_bytes[i]); });
  for (std::size_t i = 0; i < options.batches.size(); ++i)
    row(Cat("weights read a token, batch ", options.batches[i]),
        [&](const ComparedModel& m) { return ShortBytes(m.bytes_per_token[i]); });
  row("KV cache a token", [&](const ComparedModel& m) { return bytes(m.kv_bytes_per_token); });
  row("KV cache a token, windows full", [&](const ComparedModel& m) { return bytes(m.kv_bytes_per_late_token); });
  return table.Text() + Cat("\nRead as ", options.read_type,
                            ", one new token a sequence, uniform routing, a step's distinct experts once; KV cache of ",
                            options.kv_element_bytes, "-byte elements.\n");
}

}  // namespace moe
