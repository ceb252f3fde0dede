// The results of `moe_bench engine` as JSON and as a table.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "bench/engine/engine_bench.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

// Mean over sparse layers and steps; none for a dense model.
std::optional<double> DistinctExperts(const EngineTestResult& result, const EngineBenchContext& context) {
  if (context.sparse_layers == 0) return std::nullopt;
  return static_cast<double>(result.work.distinct_experts) / static_cast<double>(result.work.steps) /
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

std::string Format(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

std::string Share(const std::optional<double>& value) { return value ? Format("%.1f%%", 100 * *value) : "-"; }

}  // namespace

std::string EngineResultsJson(const std::vector<EngineTestResult>& results, const EngineBenchContext& context) {
  Json list = Json::array();
  for (const EngineTestResult& result : results) {
    const auto& roofs = context.roofs;
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
                    {"s_mbu", roofs ? Json(result.s_mbu(*roofs)) : Json(nullptr)},
                    {"s_mfu", roofs ? Json(result.s_mfu(*roofs)) : Json(nullptr)},
                    {"idle_share", OrNull(IdleShare(result, context))},
                    {"straggler_share", OrNull(StragglerShare(result, context))},
                    {"bytes_per_token", result.bytes_per_token()},
                    {"distinct_experts", OrNull(DistinctExperts(result, context))},
                    {"repetitions", result.tokens_per_s}});
  }
  return list.dump();
}

std::string EngineTable(const std::vector<EngineTestResult>& results, const EngineBenchContext& context) {
  std::string text = Cat(context.model, ", ", context.weight_type, ", KV cache ", context.kv_type, ", ", context.ranks,
                         " rank(s) of ", context.threads, " thread(s), ", context.transport, "\n");
  if (context.roofs)
    text += Cat("machine: reads ", Format("%.1f", context.roofs->read_bandwidth_bytes_per_s / 1e9), " GB/s, computes ",
                Format("%.0f", context.roofs->peak_flops / 1e9), " GFLOP/s (fp32), ", context.roofs->threads,
                " thread(s)\n");
  constexpr const char* kRow = "%-8s %6s %22s %12s %14s %10s %8s %8s %8s %10s\n";
  char line[256];
  const auto row = [&](const char* test, const std::string& batch, const std::string& speed, const std::string& step,
                       const std::string& bytes, const std::string& experts, const std::string& mbu,
                       const std::string& mfu, const std::string& idle, const std::string& straggler) {
    std::snprintf(line, sizeof(line), kRow, test, batch.c_str(), speed.c_str(), step.c_str(), bytes.c_str(),
                  experts.c_str(), mbu.c_str(), mfu.c_str(), idle.c_str(), straggler.c_str());
    text += line;
  };
  row("test", "batch", "tokens/s", "ms a step", "kB a token", "experts", "S-MBU", "S-MFU", "idle", "straggler");
  for (const EngineTestResult& result : results) {
    const auto share = [&](double (EngineTestResult::*of)(const Roofs&) const) {
      return context.roofs ? Share((result.*of)(*context.roofs)) : Share(std::nullopt);
    };
    const std::optional<double> experts = DistinctExperts(result, context);
    row(result.test.name().c_str(), std::to_string(result.test.batch),
        Cat(Format("%.1f", result.mean_tokens_per_s()), " +- ", Format("%.1f", result.stddev_tokens_per_s())),
        Format("%.3f", 1e3 * result.step_seconds()), Format("%.1f", result.bytes_per_token() / 1e3),
        experts ? Format("%.2f", *experts) : "-", share(&EngineTestResult::s_mbu), share(&EngineTestResult::s_mfu),
        Share(IdleShare(result, context)), Share(StragglerShare(result, context)));
  }
  return text;
}

}  // namespace moe
