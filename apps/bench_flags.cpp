#include "apps/bench_flags.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <fstream>
#include <iostream>

#include "core/text.h"
#include "ranks/mpi_job.h"

namespace moe {
namespace {

// A flag's value with the type that it was declared with.
ConfigEntry Describe(const CLI::Option& option) {
  ConfigEntry entry{.name = option.get_lnames().front(), .value = {}};
  std::replace(entry.name.begin(), entry.name.end(), '-', '_');
  if (option.get_expected_max() == 0) {
    // A flag keeps what was given; without it, its default is in the default string.
    const std::string text = option.count() > 0 ? option.results().back() : option.get_default_str();
    entry.value = text == "true";
    return entry;
  }
  std::vector<std::string> results = option.results();
  if (results.empty() && !option.get_default_str().empty()) results = {option.get_default_str()};
  if (results.empty()) return entry;
  if (option.get_expected_max() > 1) {
    entry.value = CLI::detail::join(results, option.get_delimiter() == ',' ? "," : " ");
    return entry;
  }
  const std::string text = CLI::detail::join(results, " ");
  const std::string type = option.get_type_name();
  if (type.starts_with("UINT") || type.starts_with("INT")) {  // a range may follow
    entry.value = static_cast<std::int64_t>(std::stoll(text));
  } else if (type.starts_with("FLOAT")) {
    entry.value = std::stod(text);
  } else {
    entry.value = text;
  }
  return entry;
}

std::vector<ConfigEntry> DescribeAll(const CLI::App& command) {
  std::vector<ConfigEntry> entries;
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_configurable() && !option->get_lnames().empty()) entries.push_back(Describe(*option));
  }
  return entries;
}

}  // namespace

int Fail(int code, const std::string& sentence) {
  // In one piece: mpirun's own words may come in between others.
  if (IsFirstLaunchedRank()) std::cerr << Cat("moe_bench: ", sentence, "\n");
  return code;
}

int ExitCode(const Status& status) {
  const bool usage = status.code() == StatusCode::kInvalidArgument || status.code() == StatusCode::kNotFound;
  return usage ? kExitBadUsage : kExitFailed;
}

int FailBecause(const Status& status) { return Fail(ExitCode(status), status.message()); }

void Announce(const std::string& what) {
  if (isatty(STDERR_FILENO) != 0) std::cerr << Cat("moe_bench: ", what, "\n");
}

void AddOutputFlags(CLI::App& command, OutputFlags& flags) {
  command.add_flag("--json", flags.json, "results as JSON on stdout")->default_str("false");
  command.add_option("--output", flags.file, "write the JSON into this file too");
}

Status CheckOutput(const OutputFlags& flags) {
  // What is there stays until there is more to say.
  if (flags.file.empty() || std::ofstream(flags.file, std::ios::app)) return Status::Ok();
  return InvalidArgument("--output ", flags.file, ": cannot be written.");
}

int WriteReport(const CLI::App& command, const OutputFlags& flags, const Measured& measured) {
  const std::string json = EnvelopeJson({.kind = measured.kind,
                                         .when = measured.when,
                                         .host = measured.host,
                                         .build = DescribeBuild(),
                                         .config = DescribeAll(command),
                                         .results_json = measured.results_json});
  std::cout << (flags.json ? json : measured.table) << std::flush;
  if (!flags.file.empty()) {
    std::ofstream file(flags.file, std::ios::binary);
    file << json << std::flush;
    if (!file) return Fail(kExitFailed, Cat("--output ", flags.file, ": could not be written in full."));
  }
  if (!std::cout) return Fail(kExitFailed, "the results could not be written to standard output.");
  return 0;
}

CLI::App* NewCommand(CLI::App& app, const char* name, const char* help) { return app.add_subcommand(name, help); }

void FinishCommand(CLI::App& command) {
  for (CLI::Option* option : command.get_options()) {
    if (!option->get_configurable() || option->get_lnames().empty()) continue;
    std::string name = option->get_lnames().front();
    std::replace(name.begin(), name.end(), '-', '_');
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    option->envname("MOE_BENCH_" + name);
  }
  command.configurable();
  command.fallthrough();
}

}  // namespace moe
