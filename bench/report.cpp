#include "bench/report.h"

#include <unistd.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "build_info.h"
#include "core/machine.h"
#include "core/text.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const std::size_t begin = line.find_first_not_of(" \t", line.find(':') + 1);
    if (begin != std::string::npos) return line.substr(begin);
  }
  return "unknown";
}

std::string WidestIsa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512vnni")) return "avx512_vnni";
  if (__builtin_cpu_supports("avx512f")) return "avx512";
  if (__builtin_cpu_supports("avx2")) return "avx2";
  return "sse";
#elif defined(__aarch64__)
  return "neon";
#else
  return "unknown";
#endif
}

Json Value(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

Json Value(const ConfigEntry& entry) {
  return std::visit(
      [](const auto& value) -> Json {
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, std::monostate>) {
          return nullptr;
        } else if constexpr (std::is_same_v<T, double>) {
          return Value(value);
        } else {
          return value;
        }
      },
      entry.value);
}

Json Value(const std::optional<double>& value) { return value ? Value(*value) : Json(nullptr); }

}  // namespace

HostDescription DescribeHost() {
  HostDescription host;
  host.cpu = CpuName();
  host.cores = static_cast<int>(AllowedProcessors().size());
  host.memory_bytes =
      static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  host.isa = WidestIsa();
  return host;
}

BuildDescription DescribeBuild() {
#if defined(__clang__)
  const std::string compiler = Cat("clang ", __clang_version__);
#else
  const std::string compiler = Cat("gcc ", __VERSION__);
#endif
  return {.version = kBuildVersion, .commit = kBuildCommit, .compiler = compiler};
}

std::string EnvelopeJson(const Report& report) {
  Json config = Json::object();
  for (const ConfigEntry& entry : report.config) config[entry.name] = Value(entry);
  const Json envelope = {
      {"schema", 1},
      {"kind", report.kind},
      {"when", report.when},
      {"host",
       {{"cpu", report.host.cpu},
        {"cores", report.host.cores},
        {"memory_bytes", report.host.memory_bytes},
        {"isa", report.host.isa},
        {"read_bandwidth_bytes_per_s", Value(report.host.read_bandwidth_bytes_per_s)},
        {"peak_flops", Value(report.host.peak_flops)}}},
      {"build",
       {{"version", report.build.version}, {"commit", report.build.commit}, {"compiler", report.build.compiler}}},
      {"config", std::move(config)},
      {"results", Json::parse(report.results_json)},
  };
  // A file name in the configuration need not be UTF-8.
  return envelope.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace moe
