#include <CLI/CLI.hpp>
#include <algorithm>
#include <optional>

#include "apps/bench_commands.h"
#include "bench/engine/kernel_bench.h"
#include "bench/statistics.h"
#include "core/date.h"
#include "core/machine.h"

namespace moe {
namespace {

struct KernelFlags {
  KernelBenchOptions bench;
  std::vector<std::string> weight_types = {"f32", "bf16", "int8", "int4"};
  std::vector<std::string> kv_types = {"f32", "bf16"};
  OutputFlags output;
};

constexpr const char* kKernelExamples = R"(Examples:
  moe_bench kernels
  # one model's matrices in one type, few rows
  moe_bench kernels --models olmoe-1b-7b --weight-types bf16 --rows 1,4,16 --contexts 2048
Each kernel is checked against the plain reference before it is timed. Exit code: 0 done, 1 a kernel is wrong or it
could not be run, 2 bad usage. Definitions of all figures: docs/benchmarks.md.)";

void AddKernelFlags(CLI::App& command, KernelFlags& flags) {
  KernelBenchOptions& bench = flags.bench;
  const auto list = [&](const char* name, auto& values, const char* help) {
    command.add_option(name, values, help)->delimiter(',')->capture_default_str();
  };
  list("--rows", bench.rows, "list of rows of a product");
  list("--contexts", bench.contexts, "list of positions that attention sees");
  list("--weight-types", flags.weight_types, "list of f32, bf16, f16, int8, int4");
  list("--kv-types", flags.kv_types, "list of f32, bf16, of keys and values");
  list("--models", bench.models, "list of models whose shapes are taken; absent: all");
  command.add_option("--threads", bench.threads, "compute threads; 0: every processor")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command.add_option("--seconds", bench.seconds, "for each figure, about")
      ->check(RefuseNan)
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  command
      .add_option("--cold-bytes", bench.cold_bytes,
                  "weights that a pass goes through; 0: eight times the last-level cache")
      ->capture_default_str();
  AddOutputFlags(command, flags.output);
  command.footer(kKernelExamples);
}

Status ReadTypes(KernelFlags& flags) {
  flags.bench.weight_types.clear();
  for (const std::string& name : flags.weight_types) {
    const std::optional<WeightType> type = ParseWeightType(name);
    if (!type) return InvalidArgument("--weight-types ", name, " is unknown (f32, bf16, f16, int8, int4)");
    flags.bench.weight_types.push_back(*type);
  }
  flags.bench.kv_types.clear();
  for (const std::string& name : flags.kv_types) {
    const std::optional<KvType> type = ParseKvType(name);
    if (!type) return InvalidArgument("--kv-types ", name, " is unknown (f32, bf16)");
    flags.bench.kv_types.push_back(*type);
  }
  return Status::Ok();
}

Result<int> Run(const CLI::App& command, KernelFlags& flags) {
  MOE_RETURN_IF_ERROR(ReadTypes(flags));
  MOE_RETURN_IF_ERROR(CheckKernelBench(flags.bench));
  MOE_RETURN_IF_ERROR(CheckOutput(flags.output));
  const std::string when = NowUtc();
  if (flags.bench.threads == 0) flags.bench.threads = static_cast<int>(AllowedProcessors().size());
  const RoofOptions roof_options{.threads = flags.bench.threads, .seconds = flags.bench.seconds};
  const Kernels& kernels = SimdKernels();
  KernelBenchContext context{.dot_roofs = MeasureDotRoofs(roof_options),
                             .kernels = std::string(kernels.name()),
                             .threads = flags.bench.threads};
  if (flags.bench.cold_bytes == 0) flags.bench.cold_bytes = ColdBytes();
  MOE_ASSIGN_OR_RETURN(const std::vector<KernelResult> results, RunKernelBench(flags.bench, kernels, Announce));
  HostDescription host = DescribeHost();
  std::vector<double> reads;
  for (const KernelResult& result : results) reads.push_back(result.read_bytes_per_s);
  host.read_bandwidth_bytes_per_s = Summarize(std::move(reads))->median;
  const auto fp32 = std::ranges::find(context.dot_roofs, "fp32", &DotRoof::format);
  if (fp32 != context.dot_roofs.end()) host.peak_flops = fp32->operations_per_s;
  return WriteReport(command, flags.output,
                     {.kind = "kernels",
                      .when = when,
                      .host = host,
                      .results_json = KernelResultsJson(results, context),
                      .table = KernelTable(results, context)});
}

}  // namespace

BenchCommand AddKernelsCommand(CLI::App& app) {
  return MakeCommand(app, "kernels", "Every kernel on the shapes that matter, beside the machine's roofs.",
                     AddKernelFlags, Run);
}

}  // namespace moe
