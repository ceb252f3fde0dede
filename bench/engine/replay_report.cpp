// The result of `moe_bench replay` as JSON and as text.
#include <nlohmann/json.hpp>

#include "bench/engine/replay_bench.h"
#include "bench/table.h"
#include "placement/figures.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

Json SecondsJson(const StepSeconds& seconds) {
  return {{"mean", seconds.mean}, {"p50", seconds.p50}, {"p95", seconds.p95}};
}

Json ModelJson(const CostModel& model) {
  return {{"worker",
           {{"seconds", model.worker[0]},
            {"seconds_per_row", model.worker[1]},
            {"seconds_per_expert_byte", model.worker[2]}}},
          {"dispatch", {{"seconds", model.dispatch[0]}, {"seconds_per_byte", model.dispatch[1]}}},
          {"wait",
           {{"seconds", model.wait[0]},
            {"seconds_per_byte", model.wait[1]},
            {"longest_worker", model.wait[2]},
            {"sum_of_workers", model.wait[3]}}},
          {"combine", {{"seconds", model.combine[0]}, {"seconds_per_byte", model.combine[1]}}}};
}

Json PredictionJson(const std::optional<ReplayPrediction>& prediction) {
  if (!prediction) return nullptr;
  return {{"steps", prediction->steps},
          {"calibration_steps", prediction->calibration_steps},
          {"calibration_exchanges", prediction->calibration_exchanges},
          {"measured_step_seconds", SecondsJson(prediction->measured)},
          {"predicted_step_seconds", SecondsJson(prediction->predicted)},
          {"error", prediction->error()},
          {"mean_absolute_error", prediction->mean_absolute_error},
          {"cost_model", ModelJson(prediction->model)}};
}

Json LayersJson(const ReplayResult& result) {
  Json layers = Json::array();
  for (const ReplayLayer& layer : result.layers)
    layers.push_back({{"layer", layer.layer},
                      {"balancedness", Balancedness(layer.worker_rows)},
                      {"worker_rows", layer.worker_rows},
                      {"expert_tokens", layer.expert_tokens}});
  return layers;
}

// "12.34" ms.
std::string Milliseconds(double seconds) { return Format("%.3f", 1e3 * seconds); }

std::string PredictionText(const ReplayPrediction& prediction) {
  TextTable table({"steps not used for it", "mean ms", "p50", "p95"});
  for (const auto& [name, seconds] :
       {std::pair("measured", &prediction.measured), std::pair("predicted", &prediction.predicted)})
    table.Add({name, Milliseconds(seconds->mean), Milliseconds(seconds->p50), Milliseconds(seconds->p95)});
  const auto error = [](double predicted, double measured) {
    return Format("%+.1f%%", 100 * (predicted / measured - 1));
  };
  table.Add({"error", error(prediction.predicted.mean, prediction.measured.mean),
             error(prediction.predicted.p50, prediction.measured.p50),
             error(prediction.predicted.p95, prediction.measured.p95)});
  const CostModel& model = prediction.model;
  const double bandwidth = model.worker[2] > 0 ? 1e-9 / model.worker[2] : 0;
  return Cat(
      "\ncost model of ", prediction.calibration_steps, " other steps: a worker takes ",
      Format("%.1f us, %.3f us a row and ", 1e6 * model.worker[0], 1e6 * model.worker[1]),
      bandwidth > 0 ? Format("its experts' weights at %.2f GB/s", bandwidth) : "nothing for its experts' weights",
      Format("; an exchange %.1f us, %.2f of the longest worker and %.2f of the sum of all\n",
             1e6 * (model.wait[0] + model.dispatch[0] + model.combine[0]), model.wait[2], model.wait[3]),
      table.Text(), "a step is off by ", Format("%.1f%%", 100 * prediction.mean_absolute_error),
      " in the mean of the absolute errors, over ", prediction.steps, " steps\n");
}

}  // namespace

std::string ReplayResultsJson(const ReplayResult& result, const ReplayContext& context) {
  const TraceHeader& trace = result.trace.header;
  Json list = Json::array();
  list.push_back({{"model", context.model},
                  {"weight_type", context.weight_type},
                  {"exchange_type", context.exchange_type},
                  {"placement", context.placement},
                  {"slots", context.slots},
                  {"transport", context.transport},
                  {"threads", context.threads},
                  {"ranks", context.ranks},
                  {"workers", context.workers},
                  {"trace_model", trace.model},
                  {"routing", trace.routing},
                  {"steps", result.steps},
                  {"rows", result.rows},
                  {"step_seconds", SecondsJson(result.step_seconds)},
                  {"tokens_per_s", result.tokens_per_s()},
                  {"wait_share", result.wait_share},
                  {"dispatch_share", result.dispatch_share},
                  {"combine_share", result.combine_share},
                  {"plan_seconds", result.plan_seconds},
                  {"worker_rows", result.worker_rows()},
                  {"slowest_over_mean", result.slowest_over_mean()},
                  {"balancedness", result.balancedness()},
                  {"exchange_balancedness", result.exchange_balancedness},
                  {"request_bytes", result.request_bytes},
                  {"reply_bytes", result.reply_bytes},
                  {"messages", result.messages},
                  {"prediction", PredictionJson(result.prediction)},
                  {"layers", LayersJson(result)}});
  return list.dump();
}

std::string ReplayTable(const ReplayResult& result, const ReplayContext& context) {
  const TraceHeader& trace = result.trace.header;
  const double steps = static_cast<double>(result.steps);
  std::string text =
      Cat(context.model, ", ", context.weight_type, ", rows as ", context.exchange_type, ", ", context.workers,
          " worker(s), ", context.ranks, " rank(s) of ", context.threads, " thread(s), ", context.transport,
          ", placement ", context.placement, " of ", context.slots, " slots a layer\ntrace of ", trace.model,
          ", routing ", trace.routing, ": ", result.steps, " steps, ", result.rows, " rows\n");
  TextTable table({"step ms", "p50", "p95", "tokens/s", "wait", "dispatch", "combine", "plan us", "slowest/mean",
                   "balancedness", "of an exchange", "MB/step out", "back"});
  table.Add({Milliseconds(result.step_seconds.mean), Milliseconds(result.step_seconds.p50),
             Milliseconds(result.step_seconds.p95), Format("%.1f", result.tokens_per_s()),
             Format("%.1f%%", 100 * result.wait_share), Format("%.1f%%", 100 * result.dispatch_share),
             Format("%.1f%%", 100 * result.combine_share), Format("%.1f", 1e6 * result.plan_seconds),
             Format("%.3f", result.slowest_over_mean()), Format("%.3f", result.balancedness()),
             Format("%.3f", result.exchange_balancedness),
             Format("%.3f", static_cast<double>(result.request_bytes) / steps / 1e6),
             Format("%.3f", static_cast<double>(result.reply_bytes) / steps / 1e6)});
  text += table.Text();
  return text + (result.prediction ? PredictionText(*result.prediction)
                                   : std::string("no prediction: the trace has too few steps for --calibrate\n"));
}

}  // namespace moe
