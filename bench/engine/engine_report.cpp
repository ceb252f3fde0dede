// The results of `moe_bench engine` as JSON and as a table.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "bench/engine/engine_bench.h"
#include "bench/table.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

// Mean over sparse layers and steps; none for a dense model.
std::optional<double> DistinctExperts(const EngineTestResult& result, const EngineBenchContext& context) {
  if (context.sparse_layers == 0) return std::nullopt;
  return static_cast<double>(result.work().distinct_experts) / static_cast<double>(result.work().steps) /
         static_cast<double>(context.sparse_layers);
}

// In a job of several ranks the router's threads wait for the others', which nobody here has counted.
std::optional<double> IdleShare(const EngineTestResult& result, const EngineBenchContext& context) {
  if (context.ranks > 1) return std::nullopt;
  return result.idle_share(context.threads);
}

// None either when everything was too small to share out.
std::optional<double> StragglerShare(const EngineTestResult& result, const EngineBenchContext& context) {
  if (context.ranks > 1 || result.usage.loops == 0) return std::nullopt;
  return result.straggler_share(context.threads);
}

Json OrNull(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Json BindingJson(const EngineTestResult& result) {
  const std::optional<Binding> binding = result.binding();
  if (!binding) return nullptr;
  return {{"roof", binding->bandwidth() ? "bandwidth" : "arithmetic"},
          {"share", binding->bandwidth() ? *result.s_mbu() : *result.s_mfu()},
          {"bandwidth_tokens_per_s", binding->bandwidth_tokens_per_s},
          {"arithmetic_tokens_per_s", binding->arithmetic_tokens_per_s}};
}

// Steps by the micro-batches that they were cut into, those numbers only that there were.
Json MicroBatchesJson(const EngineTestResult& result) {
  Json steps = Json::object();
  for (std::size_t i = 0; i < kMaxMicroBatches; ++i)
    if (const std::uint64_t count = result.micro_batch_steps()[i]; count > 0) steps[std::to_string(i + 1)] = count;
  return steps;
}

// "2", or "1,2" where steps differ.
std::string CountsOfMicroBatches(const EngineTestResult& result) {
  const Json steps = MicroBatchesJson(result);
  std::string text;
  for (const auto& [count, unused] : steps.items()) text += (text.empty() ? "" : ",") + count;
  return text;
}

Json AskedJson(const EngineTestResult& result) {
  if (result.micro_batches_asked == EngineBenchOptions::kEnginesChoice) return "auto";
  return result.micro_batches_asked;
}

// What the prediction is made from; docs/benchmarks.md has the formula.
Json OverlapJson(const EngineTestResult& result) {
  if (!result.prediction) return nullptr;
  return {{"dense_seconds", result.prediction->times.dense},
          {"expert_seconds", result.prediction->times.expert},
          {"transfer_seconds", result.prediction->times.transfer},
          {"rest_seconds", result.prediction->rest_seconds},
          {"sparse_layers", result.prediction->layers}};
}

std::optional<double> PredictedSeconds(const EngineTestResult& result) {
  if (!result.prediction) return std::nullopt;
  return result.prediction->step_seconds;
}

Json MachineJson(const EngineTestResult& result) {
  Json list = Json::array();
  for (const Repetition& repetition : result.repetitions) {
    if (!repetition.machine) return nullptr;
    list.push_back({{"read_bandwidth_bytes_per_s", repetition.machine->read_bytes_per_s},
                    {"fp32_operations_per_s", OrNull(repetition.machine->fp32_operations_per_s)},
                    {"int8_operations_per_s", OrNull(repetition.machine->int8_operations_per_s)}});
  }
  return list;
}

// Steps beside what was predicted of them; nothing when nothing was.
std::string OverlapTable(const std::vector<EngineTestResult>& results) {
  if (std::ranges::none_of(results, [](const EngineTestResult& result) { return result.prediction.has_value(); }))
    return "";
  TextTable table({"test", "batch", "micro", "ms/step", "predicted", "error", "us dense", "us experts", "us one way"});
  for (const EngineTestResult& result : results) {
    if (!result.prediction) continue;
    const OverlapTimes& times = result.prediction->times;
    table.Add({result.test.name(), std::to_string(result.test.batch), std::to_string(result.micro_batches_asked),
               Format("%.3f", 1e3 * result.step_seconds()), Format("%.3f", 1e3 * result.prediction->step_seconds),
               Format("%+.1f%%", 100 * *result.prediction_error()), Format("%.1f", 1e6 * times.dense),
               Format("%.1f", 1e6 * times.expert), Format("%.1f", 1e6 * times.transfer)});
  }
  return "\nmicro-batches in turn: the step, what was predicted of it, and from what; us of one part in one layer\n" +
         table.Text();
}

std::string Share(const std::optional<double>& value) { return value ? Format("%.1f%%", 100 * *value) : "-"; }

// "31.2 GB/s (28.0 to 40.1)": what the repetitions of all tests had.
std::string MachineLine(const std::vector<EngineTestResult>& results) {
  const std::optional<MachineRates> median = MedianMachine(results);
  if (!median) return "";
  double least = median->read_bytes_per_s, most = least;
  for (const EngineTestResult& result : results) {
    for (const Repetition& repetition : result.repetitions) {
      least = std::min(least, repetition.machine->read_bytes_per_s);
      most = std::max(most, repetition.machine->read_bytes_per_s);
    }
  }
  std::string text = Format("machine meanwhile: reads %.1f GB/s (%.1f to %.1f)", median->read_bytes_per_s / 1e9,
                            least / 1e9, most / 1e9);
  if (median->fp32_operations_per_s) text += Format(", computes %.0f Gop/s fp32", *median->fp32_operations_per_s / 1e9);
  if (median->int8_operations_per_s) text += Format(", %.0f Gop/s int8", *median->int8_operations_per_s / 1e9);
  return text + "\n";
}

std::string TraceLines(const std::vector<EngineTestResult>& results) {
  std::string text;
  for (const EngineTestResult& result : results)
    if (result.trace_cost)
      text += Cat(result.test.name(), ", batch ", result.test.batch, ": recording its routing takes ",
                  Format("%+.2f %%", 100 * *result.trace_cost), " of its time\n");
  return text;
}

}  // namespace

