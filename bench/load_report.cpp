#include "bench/load_report.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "bench/table.h"
#include "core/text.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

void AddSummary(Json& results, const std::string& name, const std::optional<Summary>& summary) {
  const auto add = [&](const char* statistic, double Summary::*value) {
    results[Cat(statistic, "_", name, "_ms")] = summary ? Json((*summary).*value) : Json(nullptr);
  };
  add("mean", &Summary::mean);
  add("median", &Summary::median);
  add("std", &Summary::std);
  add("p50", &Summary::p50);
  add("p90", &Summary::p90);
  add("p95", &Summary::p95);
  add("p99", &Summary::p99);
}

constexpr int kWidth = 60;

std::string Line(std::string_view label, const std::string& value) {
  return Format("%-46s %13s\n", std::string(label).c_str(), value.c_str());
}
std::string Line(std::string_view label, std::uint64_t value) { return Line(label, std::to_string(value)); }
std::string Line(std::string_view label, double value) { return Line(label, Format("%.2f", value)); }

std::string Rule(std::string_view title, char fill) {
  const std::size_t dashes = kWidth - title.size();
  return Cat(std::string(dashes / 2, fill), title, std::string(dashes - dashes / 2, fill), "\n");
}

std::string SummaryLines(std::string_view title, std::string_view name, const std::optional<Summary>& summary) {
  std::string text = Rule(title, '-');
  if (!summary) return text + Line(Cat(name, " (ms):"), std::string("none"));
  text += Line(Cat("Mean ", name, " (ms):"), summary->mean);
  text += Line(Cat("Median ", name, " (ms):"), summary->median);
  text += Line(Cat("Std ", name, " (ms):"), summary->std);
  text += Line(Cat("P90 ", name, " (ms):"), summary->p90);
  text += Line(Cat("P95 ", name, " (ms):"), summary->p95);
  text += Line(Cat("P99 ", name, " (ms):"), summary->p99);
  return text;
}

std::string CountLines(const LoadResult& result, double request_rate) {
  const LoadFigures& figures = result.figures;
  std::string text = Line("Successful requests:", figures.completed);
  text += Line("Failed requests:", figures.failed);
  for (const auto& [reason, failure] : figures.failures) {
    text += Line(Cat("  ", reason, ":"), failure.count);
    if (!failure.message.empty()) text += Cat("    ", failure.message, "\n");
  }
  if (result.interrupted) {
    text += Line("Interrupted requests:", figures.interrupted);
    text += Line("Requests not sent:", figures.not_sent);
  }
  if (result.concurrency_limit > 0)
    text += Line("Maximum request concurrency:", std::uint64_t{result.concurrency_limit});
  text += Line("Peak concurrent requests:", result.max_concurrent_requests);
  if (std::isfinite(request_rate)) text += Line("Request rate configured (req/s):", request_rate);
  text += Line("Benchmark duration (s):", figures.duration);
  text += Line("Total input tokens:", figures.total_input_tokens);
  text += Line("Total generated tokens:", figures.total_output_tokens);
  text += Line("Request throughput (req/s):", figures.request_throughput);
  if (figures.request_goodput) text += Line("Request goodput (req/s):", *figures.request_goodput);
  text += Line("Output token throughput (tok/s):", figures.output_throughput);
  text += Line("Total token throughput (tok/s):", figures.total_token_throughput);
  return text;
}

}  // namespace

std::string LoadResultsJson(const LoadResult& result) {
  const LoadFigures& figures = result.figures;
  Json failures = Json::object();
  for (const auto& [reason, failure] : figures.failures) {
    failures[reason] = {{"count", failure.count}, {"message", failure.message}};
  }
  Json results = {
      {"model", result.model.name},
      {"weight_type", result.model.weight_type},
      {"routing", result.model.routing},
      {"completed", figures.completed},
      {"failed", figures.failed},
      {"lost", figures.lost},
      {"doubled", figures.doubled},
      {"interrupted", figures.interrupted},
      {"not_sent", figures.not_sent},
      {"failures", std::move(failures)},
      {"total_input_tokens", figures.total_input_tokens},
      {"total_output_tokens", figures.total_output_tokens},
      {"duration", figures.duration},
      {"request_throughput", figures.request_throughput},
      {"request_goodput", figures.request_goodput ? Json(*figures.request_goodput) : Json(nullptr)},
      {"output_throughput", figures.output_throughput},
      {"total_token_throughput", figures.total_token_throughput},
      {"max_concurrency", result.concurrency_limit > 0 ? Json(result.concurrency_limit) : Json(nullptr)},
      {"max_concurrent_requests", result.max_concurrent_requests},
      {"max_send_delay_ms", figures.max_send_delay_ms},
      {"output_hash", figures.output_hash},
      {"warmup",
       {{"completed", result.warmup.completed},
        {"input_tokens", result.warmup.input_tokens},
        {"output_tokens", result.warmup.output_tokens}}},
  };
  AddSummary(results, "ttft", figures.ttft_ms);
  AddSummary(results, "tpot", figures.tpot_ms);
  AddSummary(results, "itl", figures.itl_ms);
  AddSummary(results, "e2el", figures.e2el_ms);
  // A server's message need not be UTF-8.
  return results.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string LoadTable(const LoadResult& result, double request_rate) {
  std::string text = Rule(" Serving Benchmark Result ", '=');
  text += CountLines(result, request_rate);
  text += SummaryLines("Time to First Token", "TTFT", result.figures.ttft_ms);
  text += SummaryLines("Time per Output Token (excl. 1st token)", "TPOT", result.figures.tpot_ms);
  text += SummaryLines("Inter-token Latency", "ITL", result.figures.itl_ms);
  text += SummaryLines("End-to-end Latency", "E2EL", result.figures.e2el_ms);
  return text + Rule("", '=');
}

std::string LoadComplaint(const LoadResult& result) {
  const LoadFigures& figures = result.figures;
  const std::uint64_t planned = figures.completed + figures.failed + figures.interrupted + figures.not_sent;
  std::string text;
  if (figures.failed > 0) {
    text = Cat(figures.failed, " of ", planned, " requests did not complete: ", DescribeFailures(figures.failures));
  }
  if (result.interrupted) {
    text +=
        Cat(text.empty() ? "" : "; ", "interrupted with ", figures.completed, " of ", planned, " requests completed");
  }
  return text.empty() ? text : text + ".";
}

}  // namespace moe
