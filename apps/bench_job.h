// A benchmark of what ranks are made of: in this process, or over the ranks that mpirun started, of which rank 0
// measures and the others host experts.
#pragma once

#include <functional>

#include "apps/bench_flags.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "ranks/rank_setup.h"
#include "transport/transport.h"

namespace moe {

/// Everything is called on the rank that measures, but `check`.
struct BenchJob {
  const RankOptions& rank;
  const OutputFlags& output;
  /// What a single process is set up as.
  std::function<Result<RankSetup>()> prepare_alone;
  /// On every rank alike, once it is set up. May be empty.
  std::function<Status(const RankSetup&)> check;
  /// Before this process is confined to its share of the processors; whether all ranks are on this machine.
  std::function<void(bool one_machine)> begin;
  /// The measurement and its report, in a single process; gives the exit code.
  std::function<Result<int>(RankSetup)> run_alone;
  /// The same over workers that load and serve at the other ends.
  std::function<Result<int>(const RankSetup&, ThreadPool&, Transport&)> run;
};

/// The exit code of this rank.
int RunBenchJob(const BenchJob& job);

/// Says what became of this rank's cache of weights, once it has loaded.
void TellAboutWeightCache(const RankSetup& setup);

}  // namespace moe
