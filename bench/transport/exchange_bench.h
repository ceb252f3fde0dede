// `moe_bench transport`: what it takes to send rows to all workers and to get as many back, by a transport of ours and
// by a bare loop, in turns. docs/benchmarks.md defines the figures.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bench/transport/exchange_path.h"
#include "core/status.h"
#include "model/dispatch_format.h"
#include "transport/transport.h"

namespace moe {

struct ExchangeBenchOptions {
  std::vector<std::size_t> rows = {1, 8, 64, 512};  // to each worker
  std::size_t hidden = 2048;
  ExchangeType type = ExchangeType::kF32;
  std::size_t repetitions = 30;  // turns of each path
  std::size_t exchanges = 10;    // counted in a turn, after one that is not
};

/// INVALID_ARGUMENT naming the flag whose value nothing can be measured with.
Status CheckExchangeBench(const ExchangeBenchOptions& options);

/// Payload of a dispatch of `rows` rows with one pair each, and of its answer.
ExchangeBytes BytesOf(const ExchangeBenchOptions& options, std::size_t rows);
/// The largest of all tests.
ExchangeBytes LargestBytes(const ExchangeBenchOptions& options);
/// Of a transport that all tests fit.
TransportLimits LimitsOf(const ExchangeBenchOptions& options);

/// What one path took in one test.
struct PathSeconds {
  std::string name;
  std::vector<double> exchanges;     // ascending
  std::vector<double> turn_medians;  // in the order of the turns
};

struct ExchangeResult {
  std::size_t rows = 0;
  ExchangeBytes bytes;
  std::vector<PathSeconds> paths;  // the transport, then its baselines

  /// Median of the transport / median of baseline `b` (1, 2, …).
  double ratio(std::size_t b) const;
  /// The same of each turn of the transport and the turn of the baseline that followed it, ascending.
  std::vector<double> turn_ratios(std::size_t b) const;
};

/// The router's side: every test on the transport and on every baseline, in turns. Workers are told over the transport
/// what comes next; they run ServeExchangeBench with the same baselines. They end when the transport is destroyed.
Result<std::vector<ExchangeResult>> RunExchangeBench(const ExchangeBenchOptions& options, Transport& transport,
                                                     std::span<const std::unique_ptr<RouterPath>> baselines,
                                                     const std::function<void(std::size_t rows)>& starting);
/// A worker's side.
Status ServeExchangeBench(WorkerEndpoint& endpoint, std::span<const std::unique_ptr<WorkerPath>> baselines);

/// What all results share.
struct ExchangeBenchContext {
  int ranks = 1;
  int workers = 1;
  std::size_t hidden = 0;
  std::string type;
};

std::string ExchangeResultsJson(const std::vector<ExchangeResult>& results, const ExchangeBenchContext& context);
std::string ExchangeTable(const std::vector<ExchangeResult>& results, const ExchangeBenchContext& context);

}  // namespace moe
