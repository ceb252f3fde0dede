// The results of `moe_bench transport` as JSON and as a table.
#include <nlohmann/json.hpp>

#include "bench/statistics.h"
#include "bench/table.h"
#include "bench/transport/exchange_bench.h"
#include "core/text.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

Json Spread(const std::vector<double>& sorted) {
  return {{"p10", Percentile(sorted, 10)}, {"p50", Percentile(sorted, 50)}, {"p90", Percentile(sorted, 90)}};
}

Json SecondsJson(const std::vector<double>& sorted) {
  Json seconds = Spread(sorted);
  seconds["p99"] = Percentile(sorted, 99);
  return seconds;
}

Json OrNull(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

// What a transport and its baselines have alike.
void AddFigures(const ExchangeResult& result, std::size_t path, Json& into) {
  into["seconds"] = SecondsJson(result.paths[path].exchanges);
  into["algbw_bytes_per_s"] = result.algorithm_bandwidth(path);
  into["busbw_bytes_per_s"] = result.bus_bandwidth(path);
  into["one_way_latency_seconds"] = OrNull(result.one_way_latency(path));
}

Json BaselinesJson(const ExchangeResult& result) {
  Json baselines = Json::array();
  for (std::size_t b = 1; b < result.paths.size(); ++b) {
    Json baseline = {{"name", result.paths[b].name}};
    AddFigures(result, b, baseline);
    baseline["ratio"] = result.ratio(b);
    baseline["turn_ratio"] = Spread(result.turn_ratios(b));
    baselines.push_back(std::move(baseline));
  }
  return baselines;
}

Json ResultJson(const ExchangeResult& result, const ExchangeBenchContext& context) {
  const bool rows = result.test.rows > 0;
  Json json = {{"transport", result.paths[0].name},
               {"ranks", context.ranks},
               {"workers", result.test.workers},
               {"rows", rows ? Json(result.test.rows) : Json(nullptr)},
               {"hidden", rows ? Json(context.hidden) : Json(nullptr)},
               {"exchange_type", rows ? Json(context.type) : Json(nullptr)},
               {"request_bytes", result.test.bytes.request},
               {"reply_bytes", result.test.bytes.reply},
               {"exchanges", result.paths[0].exchanges.size()}};
  AddFigures(result, 0, json);
  json["baselines"] = BaselinesJson(result);
  return json;
}

std::string Microseconds(const std::vector<double>& sorted) {
  return Format("%.1f [%.1f %.1f]", 1e6 * Percentile(sorted, 50), 1e6 * Percentile(sorted, 10),
                1e6 * Percentile(sorted, 90));
}

std::string P99(const PathSeconds& path) { return Format("%.1f", 1e6 * Percentile(path.exchanges, 99)); }

// "mpi 1.5 us (raw_mpi 1.2 us)"
std::string LatencyLine(const ExchangeResult& result) {
  std::string text = Cat("one way of ", result.test.bytes.request, " bytes to one worker: ", result.paths[0].name,
                         Format(" %.2f us", 1e6 * *result.one_way_latency(0)));
  for (std::size_t b = 1; b < result.paths.size(); ++b)
    text += Cat(", ", result.paths[b].name, Format(" %.2f us", 1e6 * *result.one_way_latency(b)));
  return text + "\n";
}

}  // namespace

std::string ExchangeResultsJson(const std::vector<ExchangeResult>& results, const ExchangeBenchContext& context) {
  Json list = Json::array();
  for (const ExchangeResult& result : results) list.push_back(ResultJson(result, context));
  return list.dump();
}

std::string ExchangeTable(const std::vector<ExchangeResult>& results, const ExchangeBenchContext& context) {
  const bool rows = !results.empty() && results.front().test.rows > 0;
  std::string text = Cat(context.ranks, " rank(s), messages to each worker and back",
                         rows ? Cat(", of rows of ", context.hidden, " ", context.type) : "",
                         "; us: median [p10 p90]; GB/s: bus bandwidth at the median\n");
  std::vector<std::string> header = {"transport", "workers"};
  if (rows) header.push_back("rows");
  for (const char* column : {"bytes", "us", "p99", "GB/s", "baseline", "us", "p99", "GB/s", "ratio [p10 p90] of turns"})
    header.push_back(column);
  TextTable table(header);
  std::string latencies;
  for (const ExchangeResult& result : results) {
    if (result.test.latency) latencies += LatencyLine(result);
    for (std::size_t b = 1; b < result.paths.size(); ++b) {
      const std::vector<double> ratios = result.turn_ratios(b);
      std::vector<std::string> cells = {result.paths[0].name, std::to_string(result.test.workers)};
      if (rows) cells.push_back(std::to_string(result.test.rows));
      for (std::string cell :
           {std::to_string(result.test.bytes.request), Microseconds(result.paths[0].exchanges), P99(result.paths[0]),
            Format("%.3f", result.bus_bandwidth(0) / 1e9), result.paths[b].name,
            Microseconds(result.paths[b].exchanges), P99(result.paths[b]),
            Format("%.3f", result.bus_bandwidth(b) / 1e9),
            Format("%.2f [%.2f %.2f]", result.ratio(b), Percentile(ratios, 10), Percentile(ratios, 90))})
        cells.push_back(std::move(cell));
      table.Add(std::move(cells));
    }
  }
  return text + table.Text() + latencies;
}

}  // namespace moe
