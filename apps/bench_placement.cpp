#include <CLI/CLI.hpp>

#include "apps/bench_commands.h"
#include "bench/plan/placement_bench.h"
#include "core/date.h"

namespace moe {
namespace {

struct PlacementFlags {
  PlacementBenchOptions bench;
  OutputFlags output;
};

constexpr const char* kPlacementExamples = R"(Examples:
  moe_bench placement
  moe_bench placement --cases 50 --seed 7 --json
Exit code: 0 done, 1 a placement breaks a rule, 2 bad usage. What is compared: docs/balancing.md.)";

void AddPlacementFlags(CLI::App& command, PlacementFlags& flags) {
  PlacementBenchOptions& bench = flags.bench;
  const auto add = [&](const char* name, auto& value, auto least, auto most, const char* help) {
    command.add_option(name, value, help)->check(CLI::Range(least, most))->capture_default_str();
  };
  add("--cases", bench.cases, std::size_t{1}, std::size_t{1'000'000}, "random cases");
  add("--seed", bench.seed, std::uint64_t{0}, std::uint64_t{1} << 62, "names the cases");
  add("--layers", bench.layers, 1, 1000, "of the model that is timed");
  add("--experts", bench.experts, 1, 4096, "of each of its layers");
  add("--workers", bench.workers, 1, 4096, "that they are placed on");
  add("--slots", bench.slots, 1, 1'000'000, "of each of its layers, a multiple of the workers");
  add("--repetitions", bench.repetitions, 1, 1000, "of which the median time is taken");
  AddOutputFlags(command, flags.output);
  command.footer(kPlacementExamples);
}

Result<int> RunPlacement(const CLI::App& command, PlacementFlags& flags) {
  MOE_RETURN_IF_ERROR(CheckOutput(flags.output));
  const std::string when = NowUtc();
  MOE_ASSIGN_OR_RETURN(const PlacementBenchResult result, RunPlacementBench(flags.bench));
  return WriteReport(command, flags.output,
                     {.kind = "placement",
                      .when = when,
                      .host = DescribeHost(),
                      .results_json = PlacementBenchJson(result),
                      .table = PlacementBenchTable(result, flags.bench)});
}

}  // namespace

BenchCommand AddPlacementCommand(CLI::App& app) {
  return MakeCommand(app, "placement", "Our placement of experts beside eplb's, over random loads.", AddPlacementFlags,
                     RunPlacement);
}

}  // namespace moe
