// moe_bench: measurements of moe-serve. Flags and wiring only; what they do is in bench/.
#include <CLI/CLI.hpp>
#include <vector>

#include "apps/bench_commands.h"
#include "apps/flags.h"
#include "bench/report.h"
#include "core/text.h"
#include "ranks/mpi_job.h"

namespace moe {
namespace {

int Main(int argc, char** argv) {
  CLI::App app{"Measurements of moe-serve.", "moe_bench"};
  const BuildDescription build = DescribeBuild();
  app.set_version_flag("--version", Cat("moe_bench ", build.version, " (", build.commit, ")"));
  app.set_config("--config", "", "TOML file with flags, a section for each command, for example [load]");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.require_subcommand(1);
  app.fallthrough();
  app.footer(
      "moe_bench COMMAND --help shows a command's flags and examples, for example:\n"
      "  moe_bench load --server 127.0.0.1:50051 --num-requests 200 --request-rate 20\n"
      "  moe_bench engine --model models/eight-languages-moe\n"
      "  moe_bench kernels --models olmoe-1b-7b\n"
      "  moe_bench quality --model models/eight-languages-moe --text models/held-out.txt\n"
      "  mpirun --oversubscribe --bind-to none -n 8 moe_bench transport --exchange-type bf16\n"
      "  moe_bench placement\n"
      "  moe_bench replay --trace today.moetrace --model models/eight-languages-moe");

  const std::vector<BenchCommand> commands = {
      AddLoadCommand(app),      AddEngineCommand(app),    AddKernelsCommand(app), AddQualityCommand(app),
      AddTransportCommand(app), AddPlacementCommand(app), AddReplayCommand(app)};

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and version are no errors; CLI11 prints them on stdout.
    if (error.get_exit_code() == 0) return IsFirstLaunchedRank() ? app.exit(error) : 0;
    return Fail(kExitBadUsage, ExplainParseError(app, error));
  }
  for (const BenchCommand& command : commands)
    if (command.app->parsed()) return command.run();
  return kExitBadUsage;
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) { return moe::Main(argc, argv); }
