// The results of `moe_bench transport` as JSON and as a table.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "bench/statistics.h"
#include "bench/transport/exchange_bench.h"
#include "core/text.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

template <typename... Values>
std::string Format(const char* format, Values... values) {
  char text[256];
  std::snprintf(text, sizeof(text), format, values...);
  return text;
}

Json Spread(const std::vector<double>& sorted) {
  return {{"p10", Percentile(sorted, 10)}, {"p50", Percentile(sorted, 50)}, {"p90", Percentile(sorted, 90)}};
}

std::string SpreadText(const std::vector<double>& sorted) {
  return Format("%.1f [%.1f %.1f]", 1e6 * Percentile(sorted, 50), 1e6 * Percentile(sorted, 10),
                1e6 * Percentile(sorted, 90));
}

}  // namespace

std::string ExchangeResultsJson(const std::vector<ExchangeResult>& results, const ExchangeBenchContext& context) {
  Json list = Json::array();
  for (const ExchangeResult& result : results) {
    Json baselines = Json::array();
    for (std::size_t b = 1; b < result.paths.size(); ++b)
      baselines.push_back({{"name", result.paths[b].name},
                           {"seconds", Spread(result.paths[b].exchanges)},
                           {"ratio", result.ratio(b)},
                           {"turn_ratio", Spread(result.turn_ratios(b))}});
    list.push_back({{"transport", result.paths[0].name},
                    {"ranks", context.ranks},
                    {"workers", context.workers},
                    {"rows", result.rows},
                    {"hidden", context.hidden},
                    {"exchange_type", context.type},
                    {"request_bytes", result.bytes.request},
                    {"reply_bytes", result.bytes.reply},
                    {"exchanges", result.paths[0].exchanges.size()},
                    {"seconds", Spread(result.paths[0].exchanges)},
                    {"baselines", baselines}});
  }
  return list.dump();
}

std::string ExchangeTable(const std::vector<ExchangeResult>& results, const ExchangeBenchContext& context) {
  std::string text = Cat("exchange with ", context.workers, " worker(s), ", context.ranks, " rank(s), rows of ",
                         context.hidden, " ", context.type, ", to each worker and back; us, median [p10 p90]\n");
  text += Format("%6s %10s %-10s %28s %-10s %28s %6s %s\n", "rows", "bytes", "transport", "us", "baseline", "us",
                 "ratio", "[p10 p90] of turns");
  for (const ExchangeResult& result : results) {
    for (std::size_t b = 1; b < result.paths.size(); ++b) {
      const std::vector<double> ratios = result.turn_ratios(b);
      text += Format("%6zu %10zu %-10s %28s %-10s %28s %6.2f [%.2f %.2f]\n", result.rows, result.bytes.request,
                     result.paths[0].name.c_str(), SpreadText(result.paths[0].exchanges).c_str(),
                     result.paths[b].name.c_str(), SpreadText(result.paths[b].exchanges).c_str(), result.ratio(b),
                     Percentile(ratios, 10), Percentile(ratios, 90));
    }
  }
  return text;
}

}  // namespace moe
