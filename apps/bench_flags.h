// What the commands of moe_bench share: how they fail, and how their flags and results become a report.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "apps/flags.h"
#include "bench/report.h"
#include "core/status.h"

namespace moe {

/// A command of moe_bench: its name on the command line and what it does once the flags are read; returns the exit
/// code.
struct BenchCommand {
  CLI::App* app = nullptr;
  std::function<int()> run;
};

/// Says `sentence` on stderr; returns `code`. Under mpirun, one rank speaks for all.
int Fail(int code, const std::string& sentence);

/// Of a failure: bad usage when an argument was wrong, else failed.
int ExitCode(const Status& status);
int FailBecause(const Status& status);

/// Says on stderr what is being measured, to whoever sits at a terminal.
void Announce(const std::string& what);

/// --json and --output.
struct OutputFlags {
  bool json = false;
  std::string file;
};
void AddOutputFlags(CLI::App& command, OutputFlags& flags);

/// INVALID_ARGUMENT unless the output file can be written: asked before a run, because a long one must not end with
/// nowhere to go.
Status CheckOutput(const OutputFlags& flags);

/// What a command has measured.
struct Measured {
  std::string kind;
  std::string when;
  HostDescription host;
  std::string results_json;
  std::string table;
};
/// Prints the table, or the report as JSON when asked for, and writes the output file; 0, or the exit code.
int WriteReport(const CLI::App& command, const OutputFlags& flags, const Measured& measured);

/// A subcommand of `app`, before it has flags of its own.
CLI::App* NewCommand(CLI::App& app, const char* name, const char* help);
/// Every flag of `command` also as MOE_BENCH_NAME, and in a section of the TOML file.
void FinishCommand(CLI::App& command);

/// A command with the flags that `add_flags` gives it, which `run` gets once they are read; the exit code is what it
/// returns, or that of its failure.
template <typename Flags>
BenchCommand MakeCommand(CLI::App& app, const char* name, const char* help, void (*add_flags)(CLI::App&, Flags&),
                         Result<int> (*run)(const CLI::App&, Flags&)) {
  CLI::App* command = NewCommand(app, name, help);
  const auto flags = std::make_shared<Flags>();
  add_flags(*command, *flags);
  FinishCommand(*command);
  return {.app = command, .run = [command, flags, run] {
            const Result<int> code = run(*command, *flags);
            return code.ok() ? *code : FailBecause(code.status());
          }};
}

}  // namespace moe
