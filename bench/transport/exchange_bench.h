// `moe_bench transport`: what it takes to send bytes to all workers and to get as many back, by transports of ours and
// by bare loops, in turns. docs/benchmarks.md defines the figures.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/transport/exchange_path.h"
#include "core/status.h"
#include "model/dispatch_format.h"
#include "transport/transport.h"

namespace moe {

struct ExchangeBenchOptions {
  /// Payloads of a message, to each worker and back; or empty, and messages are dispatches of rows.
  std::vector<std::size_t> bytes;
  std::vector<std::size_t> rows = {1, 8, 64, 512};  // to each worker
  std::size_t hidden = 2048;
  ExchangeType type = ExchangeType::kF32;
  std::vector<int> workers;      // how many take part, each in turn; empty: all
  std::size_t repetitions = 30;  // turns of each path
  std::size_t exchanges = 10;    // counted in a turn, after one that is not; fewer of large `bytes`
};

/// INVALID_ARGUMENT naming the flag whose value nothing can be measured with, of a router with so many workers.
Status CheckExchangeBench(const ExchangeBenchOptions& options, int workers);

/// One size of message with so many workers.
struct ExchangeTest {
  int workers = 1;
  std::size_t rows = 0;  // 0: the size is given in bytes
  ExchangeBytes bytes;
  std::size_t exchanges = 1;  // counted in a turn
  bool latency = false;       // one worker, the smallest message: half a round trip is the latency of one way
};

/// In the order in which they run. Sizes in bytes begin with the one for the latency.
std::vector<ExchangeTest> TestsOf(const ExchangeBenchOptions& options, int workers);

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

/// A transport in a test.
struct ExchangeResult {
  ExchangeTest test;
  std::vector<PathSeconds> paths;  // the transport, then its baselines

  /// Median of the transport / median of baseline `b` (1, 2, …).
  double ratio(std::size_t b) const;
  /// The same of each turn of the transport and the turn of the baseline that followed it, ascending.
  std::vector<double> turn_ratios(std::size_t b) const;

  /// Bytes a second by nccl-tests' definitions, of path `p` (0: the transport): an exchange is a scatter of requests
  /// and a gather of replies over workers + 1 ranks.
  double algorithm_bandwidth(std::size_t p) const;
  double bus_bandwidth(std::size_t p) const;
  /// Seconds; none but of the test for it.
  std::optional<double> one_way_latency(std::size_t p) const;
};

/// The router's end of a transport and the bare loops that it is set beside.
struct RouterSide {
  Transport* transport = nullptr;  // outlives this
  RouterPaths baselines;
};
/// A worker's, of the same transport, with the same baselines.
struct WorkerSide {
  WorkerEndpoint* endpoint = nullptr;  // outlives this
  WorkerPaths baselines;
};

/// Both ends of a transport meet: each calls this right after it has made its own, before the next transport is made.
/// Where ends find one another only while a worker waits for its router, nobody waits for someone who does not come.
Status Meet(Transport& transport);
Status Meet(WorkerEndpoint& endpoint);

/// The router's side: every test on every transport and every baseline, in turns, all with the same workers. Workers
/// are told over the first transport what comes next; they run ServeExchangeBench with the same sides in the same
/// order, and end when this ends well, or when the first transport is destroyed if it is one that tells. Results by
/// transport, then in the order of the tests.
Result<std::vector<ExchangeResult>> RunExchangeBench(const ExchangeBenchOptions& options,
                                                     std::span<const RouterSide> sides,
                                                     const std::function<void(const ExchangeTest&)>& starting);
/// A worker's side.
Status ServeExchangeBench(std::span<const WorkerSide> sides);

/// What all results share.
struct ExchangeBenchContext {
  int ranks = 1;
  std::size_t hidden = 0;  // of rows
  std::string type;        // the same
};

std::string ExchangeResultsJson(const std::vector<ExchangeResult>& results, const ExchangeBenchContext& context);
std::string ExchangeTable(const std::vector<ExchangeResult>& results, const ExchangeBenchContext& context);

}  // namespace moe