std::string EngineResultsJson(const std::vector<EngineTestResult>& results, const EngineBenchContext& context) {
  Json list = Json::array();
  for (const EngineTestResult& result : results) {
    list.push_back({{"test", result.test.name()},
                    {"batch", result.test.batch},
                    {"tokens_per_s", result.mean_tokens_per_s()},
                    {"tokens_per_s_stddev", result.stddev_tokens_per_s()},
                    {"step_seconds", result.step_seconds()},
                    {"weight_type", context.weight_type},
                    {"kv_type", context.kv_type},
                    {"threads", context.threads},
                    {"ranks", context.ranks},
                    {"transport", context.transport},
                    {"model", context.model},
                    {"routing", context.routing},
                    {"traced", result.traced},
                    {"trace_cost", OrNull(result.trace_cost)},
                    {"s_mbu", OrNull(result.s_mbu())},
                    {"s_mfu", OrNull(result.s_mfu())},
                    {"binding", BindingJson(result)},
                    {"idle_share", OrNull(IdleShare(result, context))},
                    {"straggler_share", OrNull(StragglerShare(result, context))},
                    {"micro_batches_asked", AskedJson(result)},
                    {"micro_batches", MicroBatchesJson(result)},
                    {"predicted_step_seconds", OrNull(PredictedSeconds(result))},
                    {"prediction_error", OrNull(result.prediction_error())},
                    {"overlap", OverlapJson(result)},
                    {"bytes_per_token", result.bytes_per_token()},
                    {"distinct_experts", OrNull(DistinctExperts(result, context))},
                    {"repetitions", result.tokens_per_s()},
                    {"machine", MachineJson(result)}});
  }
  return list.dump();
}

std::string EngineTable(const std::vector<EngineTestResult>& results, const EngineBenchContext& context) {
  const std::string title = Cat(context.model, ", ", context.weight_type, ", KV cache ", context.kv_type, ", ",
                                context.ranks, " rank(s) of ", context.threads, " thread(s), ", context.transport,
                                context.routing == "gate" ? "" : Cat(", synthetic routing ", context.routing), "\n");
  TextTable table({"test", "batch", "tokens/s", "ms/step", "MB/token", "experts", "micro", "S-MBU", "at most", "S-MFU",
                   "at most", "idle", "straggler"});
  for (const EngineTestResult& result : results) {
    const std::optional<double> experts = DistinctExperts(result, context);
    const std::optional<Binding> binding = result.binding();
    const auto most = [&](double Binding::*speed, bool binds) {
      return binding ? Format("%.1f%s", (*binding).*speed, binds ? "*" : "") : "-";
    };
    table.Add({Cat(result.test.name(), result.traced ? "+trace" : ""), std::to_string(result.test.batch),
               Format("%.1f±%.1f", result.mean_tokens_per_s(), result.stddev_tokens_per_s()),
               Format("%.3f", 1e3 * result.step_seconds()), Format("%.3f", result.bytes_per_token() / 1e6),
               experts ? Format("%.2f", *experts) : "-", CountsOfMicroBatches(result), Share(result.s_mbu()),
               most(&Binding::bandwidth_tokens_per_s, binding && binding->bandwidth()), Share(result.s_mfu()),
               most(&Binding::arithmetic_tokens_per_s, binding && !binding->bandwidth()),
               Share(IdleShare(result, context)), Share(StragglerShare(result, context))});
  }
  const std::string machine = MachineLine(results);
  return title + machine + table.Text() +
         (machine.empty() ? "" : "at most: tokens/s that reading alone, or computing alone, would allow; * binds\n") +
         TraceLines(results) + OverlapTable(results);
}

}  // namespace moe
