// The envelope that every subcommand of moe_bench writes its results in: what ran, where, built how, with which flags.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace moe {

/// A flag and its value; monostate: not given and without a default.
struct ConfigEntry {
  std::string name;
  std::variant<std::monostate, bool, std::int64_t, double, std::string> value;
};

/// The machine, as far as figures depend on it.
struct HostDescription {
  std::string cpu;
  int cores = 0;  // that this process may use
  std::uint64_t memory_bytes = 0;
  std::string isa;                                   // the widest vector instructions: "avx512", "avx2", "neon", …
  std::optional<double> read_bandwidth_bytes_per_s;  // only when this run measured it
  std::optional<double> peak_flops;                  // the same
};

HostDescription DescribeHost();

/// "0.1.0", and of the commit "1234abcd5678" or "unknown"; the compiler's name and version.
struct BuildDescription {
  std::string version;
  std::string commit;
  std::string compiler;
};

BuildDescription DescribeBuild();

struct Report {
  std::string kind;  // the subcommand
  std::string when;  // NowUtc()
  HostDescription host;
  BuildDescription build;
  std::vector<ConfigEntry> config;
  std::string results_json;  // JSON text, made by the subcommand
};

/// The whole envelope as indented JSON with a newline at its end. Numbers that JSON lacks (infinite) become strings.
std::string EnvelopeJson(const Report& report);

}  // namespace moe
