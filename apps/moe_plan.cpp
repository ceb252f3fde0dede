// moe_plan: counts parameters, plans memory, estimates cost, compares models, places experts; without a server. Flags
// and wiring only; what they do is in bench/plan/.
#include <CLI/CLI.hpp>
#include <array>
#include <cstdio>
#include <string>

#include "apps/plan_commands.h"
#include "build_info.h"
#include "core/text.h"

namespace moe {
namespace {

constexpr const char* kExamples = R"(Examples:
  moe_plan params mixtral-8x7b                     total, active and by part; --list names the built-in models
  moe_plan memory deepseek-v3 --workers 16 --device h200-sxm --weight-type fp8
  moe_plan cost gpt-oss-120b --device h100-sxm --batch 1,32,256 --price-per-hour 2.5
  moe_plan compare mixtral-8x7b llama-2-70b        side by side
  moe_plan placement --loads loads.json --workers 7 --slots 12
A model is a built-in name, a folder with a config.json, or such a file; weights are not needed. Every flag can also be
given in a TOML file (--config FILE, a section for each command) and in the environment (--max-step-tokens as
MOE_MAX_STEP_TOKENS). Formulas and assumptions: docs/planner.md.
Exit code: 0 done, 1 failed, 2 bad usage.)";

int Fail(int code, const std::string& sentence) {
  std::fprintf(stderr, "moe_plan: %s\n", sentence.c_str());
  return code;
}

int Print(const Result<std::string>& output) {
  if (!output.ok()) {
    const StatusCode code = output.status().code();
    const bool usage = code == StatusCode::kInvalidArgument || code == StatusCode::kNotFound ||
                       code == StatusCode::kResourceExhausted || code == StatusCode::kUnimplemented;
    return Fail(usage ? kExitBadUsage : kExitFailed, output.status().message());
  }
  const bool written = std::fputs(output->c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  return written ? 0 : Fail(kExitFailed, "the results could not be written to standard output");
}

int Main(int argc, char** argv) {
  CLI::App app("Counts parameters, plans memory and placements, estimates cost and compares models; without a server.",
               "moe_plan");
  app.footer(kExamples);
  app.set_version_flag("--version", Cat("moe_plan ", kBuildVersion, " (", kBuildCommit, ")"));
  app.set_config("--config", "", "TOML file with flags, a section for each command, for example [memory]");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.require_subcommand(1);
  app.fallthrough();
  const std::array commands = {AddParamsCommand(app), AddMemoryCommand(app), AddCostCommand(app),
                               AddCompareCommand(app), AddPlacementCommand(app)};
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and version are no errors; CLI11 prints them on stdout.
    return error.get_exit_code() == 0 ? app.exit(error) : Fail(kExitBadUsage, ExplainParseError(app, error));
  }
  for (const PlanCommand& command : commands)
    if (command.app->parsed()) return Print(command.run());
  return kExitBadUsage;
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) { return moe::Main(argc, argv); }
