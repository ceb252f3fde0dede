// The commands of moe_bench, a file each.
#pragma once

#include "apps/bench_flags.h"

namespace moe {

BenchCommand AddLoadCommand(CLI::App& app);
BenchCommand AddEngineCommand(CLI::App& app);
BenchCommand AddKernelsCommand(CLI::App& app);
BenchCommand AddQualityCommand(CLI::App& app);
BenchCommand AddTransportCommand(CLI::App& app);
BenchCommand AddPlacementCommand(CLI::App& app);
BenchCommand AddReplayCommand(CLI::App& app);

}  // namespace moe
